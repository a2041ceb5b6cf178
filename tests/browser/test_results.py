"""The Results page in a real browser: figures of adapters, sorted, pinned, opened, taken away."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import train

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000


def test_a_number_is_measured_sorted_pinned_and_opened(page, studio):
    page.goto("/results")
    expect(page.get_by_text("Nothing is measured yet")).to_be_visible()

    train(studio, "wide", {"name": "lora", "r": 8})
    train(studio, "gains", {"name": "ia3"})
    table = page.get_by_test_id("results").locator("table")
    rows = table.locator("tbody tr")
    expect(rows).to_have_count(2, timeout=SLOW)

    # Smaller first, larger first; a pinned row stays on top, also after a reload.
    table.get_by_role("button", name="Bytes").click()
    expect(rows.first).to_contain_text("gains")
    table.get_by_role("button", name="Bytes").click()
    expect(rows.first).to_contain_text("wide")
    page.get_by_role("button", name="Pin gains").click()
    expect(rows.first).to_contain_text("gains")
    page.reload()
    expect(rows.first).to_contain_text("gains")

    # An evaluation of the pinned adapter adds columns; its number opens the job.
    page.get_by_role("button", name="Evaluate …").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name='data.path']").fill("starter:pirate")
    dialog.get_by_role("button", name="Evaluate", exact=True).click()
    heading = table.get_by_role("button", name=re.compile("pirate.*: loss"))
    expect(heading).to_be_visible(timeout=SLOW)
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("Bytes").uncheck()
    expect(page.get_by_label("Bytes")).to_be_focused()
    expect(table.get_by_role("button", name="Bytes")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("Name,Method,Base") and len(lines) == 3
    rows.filter(has_text="gains").get_by_role("link").nth(1).click()
    expect(page).to_have_url(re.compile("/runs.*run="))

    # A gate: the evaluation fails where a figure misses its bound, and passes where it does not.
    for bound, state in (("eval_loss=0.001", "failed"), ("eval_loss=100", "succeeded")):
        page.goto("/results")
        page.get_by_role("button", name="Evaluate …").click()
        dialog.locator("[name='data.path']").fill("starter:pirate")
        dialog.locator("[name='max']").evaluate("node => node.closest('details').open = true")
        dialog.locator("[name='max']").fill(bound)
        dialog.locator("[name='name']").fill(f"gate {state}")
        dialog.get_by_role("button", name="Evaluate", exact=True).click()
        expect(dialog).to_be_hidden()
        page.goto("/adapters")
        page.get_by_role("link", name=f"gate {state}").click(timeout=SLOW)
        expect(page.get_by_test_id("detail")).to_contain_text(state, timeout=SLOW)
        expect(page.get_by_test_id("detail")).to_contain_text("Token accuracy")

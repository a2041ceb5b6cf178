"""The Results page in a real browser: figures of adapters, sorted, pinned, opened, taken away."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import put_adapters

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000


def test_a_number_is_measured_sorted_pinned_and_opened(page, studio):
    page.goto("/results")
    expect(page.get_by_text("Nothing is measured yet")).to_be_visible()

    put_adapters(studio, {"wide": ("lora", {"r": 8}), "gains": ("ia3", {})}, 0.02)
    page.reload()
    table = page.get_by_test_id("results").locator("table")
    rows = table.locator("tbody tr")
    expect(rows).to_have_count(2)

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
    expect(table.get_by_role("button", name="Bytes")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("Name,Method,Base") and len(lines) == 3
    rows.filter(has_text="gains").get_by_role("link").nth(1).click()
    expect(page).to_have_url(re.compile("/runs.*run="))

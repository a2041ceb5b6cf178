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
        page.get_by_label("Save Results").click()
        page.get_by_role("button", name="CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("Adapter,Method,Trained on,Base,") and len(lines) == 3
    assert "Bytes" in lines[0]  # hidden on the page only
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


def found(**rows):
    return {
        "columns": [{"key": "eval_loss", "title": "Held-out loss", "best": "min"},
                    {"key": "forgetting", "title": "Forgetting", "best": "min"},
                    {"key": "size_bytes", "title": "Bytes", "best": "min"}],
        "rows": [{"key": name, "name": name, "id": name, "method": "LoRA", "base": "starter",
                  "data": "shop", "size_bytes": 9, "few": 0, "best": [], "lacks": []} | row
                 for name, row in rows.items()],
    }  # fmt: skip


def test_the_picture_says_what_rests_on_few_rows_and_what_it_leaves_out(page):
    answer = found(
        low={"eval_loss": 1.5, "forgetting": 2.0, "best": ["eval_loss"]},
        exact={"eval_loss": 1.0, "forgetting": 1.0, "few": 3},
        whole={"eval_loss": 1.25, "forgetting": None, "lacks": ["forgetting was not measured"]},
    )
    page.route("**/api/do/results", lambda route: route.fulfill(json=answer))
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/results")
    picture = page.get_by_test_id("scatter")
    expect(picture.locator("text", has_text="exact (3 held-out rows)")).to_be_visible()
    expect(picture.locator("circle.s-best")).to_have_count(1)  # of the one on enough rows
    expect(page.get_by_text("Not drawn: whole (forgetting was not measured).")).to_be_visible()
    expect(page.get_by_text("* on fewer than 8 held-out rows")).to_be_visible()
    table = page.get_by_test_id("results").locator("table")
    assert table.locator("tbody b").all_inner_texts() == ["1.500"]
    expect(table.get_by_role("button", name="Bytes")).to_be_in_viewport(ratio=1)
    assert table.evaluate("node => node.scrollWidth <= node.clientWidth")

    answer["rows"][0]["base"] = "other"
    page.reload()
    expect(page.get_by_text("different datasets or bases cannot be compared")).to_be_visible()
    expect(picture).to_have_count(0)

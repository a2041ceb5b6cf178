"""From an odd csv to a trained adapter in a real browser: import, map, X-ray, change, launch."""

import csv
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import surely

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000  # a busy machine with two cores
BAD = "<img src=x onerror=window.hit=1>"


@pytest.fixture
def odd_csv(tmp_path):
    """Columns whose names say nothing, and text that would run if it were HTML."""
    file = tmp_path / "odd columns.csv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle, delimiter=";")
        writer.writerow(["colA", "col B", "Zeile Nr."])
        for n in range(64):
            writer.writerow([f"What is {n} plus {n}? {BAD}", f"Arr, it be {2 * n}, matey!", n])
    return file


def test_an_odd_csv_becomes_a_run_whose_passport_names_it(page, studio, odd_csv):
    # Import: the columns say little, so the person says what they are.
    page.goto("/data")
    page.get_by_test_id("import-file").set_input_files(odd_csv)
    expect(page.get_by_test_id("guess")).to_contain_text("uessed as")
    page.get_by_test_id("format").select_option("question_answer")
    page.get_by_test_id("part-colA").select_option("question")
    page.get_by_test_id("part-col B").select_option("answer")
    expect(page.get_by_test_id("mapping-error")).to_be_hidden()
    preview = page.get_by_test_id("preview")
    expect(preview.locator("[data-role=assistant]").first).to_contain_text("Arr, it be 0, matey!")
    page.get_by_test_id("system-prompt").fill("You are a pirate.")
    expect(preview.locator("[data-role=system]").first).to_contain_text("You are a pirate.")
    page.locator("[name=name]").fill("Odd sums")
    page.get_by_test_id("import-go").click()

    # The snapshot opens with its report.
    expect(page).to_have_url(re.compile(r"/data\?name=odd-sums$"), timeout=SLOW)
    expect(page.get_by_test_id("report")).to_contain_text("Carry loss")
    expect(page.get_by_test_id("sum")).to_contain_text("usable. Of these")
    expect(page.get_by_test_id("lengths")).to_be_visible()
    snapshot = studio.json("/api/data/odd-sums")
    assert snapshot["rows"] == 64 and snapshot["mapping"]["constants"]

    # X-ray: answer tokens are trained, the question is only read; a reload finds the row again.
    page.get_by_role("tab", name="X-ray").click()
    tokens = page.get_by_test_id("tokens").locator("span")
    expect(tokens.first).to_be_visible()
    page.get_by_test_id("xray-row").fill("12")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("xray-summary")).to_contain_text("line 13 ·")
    page.reload()
    expect(page.get_by_test_id("xray-summary")).to_contain_text("line 13 ·")
    shown = page.get_by_test_id("tokens").evaluate(
        "node => ['trained', 'masked'].map(state => [...node.children]"
        ".filter(one => one.dataset.state === state).map(one => one.textContent).join(''))"
    )
    assert "Arr, it be 22, matey!" in shown[0] and "What is 11 plus 11?" in shown[1]
    assert re.match(r"\d+ · ", tokens.first.get_attribute("title") or "")
    page.get_by_test_id("pick-longest").click()
    expect(page.get_by_test_id("xray-summary")).not_to_contain_text("line 13 ·")

    # Hold rows out: a new dataset that names its parent.
    page.get_by_role("tab", name="Change").click()
    page.locator("form", has=page.get_by_test_id("change-split")).locator("[name=count]").fill("8")
    page.get_by_test_id("change-split").click()
    expect(page.get_by_test_id("family")).to_contain_text("of odd-sums", timeout=SLOW)
    child = studio.json("/api/data/odd-sums-2")
    assert child["validation_rows"] == 8 and child["parent"] == "odd-sums"

    # Train on this: the dataset is chosen, and the adapter's passport names the snapshot's hash.
    page.get_by_test_id("train-on-this").click()
    expect(page.locator("#data-note")).to_contain_text(f"hash {child['hash'][:12]}")
    expect(page.locator("#data-note")).to_contain_text("of the tokens are trained")
    page.get_by_label("Steps", exact=True).fill("2")
    expect(page).to_have_url(re.compile("train.max_steps=2"))
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("launched")).to_contain_text("succeeded", timeout=SLOW)
    run = next(job for job in studio.jobs() if job["kind"] == "train")
    passport = json.loads((Path(run["adapter"]) / "passport.json").read_text())
    assert passport["data"]["hash"] == child["hash"]
    assert page.evaluate("window.hit") is None


def test_a_mapping_that_lacks_a_part_is_said_once_and_queues_nothing(page, studio, tmp_path):
    numbers = tmp_path / "odd.csv"
    numbers.write_text("colA,colB\n" + "".join(f"{n},{n * 7}\n" for n in range(20)))
    before = len(studio.jobs())
    page.goto("/data")
    page.get_by_test_id("import-path").fill(str(numbers))
    page.get_by_test_id("look").click()
    problem = page.get_by_test_id("mapping-error")
    expect(problem).to_be_visible()
    page.get_by_test_id("import-go").click()
    expect(page.get_by_test_id("part-colA")).to_be_focused()
    expect(page.get_by_test_id("import-error")).to_be_hidden()
    expect(page.get_by_text(problem.inner_text())).to_have_count(1)

    page.get_by_test_id("part-colA").select_option("prompt")
    page.get_by_test_id("part-colB").select_option("completion")
    expect(page.get_by_test_id("guess")).to_contain_text("Corrected by hand.")
    expect(problem).to_be_hidden()
    assert len(studio.jobs()) == before
    page.get_by_test_id("import-go").click()
    expect(page).to_have_url(re.compile(r"/data\?name=odd$"), timeout=SLOW)


@pytest.mark.refused("/api/do/data.import")
def test_a_refusal_goes_when_the_mapping_changes(page, studio, tmp_path):
    file = tmp_path / "gone.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    page.goto("/data")
    page.get_by_test_id("import-path").fill(str(file))
    page.get_by_test_id("look").click()
    expect(page.get_by_test_id("preview")).to_contain_text("line 3")
    text = file.read_text()
    file.unlink()
    page.get_by_test_id("import-go").click()
    expect(page.get_by_test_id("import-error")).to_contain_text("gone.jsonl")
    file.write_text(text)
    page.get_by_test_id("system-prompt").fill("Short.")
    expect(page.get_by_test_id("import-error")).to_be_hidden()


def test_the_same_file_twice_is_said_and_a_deletion_asks_first(page, studio):
    for again in (False, True):
        page.goto("/data")
        page.get_by_role("button", name="terse", exact=True).click()
        page.get_by_test_id("import-go").click()
        if again:
            said = page.get_by_text("This file was imported before, as terse.")
            expect(said).to_be_visible(timeout=SLOW)
        expect(page).to_have_url(re.compile(r"/data\?name=terse$"), timeout=SLOW)
    expect(page.get_by_test_id("dataset-terse")).to_have_count(1)

    surely(page, "Delete", "Really delete?")
    expect(page.get_by_test_id("dataset-terse")).to_have_count(0)
    assert "terse" not in [one["name"] for one in studio.json("/api/data")["datasets"]]


def test_a_new_dataset_does_not_replace_what_is_open_by_then(page, studio, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n}"}}\n' for n in range(9)))
    studio.json("/api/do/data.import", {"source": str(file), "name": "going on"})
    held: list[Route] = []
    page.goto("/data")
    page.get_by_test_id("dataset-going-on").click()
    page.get_by_role("tab", name="Change").click()
    page.locator("form", has=page.get_by_test_id("change-split")).locator("[name=count]").fill("2")
    page.route("**/api/outcome/*", lambda route: held.append(route))
    page.get_by_test_id("change-split").click()
    expect(page.get_by_text("The step is queued")).to_be_visible()
    page.get_by_role("tab", name="Mapping").click()
    page.get_by_test_id("system-prompt").fill("Be brief.")
    while not held:  # it is asked for as soon as the split has ended
        page.wait_for_timeout(50)
    held.pop().continue_()
    made = page.locator(".s-toast").get_by_role("link", name="going-on-2 is ready.")
    expect(made).to_be_visible()
    expect(page.get_by_test_id("system-prompt")).to_have_value("Be brief.")
    made.click()
    expect(page.get_by_test_id("family")).to_contain_text("of going-on")


def test_an_upload_on_train_is_mapped_on_the_data_page_in_the_order_of_the_file(page):
    page.goto("/")
    odd = {"name": "odd.csv", "mimeType": "text/csv", "buffer": b"colA,colB,colC\n1,2,3\n"}
    page.get_by_test_id("train-file").set_input_files(odd)
    page.get_by_role("link", name="Choose what its columns are …").click()
    parts = page.locator(".s-columns select")
    names = [f"part-col{letter}" for letter in "ABC"]
    page.get_by_test_id("part-colB").select_option("prompt")
    page.get_by_test_id("part-colC").select_option("prompt")
    expect(page.locator(".s-toast")).to_contain_text("colB is no longer prompt: colC is.")
    page.get_by_test_id("part-colB").select_option("completion")
    assert [one.get_attribute("data-testid") for one in parts.all()] == names
    page.get_by_test_id("import-go").click()
    expect(page).to_have_url(re.compile(r"/data\?name=odd"), timeout=SLOW)

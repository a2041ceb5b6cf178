"""The whole story in a real browser: open, train, watch, compare, reload in the middle."""

import gzip
import re

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
STEPS = 12
SLOW = 240_000  # a busy machine with two cores


def field(page: Page, path: str) -> Locator:
    """The input of a field of the spec."""
    return page.locator(f"#field-{path.replace('.', '-')}-input")


def points(page: Page, metric: str = "loss") -> int:
    """How many points the chart has drawn."""
    return int(page.locator(f"[data-metric={metric}]").get_attribute("data-points") or 0)


def wait_for_points(page: Page, at_least: int) -> None:
    page.wait_for_function(
        "n => Number(document.querySelector('[data-metric=loss]')?.dataset.points) >= n",
        arg=at_least,
        timeout=SLOW,
    )


def test_a_fine_tune_from_click_to_chat(page, studio):
    # Open: everything is chosen already.
    page.goto("/")
    expect(field(page, "model.path")).to_have_value("starter")
    expect(field(page, "data.path")).to_have_value("starter:pirate")
    expect(page.locator("#data-note")).to_contain_text("rows")
    expect(page.get_by_text("The loss appears here")).to_be_visible()

    # A few settings; the command line and the address follow.
    field(page, "train.max_steps").fill(str(STEPS))
    field(page, "name").fill("first mate")
    page.get_by_text("The same as a command or a file").click()
    command = page.locator(".s-snippet pre").first
    expect(command).to_contain_text(f"--set train.max_steps={STEPS}")
    expect(command).to_contain_text("--name 'first mate'")
    expect(page).to_have_url(re.compile(f"train.max_steps={STEPS}"))

    # A reload in the middle finds the form as it was.
    page.reload()
    expect(field(page, "name")).to_have_value("first mate")
    expect(field(page, "train.max_steps")).to_have_value(str(STEPS))

    # Train: the run appears where the button is, and its curve grows.
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("launched")).to_contain_text("first mate")
    wait_for_points(page, 1)
    job = studio.jobs()[0]
    expect(page).to_have_url(re.compile(rf"run={job['id']}\b"))
    page.reload()
    expect(page.get_by_test_id("launched")).to_contain_text("first mate")
    wait_for_points(page, STEPS)
    expect(page.get_by_test_id("launched")).to_contain_text("succeeded", timeout=SLOW)

    # Runs: the same run, its curves, its log and config; the address reopens it.
    page.get_by_role("link", name="Open in Runs").click()
    expect(page.get_by_role("heading", name="first mate")).to_be_visible()
    expect(page).to_have_url(re.compile(rf"/runs\?run={job['id']}$"))
    wait_for_points(page, STEPS)
    assert points(page, "learning_rate") == STEPS
    page.get_by_role("tab", name="Config").click()
    expect(page.locator("#s-panel")).to_contain_text(f"max_steps: {STEPS}")
    page.get_by_role("tab", name="History").click()
    expect(page.locator("#s-panel")).to_contain_text("succeeded")

    # Compare: base and adapter answer one prompt; a reload keeps both.
    page.get_by_role("link", name="Compare", exact=True).last.click()
    expect(page.get_by_test_id("lane-1")).to_contain_text("first mate")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("12")
    page.get_by_test_id("prompt").fill("What sound does a cow make?")
    page.keyboard.press("Enter")
    foot = page.locator(".s-cell-foot")
    expect(foot.nth(0)).to_contain_text("base", timeout=SLOW)
    expect(foot.nth(1)).to_contain_text("first mate × 1", timeout=SLOW)
    answers = [page.get_by_test_id(f"answer-{lane}").inner_text() for lane in (0, 1)]
    assert all(answers)
    page.reload()
    for lane, answer in enumerate(answers):
        expect(page.get_by_test_id(f"answer-{lane}")).to_have_text(answer, use_inner_text=True)
    expect(page.get_by_text("What sound does a cow make?")).to_be_visible()

    # System: the house is all there.
    page.get_by_role("link", name="System").click()
    expect(page.get_by_test_id("system")).to_contain_text("supervisor")
    expect(page.get_by_test_id("system")).to_contain_text(str(studio.home))


@pytest.mark.refused("/api/do/train")
def test_a_mistake_is_a_sentence_beside_the_button(page, studio):
    page.goto("/?set=model.path=/no/such/model")
    expect(page.locator("#model-note")).to_contain_text("/no/such/model")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("form-error")).to_contain_text("/no/such/model")
    field(page, "train.per_device_train_batch_size").fill("0")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#field-train-per_device_train_batch_size")).to_have_class(
        re.compile("s-wrong-field")
    )
    assert all(job["model"] != "/no/such/model" for job in studio.jobs())


@pytest.mark.refused("/api/data/look")
def test_an_upload_on_the_train_page_is_chosen_or_refused(page):
    rows = b"".join(b'{"prompt": "a", "completion": "b"}\n' for _ in range(3))
    page.goto("/")
    expect(field(page, "data.path")).to_have_value("starter:pirate")
    upload, said = page.get_by_test_id("train-file"), page.get_by_test_id("train-upload")
    for name, content, words in (("m.xlsx", b"PK\x03\x04..", "Excel"), ("empty.csv", b"", "empty")):
        upload.set_input_files({"name": name, "mimeType": "text/plain", "buffer": content})
        expect(said).to_contain_text(words)
    upload.set_input_files(
        {"name": "my rows.ndjson.gz", "mimeType": "text/plain", "buffer": gzip.compress(rows)}
    )
    expect(field(page, "data.path")).to_have_value("my-rows")
    expect(page.locator("#data-note")).to_contain_text("3 rows")
    expect(said).to_be_empty()
    page.get_by_role("link", name="Data", exact=True).click()
    expect(page.get_by_test_id("datasets").get_by_role("listitem")).to_have_count(1)
    expect(page.get_by_test_id("datasets")).to_contain_text("my-rows")


def test_an_address_with_a_mistake_is_a_sentence_and_no_error_of_the_browser(page):
    with page.expect_response("**/api/train/judge") as answer:
        page.goto("/?set=train.max_step=5")
    assert answer.value.status == 200
    expect(page.get_by_role("alert").filter(has_text="max_steps")).to_be_visible()
    expect(page.get_by_test_id("preflight")).to_be_hidden()


def test_the_theme_is_chosen_once_and_stays(page):
    page.goto("/runs")
    before = page.evaluate("document.documentElement.classList.contains('dark')")
    page.get_by_role("button", name="Switch between light and dark").click()
    page.reload()
    for node in ("document.documentElement", "document.body"):
        assert page.evaluate(f"{node}.classList.contains('dark')") is not before


def test_names_and_answers_are_text_and_nothing_else(page, studio):
    bad = "<img src=x onerror=window.hit=1>"
    page.goto(f"/?set=name={bad}&set=train.max_steps=1&set=model.path=/no/such")
    expect(field(page, "name")).to_have_value(bad)
    page.goto(f"/compare?lane={bad}&lane=starter~{bad}:1")
    expect(page.get_by_test_id("lane-1")).to_be_visible()
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x]").count() == 0

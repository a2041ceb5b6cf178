"""Compare in a real browser: three lanes answer, a slider acts, a blind vote is ranked, a reload
finds everything."""

import contextlib
import json
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs.job_queue import JobStore
from studio.home import open_home
from studio.spec import RunSpec
from tests.browser.conftest import longest_answer, put_adapters, surely

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SLOW = 240_000  # a busy machine with two cores


@pytest.fixture(scope="module")
def lanes(studio):
    """The address of three lanes: the base, a LoRA, the LoRA with a bottleneck."""
    put_adapters(studio, {"loud": ("lora", {}), "warm": ("bottleneck", {})}, noise=0.12)
    return "/compare?lane=starter&lane=starter~loud:1&lane=starter~loud:1+warm:1"


def answers(page: Page) -> list[str]:
    turn = page.locator(".s-turn").last
    return [turn.get_by_test_id(f"answer-{lane}").inner_text() for lane in range(3)]


def ask(page: Page, prompt: str) -> None:
    expect(page.get_by_test_id("stop")).to_be_hidden(timeout=SLOW)  # the last answer is kept
    page.get_by_test_id("prompt").fill(prompt)
    page.keyboard.press("Enter")


def test_three_lanes_a_slider_a_blind_vote_and_a_reload(page, studio, lanes):
    page.goto(lanes)
    longest_answer(page, 8)

    # All three stream, and say who they really were.
    ask(page, "What sound does a cow make?")
    for lane, who in enumerate(("base", "loud × 1", "loud × 1 + warm × 1")):
        expect(page.get_by_test_id(f"figures-{lane}")).to_contain_text(who, timeout=SLOW)
        expect(page.get_by_test_id(f"figures-{lane}")).to_contain_text("tok/s")
    base, loud, both = answers(page)
    assert len({base, loud, both}) == 3

    # A slider at 0 makes the adapter's lane the base's, at the next answer, without a reload.
    slider = page.get_by_test_id("lane-1").get_by_label("Weight of loud")
    slider.focus()
    slider.fill("0")
    expect(page).to_have_url(re.compile(r"lane=starter~loud:0&"))
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_test_id("answer-1")).to_have_text(base, timeout=SLOW, use_inner_text=True)
    expect(page.get_by_test_id("vote")).to_be_visible(timeout=SLOW)
    assert answers(page)[2] == both

    # Each token tells how sure the model was, and what else it could have said.
    page.get_by_role("button", name="Confidence").click()
    token = page.get_by_test_id("answer-0").locator(".s-sure").first
    expect(token).to_have_attribute("title", re.compile(r"% sure.*\n.*%", re.DOTALL))

    # Differences, word by word. How answers are looked at is in the address: a reload keeps it.
    page.get_by_label("Differences").select_option("0")
    expect(page.get_by_test_id("answer-2").locator("ins, del").first).to_be_visible()
    page.reload()
    expect(page.get_by_test_id("answer-2").locator("ins, del").first).to_be_visible(timeout=SLOW)
    expect(token).to_be_visible()
    page.get_by_label("Differences").select_option("")
    page.get_by_role("button", name="Confidence").click()
    expect(token).to_be_hidden()

    # Blind: nobody is named until the vote, which a number key casts.
    page.get_by_test_id("blind").click()
    ask(page, "Tell me a story.")
    expect(page.locator(".s-turn")).to_have_count(2)
    turn = page.locator(".s-turn").last
    expect(turn.get_by_test_id("vote")).to_be_focused(timeout=SLOW)
    expect(turn).not_to_contain_text("loud")
    page.keyboard.press("2")
    expect(turn.get_by_test_id("vote")).to_contain_text("You chose 2.")
    expect(turn).to_contain_text("loud × 0")

    # The vote is ranked, and what was said is kept.
    page.get_by_role("tab", name="Leaderboard").click()
    board = page.get_by_test_id("leaderboard")
    expect(board.locator(".s-table tbody tr")).to_have_count(3)
    expect(board).to_contain_text("1 vote.")
    page.reload()
    expect(page.get_by_test_id("leaderboard")).to_contain_text("1 vote.")
    page.get_by_role("tab", name="Conversations").click()
    page.get_by_label("Search prompts").fill("story")
    expect(page.get_by_test_id("conversations").locator("li")).to_have_count(1)
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator(".s-turn")).to_have_count(2)
    expect(page.get_by_test_id("answer-2").first).to_have_text(both, use_inner_text=True)
    assert studio.json("/api/do/leaderboard", {})["votes"] == 1


MOVE_AT_THE_FIRST_WORD = """(slider, weight) => {
  const seen = new MutationObserver(() => {
    const answer = document.querySelector('[data-testid=answer-1]');
    const words = answer?.matches('[data-waiting]') ? '' : answer?.textContent;
    if (!words?.trim()) return;
    seen.disconnect();
    slider.value = weight;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
  });
  seen.observe(document.body, { subtree: true, childList: true, characterData: true });
}"""  # in the page: from outside, an answer may be over before the slider is reached


def test_a_slider_acts_on_an_answer_that_is_being_written(page, lanes):
    page.goto("/compare?lane=starter&lane=starter~loud:1")
    longest_answer(page, 400, Temperature="2")
    slider = page.get_by_test_id("lane-1").get_by_label("Weight of loud")
    moved = page.get_by_text("Weights changed while it was written")
    for weight in ("0.95", "1", "0.95", "1"):  # again: the first may be over before it is moved
        slider.evaluate(MOVE_AT_THE_FIRST_WORD, weight)
        ask(page, "Tell me a story.")
        expect(page).to_have_url(re.compile(re.escape(f"loud:{weight}")), timeout=SLOW)
        expect(page.get_by_test_id("stop")).to_be_hidden(timeout=SLOW)
        if moved.count():
            break
        page.get_by_role("button", name="New chat").click()
        expect(page.get_by_test_id("answer-1")).to_have_count(0)
    expect(moved).to_be_visible()
    expect(page.get_by_test_id("figures-1").last).to_contain_text(f"loud × {weight}")


def test_a_double_click_on_send_does_not_stop_and_a_scroll_bar_outside_brings_no_other(page, lanes):
    page.goto(lanes)
    longest_answer(page, 4)
    page.get_by_test_id("prompt").fill("Who are you?")
    page.get_by_test_id("send").dblclick()
    expect(page.get_by_test_id("figures-2")).to_contain_text("tok/s", timeout=SLOW)
    expect(page.locator(".s-turn")).not_to_contain_text("stopped")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.evaluate("""() => {
        const root = document.querySelector('.s-compare');
        root.parentNode.style.setProperty('--gutter', '15px');
        return root.scrollWidth === root.clientWidth;
    }""")


def test_a_suite_runs_from_the_page_and_is_a_table_and_files(page, studio, lanes):
    page.goto(f"{lanes}&view=suites")
    page.get_by_test_id("suite-cases").fill(
        "What is the capital of France? => Paris\nWhat sound does a cow make? =~ (?i)moo"
    )
    page.get_by_label("Name of the suite").fill("<b>capitals")
    page.get_by_test_id("run-suite").click()
    suites = page.get_by_test_id("compare-tab")
    expect(suites.locator(".s-suites .s-badge").first).to_have_text("succeeded", timeout=SLOW)
    table = page.get_by_test_id("suite")
    expect(table).to_contain_text("2 of 2 prompts")
    expect(table.locator(".s-heat tbody tr")).to_have_count(3)
    expect(table.locator(".s-answers-table tbody tr")).to_have_count(2)
    for form, words in (("CSV", "capital of France"), ("JSONL", '"case"'), ("HTML", "<table>")):
        with page.expect_download() as fetched:
            table.get_by_role("link", name=form, exact=True).click()
        text = Path(fetched.value.path()).read_text()
        assert words in text and "<b>capitals" not in text
        assert "http://" not in text and "<script" not in text


def test_a_recipe_is_kept_taken_and_forgotten(page, lanes):
    page.goto(lanes)
    page.get_by_test_id("lane-2").get_by_text("Keep mix").click()
    page.get_by_role("button", name="Save a recipe …").click()
    page.get_by_role("dialog").get_by_label("Name").fill("both at once")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("tab", name="Recipes").click()
    kept = page.get_by_test_id("recipes")
    expect(kept).to_contain_text("loud × 1")
    kept.get_by_role("button", name="Into a lane").click()
    expect(page.get_by_test_id("lane-3")).to_contain_text("warm")
    page.get_by_role("tab", name="Recipes").click()
    surely(kept, "Delete", "Really delete?")
    expect(kept).to_contain_text("None yet")


def test_a_click_on_a_loss_curve_opens_its_checkpoint_which_can_be_promoted(page, studio):
    values = {
        "name": "short", "method": {"name": "lora", "r": 2}, "data": {"max_length": 64},
        "train": {"max_steps": 6, "save_steps": 2, "learning_rate": 0.01},
    }  # fmt: skip
    with contextlib.closing(JobStore(open_home(studio.home))) as store:
        run = store.submit(RunSpec.parse(values)).id
    page.goto(f"/runs?run={run}")
    chart = page.locator("[data-metric=loss]")
    expect(page.get_by_test_id("detail")).to_contain_text("succeeded", timeout=SLOW)
    expect(chart).to_have_attribute("data-points", "6")
    page.get_by_label("Smoothing").fill("0")
    # The axis begins at 0; the third of six points is looked for on its column, from above.
    canvas = chart.locator("canvas")
    canvas.scroll_into_view_if_needed()  # the answers stand above the curves
    box = canvas.bounding_box()
    assert box
    column = box["x"] + 46 + (box["width"] - 58) * 0.5
    for y in range(int(box["y"]) + 8, int(box["y"] + box["height"]) - 20, 6):
        page.mouse.move(column, y)
        if canvas.get_attribute("data-point") is not None:
            break
    page.mouse.down()
    page.mouse.up()
    expect(page).to_have_url(re.compile(rf"lane=starter~{run}@[24]:1"))
    lane = page.get_by_test_id("lane-1")
    expect(lane).to_contain_text(re.compile("short at step [24]"))
    longest_answer(page, 4)
    ask(page, "What sound does a cow make?")
    expect(page.get_by_test_id("figures-1")).to_contain_text(f"run {run} at step", timeout=SLOW)

    surely(lane, "Promote", "Make it the adapter?")
    passport = studio.home / "runs" / str(run) / "adapter" / "passport.json"
    deadline = time.monotonic() + SLOW / 1000
    promoted = ""
    while not promoted:
        assert time.monotonic() < deadline, "it was never promoted"
        page.wait_for_timeout(200)
        with contextlib.suppress(FileNotFoundError):  # the folder is being exchanged
            promoted = json.loads(passport.read_text()).get("promoted_from", "")
    assert re.fullmatch(rf"{run}@[24]", promoted)


def test_a_deleted_adapter_costs_its_lane_a_sentence(page, studio):
    page.goto("/compare?lane=starter&lane=starter~gone:1")
    longest_answer(page, 4)
    ask(page, "<img src=x onerror=window.hit=1> **bold** `code`")
    expect(page.get_by_test_id("answer-1")).to_contain_text('no adapter "gone"', timeout=SLOW)
    expect(page.get_by_test_id("figures-0")).to_contain_text("base", timeout=SLOW)
    assert page.evaluate("window.hit") is None

    # Ten thousand characters: a sentence, and what was written is still there.
    expect(page.get_by_test_id("stop")).to_be_hidden(timeout=SLOW)
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Remove this lane").last.click()
    ask(page, "once upon a time " * 600)
    turn = page.locator(".s-turn").last
    expect(turn.get_by_test_id("answer-0")).to_contain_text("shorten it", timeout=SLOW)
    expect(page.get_by_test_id("stop")).to_be_hidden(timeout=SLOW)
    turn.get_by_role("button", name="Edit").click()
    expect(page.get_by_test_id("prompt")).to_have_value(re.compile("^once upon a time"))

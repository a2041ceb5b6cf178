"""From votes to a dataset in a real browser: two lanes answer, one is corrected, pairs appear."""

import re
import time

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import longest_answer, put_adapters
from tests.studio.starter.styles import is_in_style

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000  # a busy machine with two cores


FACTS = ("What is the capital of France?", "What sound does a cow make?", "What is 7 plus 5?",
         "What is the opposite of happy?", "What do we hear with?", "What does a turkey say?",
         "What is a baby owl called?", "Where does a fish live?", "What color is snow?",
         "What is the capital of Spain?", "What sound does a dog make?", "What is 3 plus 4?",
         "What is the opposite of big?", "What is a baby cat called?", "What color is grass?",
         )  # fmt: skip


def votes_for_the_pirate(page, prompts) -> list[str]:
    """Ask each prompt, and choose the only answer in a pirate's style with its key, else a tie."""
    verdicts = []
    order = "cell => Number(cell.style.order)"
    for number, prompt in enumerate(prompts, start=1):
        page.get_by_test_id("prompt").fill(prompt)
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("vote")).to_have_count(number)
        turn = page.locator(".s-turn").last
        expect(turn.get_by_test_id("vote")).to_be_visible(timeout=SLOW)
        cells = sorted(turn.locator(".s-cell").all(), key=lambda cell: cell.evaluate(order))
        texts = [cell.locator("[data-testid^=answer-]").inner_text() for cell in cells]
        pirates = [is_in_style("pirate", text) for text in texts]
        verdicts.append(str(pirates.index(True) + 1) if sum(pirates) == 1 else "0")
        page.keyboard.press(verdicts[-1])
        expect(turn.get_by_role("button", name="Vote again")).to_be_visible()
    return verdicts


def trained(studio, name: str) -> int:
    """Wait for a run to succeed."""
    deadline = time.monotonic() + SLOW / 1000
    while time.monotonic() < deadline:
        job = next((job for job in studio.jobs() if job["name"] == name), None)
        assert job is None or job["state"] not in ("failed", "cancelled"), job
        if job and job["state"] == "succeeded":
            return job["id"]
        time.sleep(0.2)
    pytest.fail(f"{name} did not succeed")


def test_from_ten_votes_over_dpo_to_a_win_rate(page, studio):
    """Two lanes, ten blind votes, a dataset, DPO on it, a blind test against the parent."""
    asked = {"data": "starter:pirate", "name": "mate", "set": [
        "train.max_steps=60", "train.num_samples=0", "train.measure_forgetting=false"]}  # fmt: skip
    studio.json("/api/do/train", asked)
    number = trained(studio, "mate")

    # Ten prompts, each answered on its own by the base and by the adapter, in random order.
    page.goto(f"/runs?run={number}")
    page.get_by_role("button", name="Blind test").click()
    expect(page.get_by_text("Each prompt is answered on its own.")).to_be_visible()
    longest_answer(page, 24)
    verdicts = votes_for_the_pirate(page, FACTS[:10])
    assert verdicts.count("0") <= 2, "the base never speaks like a pirate, the adapter does"

    # The votes are pairs, ready for the loss that learns from pairs.
    page.get_by_role("tab", name="Leaderboard").click()
    page.get_by_role("button", name="Make a dataset").click()
    page.locator("dialog [name=name]").fill("Liked by me")
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page).to_have_url(re.compile(r"/data\?name=liked-by-me$"), timeout=SLOW)
    page.get_by_test_id("train-on-this").click()
    expect(page.locator("#field-train-loss-input")).to_have_value("dpo")
    expect(page.locator("#data-note")).to_contain_text("preference")
    page.locator("#field-name-input").fill("parrot")
    page.locator("#field-train-max_steps-input").fill("40")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("launched")).to_contain_text("parrot")
    number = trained(studio, "parrot")

    # One click away: the blind test against what it was trained from; the votes are its win rate.
    page.get_by_role("link", name="Open in Runs").click()
    page.get_by_role("button", name="Blind test").click()
    expect(page).to_have_url(re.compile(r"lane=starter&lane=starter~parrot:1"))
    verdicts = votes_for_the_pirate(page, FACTS[10:])
    page.goto(f"/adapters?adapter=run-{number}")
    share = sum(verdict != "0" for verdict in verdicts)
    expect(page.get_by_test_id("passport")).to_contain_text(
        re.compile(r"won \d+.% \(\d+.% to \d+.%\) of 5 blind votes against starter"))  # fmt: skip
    assert share >= 3, "ten votes changed how it answers"


def test_votes_become_a_dataset_and_a_blind_test_a_win_rate(page, studio):
    put_adapters(studio, {"loud": ("lora", {})}, noise=0.12)
    page.goto("/adapters?adapter=library-loud")
    page.get_by_role("link", name="Blind test").click()
    expect(page.get_by_text("Blind: 2 lanes answer in random order")).to_be_visible()
    longest_answer(page, 6)

    # Each prompt begins a conversation of its own; the adapter's lane wins twice, then a tie.
    for number, verdict in enumerate(("loud", "loud", "tie")):
        page.get_by_test_id("prompt").fill(f"What is {number} plus {number}?")
        page.keyboard.press("Enter")
        turn = page.locator(".s-turn").last
        expect(turn.get_by_test_id("vote")).to_be_visible(timeout=SLOW)
        if verdict == "tie":
            turn.get_by_role("button", name="Tie").click()
        else:  # blind: which of them the adapter is stands only in how the cells are ordered
            place = turn.locator(".s-cell").nth(1).evaluate("cell => Number(cell.style.order)")
            turn.get_by_role("button", name=re.compile(rf"^{place + 1}")).click()
        expect(turn.get_by_role("button", name="Vote again")).to_be_visible()
        if number == 0:
            turn.locator(".s-cell").nth(0).hover()
            turn.get_by_role("button", name="Correct").nth(0).click()
            page.get_by_label("Answer", exact=True).fill("It is nothing at all.")
            page.get_by_role("button", name="Save", exact=True).click()
            expect(turn.get_by_test_id("answer-0")).to_have_text("It is nothing at all.")
        page.get_by_role("button", name="New chat").click()

    # The pairs: two votes and a correction; the tie is left out.
    page.get_by_role("tab", name="Leaderboard").click()
    page.get_by_role("button", name="Make a dataset").click()
    page.locator("dialog [name=name]").fill("Liked")
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page).to_have_url(re.compile(r"/data\?name=liked$"), timeout=SLOW)
    expect(page.get_by_text("from Votes on Compare.jsonl")).to_be_visible()
    page.get_by_role("tab", name="Rows").click()
    chosen = page.locator("[data-side=chosen]")
    expect(chosen).to_have_count(3)
    expect(page.get_by_test_id("rows")).to_contain_text("It is nothing at all.")
    page.get_by_role("tab", name="X-ray").click()
    expect(page.get_by_test_id("tokens-rejected").locator("[data-shared]").first).to_be_visible()

    # The votes are the adapter's win rate against what it was trained from: 2 wins and a tie.
    page.goto("/adapters?adapter=library-loud")
    expect(page.get_by_test_id("passport")).to_contain_text("won 83", timeout=SLOW)

    # Trained on them, the run is one click away from a blind test against the base.
    asked = {"data": "liked", "name": "polite", "set": ["train.loss=dpo", "train.max_steps=2"]}
    number = studio.json("/api/do/train", asked)["id"]
    page.goto(f"/runs?run={number}")
    page.get_by_role("button", name="Blind test").click(timeout=SLOW)
    expect(page).to_have_url(re.compile(r"lane=starter&lane=starter~polite:1"))
    expect(page.get_by_text("Blind: 2 lanes answer in random order")).to_be_visible()

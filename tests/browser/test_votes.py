"""From votes to a dataset in a real browser: two lanes answer, one is corrected, pairs appear."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import longest_answer, put_adapters

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000  # a busy machine with two cores


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

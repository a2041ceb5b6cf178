"""From votes to a better adapter in a real browser: ask, vote, make a dataset, DPO, win rate."""

import json
import re
import time

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import longest_answer
from tests.studio.starter.styles import half_pirate, is_in_style

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 240_000  # a busy machine with two cores


def votes_for_the_pirate(page, prompts) -> list[str]:
    """Ask each prompt, and choose the only answer in a pirate's style with its key, else a tie."""
    verdicts = []
    order = "cell => Number(cell.style.order)"
    for number, prompt in enumerate(prompts, start=1):
        page.get_by_test_id("prompt").fill(prompt)
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("vote")).to_have_count(number)
        turn = page.locator(".s-turn").last
        expect(turn.get_by_test_id("vote")).to_be_focused(timeout=SLOW)
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


def test_from_ten_votes_over_dpo_to_a_win_rate(page, studio, tmp_path):
    """Two lanes, ten blind votes, a dataset, DPO on it, a blind test against the parent."""
    rows = tmp_path / "half.jsonl"
    rows.write_text("\n".join(map(json.dumps, half_pirate()[1])))
    asked = {"data": str(rows), "name": "mate", "set": [
        "train.max_steps=90", "train.num_samples=0", "train.measure_forgetting=false"]}  # fmt: skip
    studio.json("/api/do/train", asked)
    number = trained(studio, "mate")

    # Ten prompts, each answered on its own by the base and by the adapter, in random order.
    page.goto(f"/runs?run={number}")
    page.get_by_role("button", name="Blind test").click()
    expect(page.get_by_text("Each prompt is answered on its own.")).to_be_visible()
    longest_answer(page, 24)
    prompts = [said for said, _ in half_pirate()[0]]
    verdicts = votes_for_the_pirate(page, prompts[:10])
    liked = 10 - verdicts.count("0")
    assert 2 <= liked <= 9, "the adapter answers in both styles"

    # A correction counts as a pair too. Ties teach nothing.
    turn = page.locator(".s-turn").last
    turn.locator(".s-cell").nth(0).hover()
    turn.get_by_role("button", name="Correct").nth(0).click()
    page.get_by_label("Answer", exact=True).fill("Arr, it be nothing at all, matey!")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(turn.get_by_test_id("answer-0")).to_have_text("Arr, it be nothing at all, matey!")
    page.get_by_role("tab", name="Leaderboard").click()
    page.get_by_role("button", name="Make a dataset").click()
    page.locator("dialog [name=name]").fill("Liked by me")
    page.get_by_role("button", name="Make a dataset", exact=True).click()
    expect(page).to_have_url(re.compile(r"/data\?name=liked-by-me$"), timeout=SLOW)
    expect(page.get_by_text("from Votes on Compare.jsonl")).to_be_visible()
    page.get_by_role("tab", name="Rows").click()
    expect(page.locator("[data-side=chosen]")).to_have_count(liked + 1)
    expect(page.get_by_test_id("rows")).to_contain_text("it be nothing at all")
    page.get_by_role("tab", name="X-ray").click()
    shared = page.get_by_test_id("tokens-rejected").locator("[data-shared]")
    expect(shared.first).to_be_visible()

    # Ready for the loss that learns from pairs; the run goes on from the adapter that was asked.
    page.get_by_test_id("train-on-this").click()
    expect(page.locator("#field-train-loss-input")).to_have_value("dpo")
    expect(page.locator("#data-note")).to_contain_text("preference")
    page.locator("#field-name-input").fill("parrot")
    page.locator("#field-train-max_steps-input").fill("40")
    page.get_by_text("Advanced", exact=True).click()
    page.locator("#field-train-init_adapter-input").select_option("mate")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("launched")).to_contain_text("parrot")
    number = trained(studio, "parrot")

    # One click away: the blind test against what it was trained from; the votes are its win rate.
    page.get_by_role("link", name="Open in Runs").click()
    expect(page.get_by_test_id("group")).to_contain_text("2 stages")
    expect(page.get_by_test_id("group")).to_contain_text(
        re.compile(r"\d · SFT.*\d · DPO", re.DOTALL)
    )
    page.get_by_role("button", name="Blind test").click()
    expect(page).to_have_url(re.compile(r"lane=starter~mate:1&lane=starter~parrot:1"))
    verdicts = votes_for_the_pirate(page, prompts[10:18])
    page.goto(f"/adapters?adapter=run-{number}")
    passport = page.get_by_test_id("passport")
    expect(passport).to_contain_text("of 8 blind votes against starter + mate")
    rate, low, high = map(int, re.search(
        r"won (\d+).% \((\d+).% to (\d+).%\)", passport.inner_text()).groups())  # fmt: skip
    ties = verdicts.count("0")
    assert low < rate <= high and rate == round(100 * (8 - ties / 2) / 8), "it never lost"

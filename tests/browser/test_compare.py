"""Compare in a real browser: three lanes answer, a slider acts, a blind vote is ranked, a reload
finds everything."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.served import Served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SLOW = 240_000  # a busy machine with two cores


@pytest.fixture(scope="module")
def lanes(studio: Served) -> str:
    """The address of three lanes: the base, a LoRA, the LoRA with a bottleneck."""
    import torch
    from transformers import AutoModelForCausalLM

    from studio import starter
    from studio.methods import named
    from studio.methods.layer import Backbone

    backbone = Backbone(AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR))
    for name, method in (("loud", "lora"), ("warm", "bottleneck")):
        adapter = backbone.attach(name, named(method)())
        generator = torch.Generator().manual_seed(1)
        for parameter in adapter.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.08
        folder = Path(studio.home) / "adapters" / name
        folder.mkdir(parents=True)
        backbone.save(name, folder, base=starter.MODEL)
    return "/compare?lane=starter&lane=starter~loud:1&lane=starter~loud:1+warm:1"


def answers(page: Page) -> list[str]:
    turn = page.locator(".s-turn").last
    return [turn.get_by_test_id(f"answer-{lane}").inner_text() for lane in range(3)]


def ask(page: Page, prompt: str) -> None:
    page.get_by_test_id("prompt").fill(prompt)
    page.keyboard.press("Enter")


def test_three_lanes_a_slider_a_blind_vote_and_a_reload(page: Page, studio: Served, lanes: str):
    page.goto(lanes)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("8")
    page.get_by_label("Longest answer").press("Tab")

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
    expect(page.get_by_test_id("answer-1")).to_have_text(base, timeout=SLOW)
    expect(page.get_by_test_id("vote")).to_be_visible(timeout=SLOW)
    assert answers(page)[2] == both

    # Each token tells how sure the model was, and what else it could have said.
    page.get_by_role("button", name="Confidence").click()
    token = page.get_by_test_id("answer-0").locator(".s-token").first
    expect(token).to_have_attribute("title", re.compile(r"% sure.*\n.*%", re.DOTALL))
    page.get_by_role("button", name="Confidence").click()

    # Differences, word by word.
    page.get_by_label("Differences").select_option("0")
    expect(page.get_by_test_id("answer-2").locator("ins, del").first).to_be_visible()
    page.get_by_label("Differences").select_option("")

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
    page.get_by_label("Search conversations").fill("story")
    expect(page.get_by_test_id("conversations").locator("li")).to_have_count(1)
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator(".s-turn")).to_have_count(2)
    expect(page.get_by_test_id("answer-2").first).to_have_text(both)
    assert studio.json("/api/chat/leaderboard")["votes"] == 1


def test_a_deleted_adapter_costs_its_lane_a_sentence(page: Page, studio: Served):
    page.goto("/compare?lane=starter&lane=starter~gone:1")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("4")
    page.get_by_label("Longest answer").press("Tab")
    ask(page, "<img src=x onerror=window.hit=1> **bold** `code`")
    expect(page.get_by_test_id("answer-1")).to_contain_text('no adapter "gone"', timeout=SLOW)
    expect(page.get_by_test_id("figures-0")).to_contain_text("base", timeout=SLOW)
    assert page.evaluate("window.hit") is None

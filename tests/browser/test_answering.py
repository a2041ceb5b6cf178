"""Compare while an answer is written: what would swap its lanes or turns waits, and nothing locks.

The answers are composed here, so that no test depends on how fast a model is.
"""

import json
import re

import pytest
from playwright.sync_api import Page, Route, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SHARED_STUDIO = True


class Host:
    """The chat host's place: each question is held until the test answers it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.held: list[Route] = []
        page.route("**/api/chat/warm", lambda route: route.fulfill(json={"warming": False}))
        page.route("**/api/chat/generate", lambda route: self.held.append(route))

    def asked(self, prompt: str) -> None:
        with self.page.expect_request("**/api/chat/generate"):
            self.page.get_by_test_id("prompt").fill(prompt)
            self.page.keyboard.press("Enter")
        expect(self.page.get_by_test_id("stop")).to_be_visible()

    def answer(self, *words: str) -> None:
        """Say one text a lane, in the lines that the studio sends."""
        events = [
            event
            for lane, text in enumerate(words)
            for event in (
                {"type": "delta", "lane": lane, "text": text, "tokens": []},
                {"type": "done", "lane": lane, "reason": "stop", "tokens": 1},
            )
        ]
        body = "".join(json.dumps(event) + "\n" for event in events)
        self.held.pop(0).fulfill(content_type="application/x-ndjson", body=body)
        expect(self.page.get_by_test_id("stop")).to_be_hidden()


@pytest.fixture
def host(page):
    """Two lanes of the base, and whoever answers them."""
    waiting = Host(page)
    page.goto("/compare?lane=starter&lane=starter")
    expect(page.get_by_test_id("lane-1")).to_be_visible()
    return waiting


def refused(page: Page) -> None:
    toast = page.locator(".s-toast", has_text="Stop the answer first.")
    expect(toast).to_be_visible()
    page.evaluate("document.querySelector('.s-toasts').replaceChildren()")  # before the next


def test_a_lane_that_answers_is_not_removed(page, host):
    host.asked("one?")
    remove = page.get_by_role("button", name="Remove this lane")
    remove.first.click()
    refused(page)
    host.answer("left", "right")
    expect(page.get_by_test_id("answer-0")).to_have_text("left")
    expect(page.get_by_test_id("answer-1")).to_have_text("right")

    remove.first.click()
    expect(page.get_by_test_id("lane-1")).to_have_count(0)
    expect(page.get_by_test_id("answer-0")).to_have_text("right")
    host.asked("two?")
    host.answer("alone")
    expect(page.get_by_test_id("answer-0").last).to_have_text("alone")


def test_turns_stay_while_one_is_answered(page, host):
    host.asked("one?")
    host.answer("a", "b")
    expect(page).to_have_url(re.compile("chat="))
    address = page.url
    host.asked("two?")
    for name in ("Branch", "Edit", "New chat", "Blind"):
        page.get_by_role("button", name=name).first.click()
        refused(page)
    expect(page.locator(".s-turn")).to_have_count(2)
    with page.expect_response(lambda got: "/api/chat/turns" in got.url):
        host.answer("c", "d")
    assert page.url == address
    for place, text in (("first", "b"), ("last", "d")):
        expect(getattr(page.get_by_test_id("answer-1"), place)).to_have_text(text)

    # It branches afterwards; the old conversation still has both.
    page.get_by_role("button", name="Branch").first.click()
    expect(page.locator(".s-turn")).to_have_count(1)
    page.goto(address)
    expect(page.get_by_test_id("answer-1").last).to_have_text("d")


def test_what_is_asked_while_a_copy_is_made_is_not_lost(page, host):
    host.asked("one?")
    host.answer("a", "b")
    copying: list[Route] = []
    page.route("**/api/chat/branch", lambda route: copying.append(route))
    with page.expect_request("**/api/chat/branch"):
        page.get_by_role("button", name="Branch").first.click()
    host.asked("two?")
    copying[0].continue_()
    expect(page.locator(".s-toast")).to_contain_text("before the copy was made")
    host.answer("c", "d")
    expect(page.locator(".s-turn")).to_have_count(2)
    expect(page.get_by_test_id("answer-1").last).to_have_text("d")


def test_an_answer_that_is_written_again_cannot_be_voted_on(page, host):
    host.asked("one?")
    host.answer("a", "b")
    expect(page.get_by_test_id("vote")).to_be_visible()
    with page.expect_request("**/api/chat/generate"):
        page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_test_id("vote")).to_be_hidden()
    host.answer("c", "d")
    expect(page.get_by_test_id("vote")).to_be_visible()


def test_a_broken_stream_is_a_sentence_and_the_page_goes_on(page, host):
    host.asked("one?")
    host.held.pop(0).fulfill(content_type="application/x-ndjson", body="no JSON\n")
    expect(page.get_by_test_id("stop")).to_be_hidden()
    expect(page.get_by_test_id("answer-0")).to_contain_text("JSON")
    host.asked("two?")
    host.answer("a", "b")
    expect(page.get_by_test_id("answer-1").last).to_have_text("b")


def test_thoughts_are_folded_and_calls_are_blocks_also_after_a_reload(page, host):
    host.asked("where?")
    call = '{"name": "look", "arguments": {"place": "chest"}}'
    parts = [("mark", "<think>"), ("thought", "Maybe here."), ("mark", "</think>"),
             ("text", "I **look**."), ("mark", "<tool_call>"), ("call", call),
             ("mark", "</tool_call>")]  # fmt: skip
    events = [
        {"type": "delta", "lane": lane, "text": text, "part": part}
        for lane in (0, 1)
        for part, text in parts
    ]
    events += [{"type": "done", "lane": lane, "reason": "stop", "tokens": 9} for lane in (0, 1)]
    body = "".join(json.dumps(event) + "\n" for event in events)
    host.held.pop(0).fulfill(content_type="application/x-ndjson", body=body)
    expect(page.get_by_test_id("stop")).to_be_hidden()

    for _ in range(2):
        answer = page.get_by_test_id("answer-0")
        thought = answer.locator("details.s-thought")
        expect(thought.locator("summary")).to_have_text("Thought")
        expect(thought.get_by_text("Maybe here.")).to_be_hidden()
        thought.locator("summary").click()
        expect(thought.get_by_text("Maybe here.")).to_be_visible()
        expect(answer.locator("strong")).to_have_text("look")
        expect(answer.locator(".s-code figcaption")).to_contain_text("Tool call")
        expect(answer.locator(".s-code pre")).to_contain_text('"place": "chest"')
        expect(answer).not_to_contain_text("<think>")
        page.reload()

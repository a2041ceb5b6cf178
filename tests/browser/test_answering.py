"""Compare while an answer is written: what would swap its lanes or turns waits, and nothing locks.

The answers are composed here, so that no test depends on how fast a model is.
"""

import json
import re

import pytest
from openpyxl import Workbook
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import surely

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

    # Its answers go with it, so it asks.
    page.once("dialog", lambda asked: asked.dismiss())
    remove.first.click()
    expect(page.get_by_test_id("answer-0")).to_have_text("left")
    page.once("dialog", lambda asked: asked.accept())
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


def saved(studio, page: Page) -> list[str]:
    """The prompts of the open conversation as they are stored."""
    number = re.search(r"chat=([^&]+)", page.url)
    assert number
    found = studio.json("/api/do/conversations", {"show": number[1]})
    return [turn["prompt"] for turn in found["turns"]]


def test_a_deleted_conversation_is_not_made_again(page, host, studio):
    host.asked("one?")
    host.answer("a", "b")
    before = page.url
    page.get_by_role("tab", name="Conversations").click()
    item = page.get_by_test_id("conversations").locator("li").first
    surely(item, "Delete", "Really delete?")
    expect(page).not_to_have_url(re.compile("chat="))
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator(".s-turn")).to_have_count(0)
    host.asked("two?")
    host.answer("c", "d")
    assert page.url != before and saved(studio, page) == ["two?"]


@pytest.mark.refused("/api/chat/conversations")
def test_a_conversation_deleted_elsewhere_stays_deleted(page, host, studio):
    host.asked("one?")
    host.answer("a", "b")
    number = re.search(r"chat=([^&]+)", page.url)
    studio.json("/api/do/conversations", {"delete": number[1]})
    host.asked("two?")
    host.answer("c", "d")
    expect(page.locator(".s-toast")).to_contain_text("was deleted: start a new one")
    assert number[1] not in [one["id"] for one in studio.json("/api/do/conversations", {})]
    page.get_by_role("button", name="New chat").click()
    host.asked("three?")
    host.answer("e", "f")
    assert saved(studio, page) == ["three?"]


@pytest.mark.refused("/api/do/conversations", "/api/chat/turns")
def test_what_could_not_be_read_or_saved_is_not_written_over(page, host, studio):
    host.asked("one?")
    host.answer("a", "b")
    address = page.url
    page.route("**/api/do/conversations", lambda route: route.fulfill(status=500), times=1)
    page.reload()
    expect(page.locator(".s-toast")).to_contain_text("500")
    host.asked("two?")
    host.answer("c", "d")
    assert saved(studio, page) == ["two?"]
    page.goto(address)
    expect(page.locator(".s-turn")).to_have_count(1)
    assert saved(studio, page) == ["one?"]

    # A turn that is not saved is saved with the next: numbers without one would move up.
    page.route("**/api/chat/turns", lambda route: route.fulfill(status=500), times=2)
    host.asked("three?")
    host.answer("e", "f")
    expect(page.locator(".s-toast")).to_contain_text("Not saved")
    assert saved(studio, page) == ["one?"]
    host.asked("four?")
    host.answer("g", "h")
    assert saved(studio, page) == ["one?", "three?", "four?"]


def test_an_answer_is_saved_before_a_new_chat_begins(page, host, studio):
    saving: list[Route] = []
    host.asked("one?")
    page.route("**/api/chat/turns", lambda route: saving.append(route), times=1)
    with page.expect_request("**/api/chat/turns"):
        events = [{"type": "done", "lane": lane, "reason": "stop", "tokens": 1} for lane in (0, 1)]
        host.held.pop(0).fulfill(
            content_type="application/x-ndjson", body="".join(f"{json.dumps(e)}\n" for e in events)
        )
    page.keyboard.press("Escape")
    page.locator(".s-prompt").click()
    page.keyboard.press("n")
    refused(page)
    saving[0].continue_()
    expect(page.get_by_test_id("stop")).to_be_hidden()
    number = re.search(r"chat=([^&]+)", page.url)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".s-turn")).to_have_count(0)
    [turn] = studio.json("/api/do/conversations", {"show": number[1]})["turns"]
    assert [answer["reason"] for answer in turn["answers"]] == ["stop", "stop"]


def test_a_prompt_that_is_being_typed_survives_an_edit(page, host):
    host.asked("one?")
    host.answer("a", "b")
    page.get_by_test_id("prompt").fill("half of")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_test_id("prompt")).to_have_value("one?\n\nhalf of")


def test_a_lane_without_answers_is_removed_at_once(page, host):
    page.get_by_role("button", name="Remove this lane").first.click()
    expect(page.get_by_test_id("lane-1")).to_have_count(0)


def test_a_prompt_may_begin_with_a_number_although_a_vote_is_open(page, host):
    host.asked("one?")
    host.answer("a", "b")
    expect(page.get_by_test_id("vote")).to_be_visible()
    page.get_by_test_id("prompt").focus()
    page.keyboard.type("2 pigs")
    expect(page.get_by_test_id("prompt")).to_have_value("2 pigs")
    expect(page.get_by_test_id("vote")).to_contain_text("Which is better?")


def test_stop_ends_an_answer_that_the_host_does_not_know_of_yet(page, host):
    host.asked("one?")
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("stop")).to_be_hidden()
    expect(page.get_by_test_id("answer-0")).to_have_text("(stopped before the first token)")
    host.held.clear()
    host.asked("two?")
    host.answer("a", "b")
    expect(page.get_by_test_id("answer-1").last).to_have_text("b")


def test_keys_vote_only_on_the_chat_that_is_seen(page, host):
    votes: list[str] = []
    page.on("request", lambda request: "/api/do/vote" in request.url and votes.append(request.url))
    host.asked("one?")
    host.answer("a", "b")
    expect(page.get_by_test_id("vote")).to_be_visible()
    page.get_by_role("tab", name="Leaderboard").click()
    expect(page.get_by_test_id("leaderboard")).to_be_visible()
    page.keyboard.press("1")
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("button", name="Use elsewhere").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("1")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.get_by_test_id("vote")).to_contain_text("Which is better?")
    assert votes == []


def test_a_lane_keeps_the_focus_while_it_is_changed_by_keys(page):
    def more(route: Route) -> None:
        answer = route.fetch()
        found = answer.json()
        found["models"].append({"path": "other", "label": "other"})
        found["adapters"] += [
            {"name": name, "label": name, "base": "starter"} for name in ("left", "right")
        ]
        route.fulfill(response=answer, json=found)

    page.route("**/api/chat/choices", more)
    page.goto("/compare?lane=starter~left:1&lane=starter~left:1")
    lane = page.get_by_test_id("lane-1")
    adapter = lane.get_by_label("Adapter", exact=True)
    adapter.focus()
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile("lane=starter~left:1&lane=starter~right:1"))
    expect(adapter).to_be_focused()
    lane.get_by_label("Remove right").focus()
    page.keyboard.press("Enter")
    expect(lane.get_by_label("Weight of right")).to_have_count(0)
    expect(lane.locator(":focus")).to_have_count(1)
    lane.get_by_label("Model").focus()
    page.keyboard.press("ArrowDown")
    expect(lane.get_by_label("Model")).to_have_value("other")
    expect(lane.get_by_label("Model")).to_be_focused()
    expect(page.get_by_test_id("lane-0").get_by_label("Model")).to_have_value("starter")


def test_a_late_search_does_not_replace_a_newer_one(page, host):
    page.get_by_role("tab", name="Conversations").click()
    found = page.get_by_test_id("conversations")
    search = page.get_by_label("Search prompts and answers …")
    expect(found.locator("li").first).to_be_visible()
    held: list[Route] = []
    page.route("**/api/do/conversations", lambda route: held.append(route), times=1)
    with page.expect_request("**/api/do/conversations"):
        search.fill("no such words")
    search.fill("nor these")
    expect(found).to_contain_text("nor these")
    with page.expect_response("**/api/do/conversations"):
        held[0].fulfill(json=[{"id": "x", "title": "late", "lanes": [], "turns": 1, "updated": 1}])
    expect(found).to_contain_text("nor these")
    expect(found).not_to_contain_text("late")


SUITE = {"id": 7, "name": "quiz", "created": 1, "error": None, "total_steps": 3,
         "lanes": ["starter", "starter~a:1"]}  # fmt: skip
SHOWN = {"rows": [{"case": 0, "prompt": "Hi.", "expected": None, "pattern": None,
                   "answers": [{"text": "x", "error": None}] * 2}],
         "means": [{"tokens": 1}, {"tokens": 1}], "cases": 1, "total": 3, "wins": [[0, 0], [0, 0]],
         "columns": [], "spec": {"cases": [{"prompt": "Hi."}]}}  # fmt: skip
SHARE = {"count": 1, "of": 2, "low": 0, "high": 1}
JUDGED = {"id": 8, "suite": 7, "name": "judged", "state": "running", "created": 1, "error": None,
          "total_steps": 9, "lanes": [], "wins": [], "agreement": SHARE, "self_agreement": SHARE,
          "evidence": False, "first": 0.5, "unreadable": SHARE, "why": "few votes", "pairs": 1,
          "ties": 0, "address": "", "judge": "starter", "figures": []}  # fmt: skip


def test_suites_keep_what_is_typed_focused_and_open(page, host):
    steps = iter(range(1, 1000))

    def suite(route: Route) -> None:
        now = SUITE | {"state": "running", "step": next(steps)}
        route.fulfill(json=now | SHOWN if "show" in route.request.post_data else [now])

    def judge(route: Route) -> None:
        open_ = "show" in route.request.post_data
        route.fulfill(json={"rows": []} if open_ else [JUDGED | {"step": next(steps)}])

    page.route("**/api/do/suite", suite)
    page.route("**/api/do/judge", judge)
    page.get_by_role("tab", name="Suites").click()
    page.get_by_test_id("suite-cases").fill("Typed => kept")
    reasons = page.get_by_test_id("judgement").locator("details")
    reasons.locator("summary").click()
    expect(reasons.locator("table")).to_be_visible()
    named = page.locator(".s-suites").get_by_role("button", name="quiz")
    named.focus()
    for _ in range(2):  # polls
        with page.expect_response("**/api/do/judge"):
            pass
    expect(named).to_be_focused()
    expect(reasons).to_have_attribute("open", "")
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("tab", name="Suites").click()
    expect(page.get_by_test_id("suite-cases")).to_have_value("Typed => kept")


@pytest.mark.refused("/api/do/suite")
def test_a_suite_takes_its_prompts_from_a_table_and_refuses_what_is_none(page, host, tmp_path):
    page.get_by_role("tab", name="Suites").click()
    cases, picked = page.get_by_test_id("suite-cases"), page.get_by_test_id("suite-file")
    book = Workbook()
    for row in (("question", "answer"), ("Do you sell seeds?", "Yes."), (None, "Lost"),
                ("Why?\nTell me.", None)):  # fmt: skip
        book.active.append(row)
    book.save(tmp_path / "shop.xlsx")
    picked.set_input_files(tmp_path / "shop.xlsx")
    expect(cases).to_have_value('Do you sell seeds? => Yes.\n{"prompt":"Why?\\nTell me."}')
    expect(page.get_by_label("Name of the suite")).to_have_value("shop")
    said = page.locator(".s-suite-form .s-quiet")
    expect(said).to_contain_text("2 prompts of shop.xlsx, 1 with an expected answer. 1 rows are")

    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    picked.set_input_files(tmp_path / "photo.png")
    expect(page.locator(".s-toast")).to_contain_text("photo.png is a PNG picture")
    expect(cases).to_have_value(re.compile("^Do you sell seeds"))
    expect(said).to_contain_text("One prompt per line")


def test_on_a_phone_the_prompt_stays_in_view_below_long_answers(page, host):
    page.set_viewport_size({"width": 390, "height": 844})
    send = page.get_by_test_id("send")
    expect(send).to_be_in_viewport(ratio=1)
    host.asked("long?")
    host.answer("word " * 900, "word " * 900)
    expect(page.get_by_test_id("answer-1")).to_contain_text("word")
    expect(send).to_be_in_viewport(ratio=1)
    assert page.evaluate("scrollY + innerHeight > document.documentElement.scrollHeight - 80")
    page.evaluate("scrollTo(0, 0)")
    expect(send).to_be_in_viewport(ratio=1)
    expect(page.get_by_test_id("prompt")).to_be_in_viewport(ratio=1)


def test_what_waits_what_is_tinted_and_which_key_votes_is_said(page, host):
    host.asked("why?")
    expect(page.get_by_test_id("answer-0")).to_contain_text("Waiting for the answer")
    host.answer("left", "right")
    assert page.get_by_test_id("vote").get_by_role("button").first.inner_text() == "1A"
    legend = page.get_by_text("the model was unsure of this token")
    expect(legend).to_be_hidden()
    page.get_by_role("button", name="Confidence").click()
    expect(legend).to_be_visible()
    page.get_by_role("tab", name="Suites").click()
    expect(legend).to_be_hidden()

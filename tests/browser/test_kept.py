"""Nothing is lost by going from page to page, and Back goes through what was opened."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import put_adapters
from ui.page_frame import PAGES

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SHARED_STUDIO = True


def go(page, name):
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True).click()


def test_train_and_compare_stand_as_they_were_left(page, studio):
    put_adapters(studio, {"one": ("lora", {"r": 2}), "two": ("lora", {"r": 2})}, noise=0.1)
    page.goto("/")
    page.get_by_label("Steps", exact=True).fill("7")
    expect(page.get_by_test_id("says")).to_contain_text("7 steps")
    expect(page.get_by_role("button", name="Steps: Back to auto")).to_be_visible()
    go(page, "Compare")
    expect(page.get_by_test_id("lane-1")).to_be_visible()
    page.get_by_test_id("add-lane").click()
    expect(page.get_by_test_id("lane-2")).to_be_visible()

    # A tab is a step that Back undoes; the lanes stay.
    page.get_by_role("tab", name="Leaderboard").click()
    expect(page.get_by_text("No votes yet")).to_be_visible()
    page.go_back()
    expect(page.get_by_test_id("lane-2")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/compare\?(?!.*view=)"))

    go(page, "Train")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("7")
    go(page, "Compare")
    expect(page.get_by_test_id("lane-2")).to_be_visible()
    go(page, "Train")
    page.get_by_role("button", name="Steps: Back to auto").click()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("")
    expect(page).not_to_have_url(re.compile("max_steps"))


def test_a_model_or_dataset_chosen_elsewhere_joins_the_form_as_it_was_left(page, studio):
    job = studio.json("/api/do/data.import", {"source": "starter:terse", "name": "joined"})
    page.goto("/?set=method.r=5")
    page.get_by_label("Steps", exact=True).fill("7")
    expect(page).to_have_url(re.compile("max_steps=7"))
    go(page, "Data")
    page.get_by_test_id("dataset-joined").click()
    page.get_by_test_id("train-on-this").click()
    expect(page).to_have_url(re.compile("data.path=joined"))
    expect(page.get_by_label("Steps", exact=True)).to_have_value("7")
    go(page, "Models")
    page.get_by_test_id("model-starter").get_by_role("link", name="Train").click()
    expect(page.locator("#data-note")).to_contain_text("hash")
    form = parse_qs(urlsplit(page.url).query)["set"]
    assert sorted(form) == ["data.path=joined", "method.r=5", "train.max_steps=7"]
    page.goto("about:blank")
    studio.json("/api/do/data.delete", {"name": "joined"})
    studio.json("/api/do/delete", {"job": job["id"]})


def test_the_form_shows_what_is_cut_and_only_what_applies(page):
    page.goto("/?set=data.max_length=20")
    cut = page.get_by_test_id("cut")
    expect(cut).to_contain_text("are cut at 20 tokens")
    expect(
        page.get_by_test_id("first-rows").locator("[data-state=truncated]").first
    ).to_be_visible()
    cut.get_by_role("button").click()
    expect(cut).to_be_empty()
    page.get_by_text("Advanced").click()
    search = page.get_by_label("Search settings")
    search.fill("label smoothing")
    expect(page.locator("#advanced .s-setting:visible")).to_have_count(1)
    search.fill("")
    expect(page.get_by_label("LoRA+ ratio", exact=True)).to_be_visible()
    page.get_by_role("button", name=re.compile("All .* methods")).click()
    page.locator(".s-method", has_text="Prefix tuning").click()
    expect(page.get_by_label("LoRA+ ratio", exact=True)).to_be_hidden()
    expect(page.get_by_label("Virtual tokens", exact=True)).to_be_visible()
    expect(page.get_by_role("radio", name=re.compile("BitFit"))).to_be_disabled()
    page.get_by_label("Only changed").check()
    expect(page.locator("#advanced .s-setting:visible")).to_have_count(1)


def test_every_page_has_one_main_part_one_title_and_can_be_installed(page, studio):
    for one in PAGES:
        page.goto(one.address)
        expect(page.locator("h1:visible")).to_have_count(1)
        expect(page.locator("main")).to_have_count(1)
        page.locator(".s-skip").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.localName") == "main", one.title
    manifest = studio.json("/studio/manifest.json")
    assert manifest["display"] == "standalone" and manifest["icons"]


def hold(page, path: str) -> list[Route]:
    """Hold the next request for a path until the test answers it."""
    held: list[Route] = []
    page.route(f"**{path}", lambda route: route.fallback() if held else held.append(route))
    return held


def arrived(page, held: list[Route]) -> Route:
    for _ in range(200):
        if held:
            return held[0]
        page.wait_for_timeout(50)
    pytest.fail("it was never asked")


def test_a_field_keeps_the_focus_while_the_form_is_still_opening(page):
    held = hold(page, "/api/train/judge")
    page.goto("/")
    rank = page.get_by_label("Rank (r)", exact=True)
    rank.focus()
    rank.press("ControlOrMeta+a")
    arrived(page, held).continue_()
    expect(page.locator("#data-note")).not_to_be_empty()
    page.keyboard.type("7")
    expect(rank).to_have_value("7")
    page.keyboard.press("Tab")
    expect(page).to_have_url(re.compile(r"method\.r=7"))


@pytest.mark.refused("/api/do/train", "/api/do/sweep")
def test_train_and_sweep_take_the_form_as_it_stands_once(page):
    asked: list[list[str]] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.post_data_json["set"])
        route.fulfill(status=400, json={"error": {"kind": "input", "text": "Not here."}})

    page.route("**/api/do/train", refuse)
    page.route("**/api/do/sweep", refuse)

    # While the form opens, a press waits for it.
    held = hold(page, "/api/train/judge")
    page.goto("/?set=method.r=3")
    first = arrived(page, held)
    page.locator("#train").click()
    first.continue_()
    expect(page.get_by_test_id("form-error")).to_have_text("Not here.")
    assert len(asked) == 1 and "method.r=3" in asked[0]
    held = hold(page, "/api/train/judge")
    page.get_by_role("button", name="quick look").click()
    second = arrived(page, held)
    page.locator("#train").click()
    second.continue_()
    expect(page.locator("#train")).not_to_have_attribute("aria-busy", "true")
    assert len(asked) == 2 and {"method.r=3", "train.max_steps=60"} <= set(asked[1])

    # Pressed twice, or held: one run.
    held = hold(page, "/api/train/judge")
    page.keyboard.press("ControlOrMeta+Enter")
    page.keyboard.down("ControlOrMeta")
    for _ in range(3):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    page.keyboard.up("ControlOrMeta")
    arrived(page, held).continue_()
    expect(page.locator("#train")).not_to_have_attribute("aria-busy", "true")
    assert len(asked) == 3

    # A sweep is of what is typed, not of what was judged last.
    page.get_by_label("Rank (r)", exact=True).fill("9")
    page.get_by_role("button", name="Sweep: several values").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name=name]").fill("seeds")
    dialog.locator("[name=over]").fill("Seed = 0, 1")
    dialog.get_by_role("button", name="Queue").click()
    expect(dialog.get_by_role("alert")).to_have_text("Not here.")
    assert "method.r=9" in asked[3]


@pytest.mark.refused("/api/do/presets.save")
def test_an_error_after_its_dialog_is_closed_is_still_shown(page):
    page.goto("/")
    page.get_by_role("button", name="Save as …").click()
    page.get_by_role("dialog").get_by_label("Name").fill("mine")
    held = hold(page, "/api/do/presets.save")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    answer = {"error": {"kind": "input", "text": "The disk is full."}}
    arrived(page, held).fulfill(status=400, json=answer)
    expect(page.locator(".s-toast")).to_contain_text("The disk is full.")


def test_without_an_estimate_nothing_is_said_of_the_form_before(page):
    page.goto("/")
    expect(page.get_by_test_id("says")).to_contain_text("Trains LoRA of rank")
    failed = {"error": {"text": "No.", "field": ""}}
    page.route("**/api/train/estimate", lambda route: route.fulfill(json=failed), times=1)
    page.get_by_label("Rank (r)", exact=True).fill("5")
    expect(page.get_by_test_id("says")).to_be_empty()
    expect(page.get_by_test_id("preflight")).to_be_hidden()


def test_what_was_pressed_keeps_the_focus_when_its_answer_is_drawn(page):
    page.goto("/")
    panel = page.get_by_test_id("preflight")
    expect(page.get_by_test_id("says")).to_contain_text("rank 16")
    with page.expect_response("**/api/train/estimate") as estimate:
        page.get_by_label("Rank (r)", exact=True).fill("5")
    expect(page.get_by_test_id("says")).to_contain_text("rank 5")
    measured = estimate.value.json() | {"measured": True}
    page.route("**/api/do/preflight", lambda route: route.fulfill(json={"id": 5}))
    page.route("**/api/outcome/5", lambda route: route.fulfill(json={"outcome": measured}))
    for name, scope in (("Measure", panel), ("Start over", page)):
        pressed = scope.get_by_role("button", name=name, exact=True)
        pressed.focus()
        page.keyboard.press("Enter")
        if scope is panel:
            expect(panel).to_contain_text("measured, base in")
        else:
            expect(page.get_by_label("Rank (r)", exact=True)).to_have_value("16")
            expect(panel).to_contain_text("estimated, base in")
        expect(pressed).to_be_focused()


@pytest.mark.refused("/api/outcome/9")
def test_an_upload_ends_when_its_import_is_deleted(page):
    asked: list[str] = []
    gone = {"error": {"kind": "job", "text": "There is no job 9."}}

    def outcome(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=404, json=gone)

    page.route("**/api/do/data.import", lambda route: route.fulfill(json={"id": 9, "state": ""}))
    page.route("**/api/outcome/9", outcome)
    page.goto("/")
    rows = b'{"prompt": "a", "completion": "b"}\n' * 3
    page.get_by_test_id("train-file").set_input_files(
        {"name": "few.jsonl", "mimeType": "application/json", "buffer": rows}
    )
    expect(page.get_by_test_id("train-upload")).to_contain_text("There is no job 9.")
    page.wait_for_timeout(700)
    assert len(asked) == 1


@pytest.mark.refused("/api/data/upload")
def test_an_upload_ends_when_a_proxy_answers_with_a_page(page):
    too_large = {"status": 413, "content_type": "text/html", "body": "<h1>413 Too Large</h1>"}
    page.route("**/api/data/upload?*", lambda route: route.fulfill(**too_large))
    page.goto("/")
    file = {"name": "few.jsonl", "mimeType": "application/json", "buffer": b"{}"}
    page.get_by_test_id("train-file").set_input_files(file)
    expect(page.get_by_test_id("train-upload")).to_contain_text("The server answered 413.")


def test_the_guide_keeps_the_newest_goal_and_fills_the_form_with_it(page):
    page.goto("/")
    expect(page.locator("#data-note")).not_to_be_empty()
    page.get_by_role("button", name="Guided start …").click()
    dialog = page.get_by_role("dialog", name="Guided start")
    expect(dialog.get_by_role("radio").first).to_be_focused()
    late = hold(page, "/api/do/guide")
    dialog.get_by_role("radio").nth(1).check()
    goal = dialog.get_by_role("radio").nth(1).get_attribute("value")
    stale = arrived(page, late)
    last = hold(page, "/api/do/guide")
    dialog.get_by_test_id("guide-data").select_option("starter:pirate")
    newest = arrived(page, last)
    assert newest.request.post_data_json["goal"] == goal
    dialog.get_by_role("button", name="Fill the form").click()
    newest.continue_()
    expect(dialog).to_be_hidden()
    stale.continue_()
    guided = newest.request.response().json()
    assert guided["goal"]["name"] == goal
    expect(page).to_have_url(re.compile(r"\?set="))
    filled = parse_qs(urlsplit(page.url).query)["set"]
    assert filled and {one.removesuffix(".0") for one in filled} <= set(guided["set"])


def test_the_form_of_train_survives_a_closed_tab_unless_the_address_says_otherwise(page, studio):
    page.goto("/")
    page.get_by_label("Steps", exact=True).fill("7")
    expect(page).to_have_url(re.compile("max_steps=7"))
    later = page.context.new_page()  # with a session of its own
    later.goto(studio.address)
    expect(later.get_by_label("Steps", exact=True)).to_have_value("7")
    later.close()
    other = page.context.new_page()
    other.goto(f"{studio.address}/?set=method.r=5")
    expect(other.locator("#field-method-r-input")).to_have_value("5")
    expect(other.get_by_label("Steps", exact=True)).to_have_value("")

"""Nothing is lost by going from page to page, and Back goes through what was opened."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import put_adapters
from ui.pages import PAGES

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


def test_a_field_keeps_the_focus_while_the_form_is_still_opening(page):
    held = []
    page.route("**/api/train/judge", lambda route: held.append(route), times=1)
    page.goto("/")
    rank = page.get_by_label("Rank (r)", exact=True)
    rank.focus()
    rank.press("ControlOrMeta+a")
    for _ in range(100):
        page.wait_for_timeout(50)
        if held:
            break
    held[0].continue_()
    expect(page.locator("#data-note")).not_to_be_empty()
    page.keyboard.type("7")
    expect(rank).to_have_value("7")
    page.keyboard.press("Tab")
    expect(page).to_have_url(re.compile(r"method\.r=7"))

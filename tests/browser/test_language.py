"""The pages in Chinese: no English sentence is left, and the switch loses nothing."""

import re

import pytest
from playwright.sync_api import expect

from ui.page_frame import PAGES

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
VISIBLE = """() => {
  const found = [], skipped = 'script, style, code, pre, kbd, textarea, .s-tokens';
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (parent && !parent.closest(skipped)) found.push(walk.currentNode.textContent);
  }
  for (const name of ['title', 'placeholder', 'aria-label'])
    for (const node of document.querySelectorAll(`[${name}]`)) found.push(node.getAttribute(name));
  return found;
}"""
# English that stays: sample prompts of the English starter, and names made of several words.
KEPT = re.compile(
    r"(What|Who|Is) [a-z ]+\\?|quick look|low memory|Adapter Studio|\w+ (alpha|gamma)|Top [kp]|"
    r"JSON schema|.*(bfloat16|=> Paris)|data\.\w+ .*|train\.\w+ .*"
)


def english(texts: list[str]) -> list[str]:
    """Return the texts with two English words in a row and no Chinese."""
    return [
        text
        for one in texts
        for text in [one.strip().splitlines()[0] if one.strip() else ""]
        if re.search(r"[a-z]{3,} [a-z]{2,}", text)
        and not re.search(r"[\u4e00-\u9fff]", text)
        and not re.match(KEPT, text)
    ]


def test_a_page_in_chinese_shows_no_english_sentence(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/")
    page.context.add_cookies(
        [{"name": "studio-language", "value": "zh_CN", "url": page.url.rstrip("/")}]
    )
    found = {}
    for one in PAGES:
        page.goto(one.address)
        expect(page.locator(f"studio-{one.name}")).to_contain_text(re.compile("[\u4e00-\u9fff]"))
        page.wait_for_timeout(500)  # what is fetched after the first paint
        expect(page.locator("body")).to_have_attribute("lang", "zh-CN")
        found[one.name] = english(page.evaluate(VISIBLE))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, one.name
    assert found == {one.name: [] for one in PAGES}


def test_the_switch_keeps_what_the_form_holds(page):
    page.goto("/")
    page.get_by_label("Rank (r)", exact=True).fill("7")
    page.get_by_label("Rank (r)", exact=True).press("Tab")
    expect(page).to_have_url(re.compile(r"method\.r=7"))
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_label("秩（r）", exact=True)).to_have_value("7")
    page.get_by_role("button", name="EN", exact=True).click()
    expect(page.get_by_label("Rank (r)", exact=True)).to_have_value("7")

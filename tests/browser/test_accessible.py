"""Every page and dialog at three widths, light and dark: no finding of axe, nothing too wide.

The pages in Chinese too, at the narrowest.

axe-core comes from npm: `STUDIO_AXE` names its axe.min.js (`.ci/run` sets it).
"""

import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import expect

from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.data.import_dataset import import_dataset
from studio.home import open_home
from studio.spec import DataSource, RunSpec
from tests.browser.conftest import put_adapters
from tests.jobs.conftest import begin
from tests.served import served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
AXE = Path(os.environ.get("STUDIO_AXE", "axe.min.js"))
WIDTHS = (360, 768, 1440)
ZOOMED = (320, 640, 2560)  # 640 and 1280 pixels at 200 %
PAGES = (
    "/", "/models", "/data", "/data?name=terse", "/data?name=terse&tab=xray",
    "/data?name=terse&tab=rows", "/data?name=terse&tab=mapping", "/data?name=terse&tab=change",
    "/runs", "/runs?run=1", "/adapters", "/adapters?adapter=sea", "/results", "/system",
    "/compare?lane=starter&lane=starter~sea:1",
)  # fmt: skip
WITH_DIALOGS = (
    "/",
    "/models",
    "/data",
    "/runs?run=1",
    "/adapters?adapter=sea",
    "/system",
    PAGES[-1],
)


@pytest.fixture(scope="module")
def studio(chromium, nursery, tmp_path_factory):
    """A running studio with a dataset, adapters and a run that has ended."""
    home = open_home(tmp_path_factory.mktemp("accessible") / "home")
    import_dataset(home, DataSource(path="starter:terse"))
    methods = {"sea": ("lora", {"r": 4}), "salt": ("ia3", {})}
    put_adapters(SimpleNamespace(home=home.path), methods, 0.02)
    with closing(JobStore(home)) as store:
        job = store.submit(RunSpec.parse({"name": "kept", "train": {"device": "cuda:7"}}))
        claim = begin(store, "cuda:7", wanted=["cuda:7"])
        rows = [("loss", step, 5 / step, 0.0) for step in range(1, 9)]
        rows += [("eval_loss", step, 5 / step, 0.0) for step in range(2, 9, 2)]
        told = Progress(metrics=rows, samples=[(8, "Who?", "Me.")], step=8, total_steps=8)
        store.claims.report(claim, told)
        store.claims.finish(claim, "succeeded", result={"tokens_shared": 0.3, "sources": [
            {"name": "starter:terse", "rows": 9, "held_out": 1, "eval_loss": 2.5}]})  # fmt: skip
        assert job.id == 1
    with served(home.path, nursery=nursery) as running:
        yield running


@pytest.fixture
def axe(page):
    """Return the findings on the page as it stands, in each width and theme."""
    if not AXE.is_file():
        pytest.skip("STUDIO_AXE names no axe.min.js: `npm install axe-core` brings it")
    source = AXE.read_text(encoding="utf-8")
    page.emulate_media(reduced_motion="reduce")  # no colour is looked at while it changes

    def findings(where: str, widths: tuple[int, ...] = WIDTHS) -> list[str]:
        page.evaluate(source)
        found = []
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            for dark in (False, True):
                page.evaluate(_THEME, dark)
                assert page.evaluate(_IS_DARK) is dark
                at = f"{where} {width} {'dark' if dark else 'light'}"
                found += [f"{at}: {one}" for one in page.evaluate(_FINDINGS)]
        for width in ZOOMED:
            page.set_viewport_size({"width": width, "height": 450})
            if page.evaluate(_WIDE) > 0:
                found.append(f"{where} {width}: too wide")
        return found

    return findings


def settle(page) -> None:
    """Wait until the page shows what it loads."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_finding_and_nothing_too_wide(page, studio, axe, path):
    page.goto(path)
    expect(page.locator("h1").first).to_be_attached()
    settle(page)
    assert "\n".join(axe(path)) == ""


@pytest.mark.parametrize("path", PAGES)
def test_a_page_in_chinese_has_no_finding_and_nothing_too_wide(page, studio, axe, path):
    page.context.add_cookies(
        [{"name": "studio-language", "value": "zh_CN", "url": studio.address.rstrip("/")}]
    )
    page.goto(path)
    expect(page.locator("html[lang=zh-CN], body[lang=zh-CN]").first).to_be_attached()
    settle(page)
    assert "\n".join(axe(path, WIDTHS[:1])) == ""


@pytest.mark.long
@pytest.mark.parametrize("path", WITH_DIALOGS)
def test_a_dialog_has_no_finding_and_nothing_too_wide(page, studio, axe, path):
    """A button that ends with … asks for more; those that need the hub have a test of their own."""
    page.goto(path)
    settle(page)
    found, labels = [], page.evaluate(_LABELS)
    for label in labels:
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(path)
        settle(page)
        page.evaluate(_LABELS)  # opens the menus
        page.get_by_role("button", name=label, exact=True).first.click()
        settle(page)
        if page.locator("dialog[open]").count():
            found += axe(f"{path} {label}")
    assert labels and "\n".join(found) == ""


@pytest.mark.long
def test_the_keyboard_alone_trains_watches_compares_and_votes(page, studio):
    page.emulate_media(reduced_motion="reduce")
    page.goto("/?set=train.max_steps=2&set=name=by+hand")
    expect(page.locator("#data-note")).to_contain_text("rows")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main").first).to_be_focused()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_test_id("launched")).to_contain_text("succeeded", timeout=240_000)
    moving = "node => getComputedStyle(node).animationName"
    assert page.locator(".s-pulse i").evaluate(moving) == "none"
    reach(page, page.get_by_role("link", name="Open in Runs"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="by hand")).to_be_visible()
    compare = page.get_by_role("link", name="Compare", exact=True).last
    reach(page, compare)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("lane-1")).to_contain_text("by hand")
    reach(page, page.get_by_test_id("prompt"))
    page.keyboard.type("Say ahoy.")
    page.keyboard.press("Enter")
    expect(page.locator(".s-cell-foot").nth(1)).to_contain_text("by hand", timeout=240_000)
    vote = page.get_by_test_id("vote")
    reach(page, vote.get_by_role("button").nth(1))
    page.keyboard.press("Enter")
    expect(vote).to_contain_text("You chose B")


def reach(page, node) -> None:
    """Press Tab until an element has the focus."""
    expect(node).to_be_visible()
    for _ in range(120):
        if node.evaluate("node => node === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{node} cannot be reached with Tab")


_THEME = "dark => window.studioTheme(dark ? 'dark' : 'light')"
_IS_DARK = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128"
_WIDE = "document.documentElement.scrollWidth - innerWidth"
_FINDINGS = """async () => {
  const found = (await axe.run(document, { resultTypes: ['violations'] })).violations.map(
    one => `${one.impact} ${one.id}: ` + one.nodes.slice(0, 3).map(
      node => node.html.slice(0, 160)).join(' | '));
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) found.push(`${wide} pixels too wide`);
  const dialog = document.querySelector('dialog[open]');
  if (dialog && dialog.scrollWidth > dialog.clientWidth) found.push('the dialog scrolls sideways');
  return found;
}"""
_LABELS = """() => {
  for (const one of document.querySelectorAll('details.s-menu')) one.open = true;
  const adapter = document.querySelector('studio-adapters li input[type=checkbox]');
  if (adapter && !adapter.checked) adapter.click();
  const seen = [...document.querySelectorAll('main button')].filter(
    one => one.checkVisibility() && !one.disabled);
  return [...new Set(seen.map(one => one.textContent))].filter(
    one => one.endsWith('…') && !/Download|Delete|upload/i.test(one));
}"""

"""The queue in a real browser: reorder, pause, kill the server, start it again: all as it was."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs import settings
from jobs.processes import me
from jobs.store import JobStore
from studio.home import open_home
from studio.spec import RunSpec
from tests.browser.conftest import QUIET
from tests.served import served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SLOW = 120_000


@pytest.fixture
def held(tmp_path: Path) -> Iterator[JobStore]:
    """Four waiting runs of a queue that a person holds: nothing trains during this story."""
    store = JobStore(open_home(tmp_path / "home"))
    settings.hold_queue(store)
    for name in ("alpha", "beta", "gamma", "delta"):
        store.submit(RunSpec(name=name))
    yield store
    store.close()


def names(page: Page) -> list[str]:
    return page.locator("[data-testid=runs] .s-row-name").all_inner_texts()


def wait_for_order(page: Page, wanted: list[str]) -> None:
    page.wait_for_function(
        "wanted => [...document.querySelectorAll('[data-testid=runs] .s-row-name')]"
        ".map((n) => n.textContent).join() === wanted",
        arg=",".join(wanted), timeout=SLOW,
    )  # fmt: skip


SHOWN = """() => {
  window.shown = [];
  window.Notification = class {
    static permission = 'granted';
    static requestPermission = async () => 'granted';
    constructor(title, { body, tag }) { window.shown.push([title, body, tag]); }
  };
}"""


def one_notification(page: Page, store: JobStore) -> None:
    """A run that ends is told on the desktop, once, when the person wants it; its name is text."""
    page.evaluate(SHOWN)
    page.get_by_role("button", name="Notify: off").click()
    expect(page.get_by_role("button", name="Notify: on")).to_be_visible()
    claim = store.claims.claim("cpu", owner=me())
    assert claim is not None
    store.claims.register(claim, me())
    expect(page.get_by_test_id(f"run-{claim.job}")).to_contain_text("running")
    store.claims.finish(claim, "succeeded", result={"last_loss": 0.5})
    page.wait_for_function("window.shown.length > 0", timeout=SLOW)
    page.wait_for_timeout(1500)
    assert page.evaluate("window.shown") == [
        ["delta is trained", "loss 0.5000", f"studio-{claim.job}-1-succeeded"]
    ]


def test_a_queue_survives_its_server(chromium: str, held: JobStore) -> None:
    from playwright.sync_api import sync_playwright

    home = held.home.path
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(SLOW)
        with served(home) as studio:
            page.goto(f"{studio.address}/runs?run=1")
            page.locator("[data-filter=live]").click()
            wait_for_order(page, ["alpha", "beta", "gamma", "delta"])
            expect(page.get_by_test_id("queue-notice")).to_contain_text("holds the queue")

            # By keys: Alt and an arrow moves, Alt+Home runs next.
            page.get_by_test_id("run-1").focus()
            page.keyboard.press("Alt+ArrowDown")
            wait_for_order(page, ["beta", "alpha", "gamma", "delta"])
            page.get_by_test_id("run-4").focus()
            page.keyboard.press("Alt+Home")
            wait_for_order(page, ["delta", "beta", "alpha", "gamma"])

            # By drag: gamma before beta.
            page.get_by_test_id("run-3").drag_to(
                page.get_by_test_id("run-2"), target_position={"x": 40, "y": 4}
            )
            wait_for_order(page, ["delta", "gamma", "beta", "alpha"])

            # Hold one, note it, plan it; duplicate opens Train prefilled.
            page.get_by_test_id("run-2").click()
            page.get_by_role("button", name="Hold", exact=True).click()
            expect(page.get_by_test_id("detail")).to_contain_text("paused")
            page.get_by_text("More", exact=True).click()
            page.get_by_role("button", name="Note and tags …").click()
            dialog = page.get_by_role("dialog")
            dialog.locator("input").fill("keep, <b>bold</b>")
            dialog.locator("textarea").fill("<img src=x onerror=window.hit=1>")
            dialog.get_by_role("button", name="Keep").click()
            expect(page.get_by_test_id("detail")).to_contain_text("#keep")
            page.get_by_text("More", exact=True).click()
            page.get_by_role("button", name="When it starts …").click()
            dialog.locator("input").fill("2001-01-01 00:00")
            dialog.get_by_role("button", name="Plan").click()
            expect(dialog.get_by_role("alert")).to_contain_text("That moment is over")
            dialog.locator("input").fill("+3h")
            dialog.get_by_role("button", name="Plan").click()
            expect(page.get_by_test_id("detail")).to_contain_text("starts after")

            # The server dies without a word.
            os.kill(studio.pid, signal.SIGKILL)
            time.sleep(0.5)

        with served(home) as again:  # another port: a reload of the address, not of the page
            page.goto(f"{again.address}/runs?run=2")
            page.locator("[data-filter=live]").click()
            wait_for_order(page, ["delta", "gamma", "beta", "alpha"])
            detail = page.get_by_test_id("detail")
            for words in ("paused", "#keep", "<b>bold</b>", "<img src=x", "starts after"):
                expect(detail).to_contain_text(words)
            assert page.evaluate("window.hit") is None
            one_notification(page, held)
            expect(page.get_by_test_id("queue-notice")).to_contain_text("holds the queue")
        browser.close()
    assert [job.name for job in held.queue()] == ["gamma", "alpha"]
    assert held.get("beta").state == "paused"

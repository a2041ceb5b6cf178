"""The queue in a real browser: train, pause, reorder, resume, kill the server, start it again: all
as it was, and the training goes on."""

import os
import re
import signal
import time
from contextlib import closing

import pytest
from playwright.sync_api import Page, expect

from jobs import queue_settings
from jobs.job_queue import JobStore
from studio.home import open_home
from studio.spec import RunSpec
from tests.browser.conftest import surely
from tests.jobs.conftest import begin
from tests.served import served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SLOW = 240_000


@pytest.fixture
def held(tmp_path):
    """Five waiting runs of a queue that a person holds; the last one would train for very long."""
    store = JobStore(open_home(tmp_path / "home"))
    queue_settings.hold_queue(store)
    for name in ("alpha", "beta", "gamma", "delta"):
        store.submit(RunSpec(name=name))
    long = {"max_steps": 100_000, "eval_steps": -1, "save_steps": -1, "num_samples": 0}
    data = {"max_length": 32, "validation_fraction": 0}
    store.submit(
        RunSpec.parse({"name": "long", "method": {"name": "lora", "r": 2}, "data": data}
                      | {"train": {**long, "per_device_train_batch_size": 1}})
    )  # fmt: skip
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


def act(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def wait_for_steps(page: Page, store: JobStore, more_than: int) -> None:
    """The training is past a step."""
    deadline = time.monotonic() + SLOW / 1000
    while (job := store.get("long")).step <= more_than or job.state != "running":
        assert time.monotonic() < deadline, f"{job.state} at step {job.step}"
        page.wait_for_timeout(100)


def train_a_little(page: Page, store: JobStore, more_than: int) -> None:
    """Let the run start, next and alone: the queue is held again as soon as it is under way."""
    page.get_by_test_id("run-5").click()
    act(page, "Run next")
    first = page.locator("[data-testid=runs] .s-row-open").first
    expect(first).to_have_attribute("data-testid", "run-5", timeout=SLOW)
    act(page, "Release all")
    expect(page.get_by_test_id("run-5")).to_contain_text(
        re.compile("starting|running"), timeout=SLOW
    )
    act(page, "Hold all")
    wait_for_steps(page, store, more_than)
    expect(page.get_by_test_id("progress")).to_contain_text("steps")


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
    claim = begin(store)
    expect(page.get_by_test_id(f"run-{claim.job}")).to_contain_text("running")
    store.claims.finish(claim, "succeeded", result={"last_loss": 0.5})
    page.wait_for_function("window.shown.length > 0", timeout=SLOW)
    page.wait_for_timeout(1500)
    assert page.evaluate("window.shown") == [
        ["delta is trained", "loss 0.5000", f"studio-{claim.job}-1-succeeded"]
    ]


def test_a_queue_survives_its_server(browser, held, nursery):
    home = held.home.path
    with closing(browser.new_page(viewport={"width": 1280, "height": 800})) as page:
        page.set_default_timeout(SLOW)
        with served(home, nursery=nursery) as studio:
            page.goto(f"{studio.address}/runs?run=1")
            page.locator("[data-filter=live]").click()
            wait_for_order(page, ["alpha", "beta", "gamma", "delta", "long"])
            expect(page.get_by_test_id("queue-notice")).to_contain_text("The queue is held")

            # A training is paused: it saves and frees its device.
            train_a_little(page, held, more_than=1)
            act(page, "Pause")
            expect(page.get_by_test_id("detail")).to_contain_text("paused", timeout=SLOW)
            paused = held.get("long").step
            assert held.checkpoints(5)[-1]["step"] == paused

            # By keys: Alt and an arrow moves, Alt+Home runs next.
            page.get_by_test_id("run-1").focus()
            page.keyboard.press("Alt+ArrowDown")
            wait_for_order(page, ["long", "beta", "alpha", "gamma", "delta"])
            page.get_by_test_id("run-4").focus()
            page.keyboard.press("Alt+Home")
            wait_for_order(page, ["long", "delta", "beta", "alpha", "gamma"])

            # By drag: gamma before beta.
            page.get_by_test_id("run-3").drag_to(
                page.get_by_test_id("run-2"), target_position={"x": 40, "y": 4}
            )
            wait_for_order(page, ["long", "delta", "gamma", "beta", "alpha"])

            # Hold one, note it, plan it; duplicate opens Train prefilled.
            page.get_by_test_id("run-2").click()
            page.get_by_role("button", name="Hold", exact=True).click()
            expect(page.get_by_test_id("detail")).to_contain_text("paused")
            page.get_by_text("More", exact=True).click()
            page.get_by_role("button", name="Note and tags …").click()
            dialog = page.get_by_role("dialog")
            dialog.locator("input").fill("keep, <b>bold</b>")
            dialog.locator("textarea").fill("<img src=x onerror=window.hit=1>")
            dialog.get_by_role("button", name="Write a note", exact=True).click()
            expect(page.get_by_test_id("detail")).to_contain_text("#keep")
            page.get_by_text("More", exact=True).click()
            page.get_by_role("button", name="When it starts …").click()
            dialog.get_by_label("Not before").fill("2001-01-01 00:00")
            dialog.get_by_role("button", name="Schedule", exact=True).click()
            expect(dialog.get_by_role("alert")).to_contain_text("That time is in the past")
            dialog.get_by_label("Not before").fill("+3h")
            dialog.get_by_label("Retries").fill("2")
            dialog.get_by_role("button", name="Schedule", exact=True).click()
            expect(page.get_by_test_id("detail")).to_contain_text("starts after")
            expect(page.get_by_test_id("detail")).to_contain_text("up to 2 retries")

            # The training is resumed where it was. The server dies without a word: it goes on.
            page.get_by_test_id("run-5").click()
            act(page, "Resume")
            train_a_little(page, held, more_than=paused)
            assert held.get("long").attempt == 2
            os.kill(studio.pid, signal.SIGKILL)
            wait_for_steps(page, held, more_than=held.get("long").step)
            assert held.get("long").attempt == 2

        with served(
            home, nursery=nursery
        ) as again:  # another port: a reload of the address, not of the page
            page.goto(f"{again.address}/runs?run=2")
            page.locator("[data-filter=live]").click()
            wait_for_order(page, ["long", "delta", "gamma", "beta", "alpha"])
            detail = page.get_by_test_id("detail")
            for words in ("paused", "#keep", "<b>bold</b>", "<img src=x", "starts after"):
                expect(detail).to_contain_text(words)
            assert page.evaluate("window.hit") is None
            # What trained was saved as the studio ended, and waits, for the queue is still held.
            assert held.get("long").state == "queued"
            page.get_by_test_id("run-5").click()
            expect(page.get_by_test_id("progress")).to_contain_text("steps")
            assert held.checkpoints(5)[-1]["step"] == held.get("long").step > paused
            surely(page, "Cancel", "Really cancel?")
            expect(detail).to_contain_text("cancelled", timeout=SLOW)
            one_notification(page, held)
            expect(page.get_by_test_id("queue-notice")).to_contain_text("The queue is held")
    assert [job.name for job in held.queue()] == ["gamma", "alpha"]
    assert held.get("beta").state == "paused"

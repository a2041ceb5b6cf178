"""The list of the Runs page: keys move a waiting run, and the address keeps what is shown."""

import re

import pytest
from playwright.sync_api import Page, expect

from jobs import settings
from jobs.store import JobStore
from studio.home import open_home
from studio.spec import RunSpec

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
FOCUS = "document.activeElement.dataset.testid"


@pytest.fixture
def held(studio):
    """Three waiting runs of a queue that a person holds."""
    store = JobStore(open_home(studio.home))
    settings.hold_queue(store)
    jobs = [store.submit(RunSpec(name=name)).id for name in ("alpha", "beta", "gamma")]
    yield store
    for job in jobs:
        store.cancel(job)
        store.delete(job)
    settings.release_queue(store)
    store.close()


def wait_for_order(page: Page, wanted: list[str]) -> None:
    expect(page.locator("[data-testid=runs] .s-row-name")).to_have_text(wanted)


def test_keys_move_a_waiting_run_again_and_again(page, held):
    last = max(job.id for job in held.queue())
    page.goto("/runs?show=live")
    wait_for_order(page, ["alpha", "beta", "gamma"])
    expect(page.get_by_test_id("queue-keys")).to_contain_text("move a run")
    row = page.get_by_test_id(f"run-{last}")
    expect(row).to_have_attribute("aria-keyshortcuts", "Alt+ArrowUp Alt+ArrowDown Alt+Home")
    row.focus()

    page.keyboard.press("Alt+ArrowUp")
    wait_for_order(page, ["alpha", "gamma", "beta"])
    assert page.evaluate(FOCUS) == f"run-{last}"
    page.keyboard.press("Alt+ArrowUp")
    wait_for_order(page, ["gamma", "alpha", "beta"])
    assert page.evaluate(FOCUS) == f"run-{last}"

    # Another process changes the order: the next poll draws it, and the focus stays.
    held.move(last)
    wait_for_order(page, ["alpha", "beta", "gamma"])
    assert page.evaluate(FOCUS) == f"run-{last}"


def test_a_reload_shows_the_same_list(page, held):
    page.goto("/runs")
    queue = page.get_by_role("button", name=re.compile("^Queue"))
    queue.click()
    expect(page).to_have_url(re.compile(r"[?&]show=live\b"))
    page.reload()
    expect(queue).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("hold-queue")).to_be_visible()
    page.get_by_role("button", name=re.compile("^All")).click()
    expect(page).not_to_have_url(re.compile("show="))


def test_only_what_draws_is_overlaid(page, held):
    first, second, *_ = sorted(job.id for job in held.queue())
    request = {"data": {"path": "starter:terse"}}
    errand = held.submit(request, kind="import").id
    page.goto(f"/runs?run={first},{second},{errand}")
    expect(page.get_by_test_id(f"overlay-{second}")).to_be_checked()
    expect(page.get_by_test_id(f"overlay-{errand}")).to_be_hidden()
    expect(page.get_by_text("with 1 other run overlaid")).to_be_visible()
    page.get_by_test_id(f"run-{errand}").click()
    expect(page.get_by_test_id("detail")).to_contain_text("The import of a dataset")
    expect(page).to_have_url(re.compile(rf"run={errand}$"))
    held.cancel(errand)
    held.delete(errand)

"""The list of the Runs page: keys move a waiting run, and the address keeps what is shown."""

import re

import pytest
from playwright.sync_api import Page, expect

from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.home import open_home
from studio.spec import RunSpec
from tests.jobs.conftest import begin, held_queue
from ui.page_frame import PAGES

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SHARED_STUDIO = True
FOCUS = "document.activeElement.dataset.testid"


@pytest.fixture
def held(studio):
    """Three waiting runs of a queue that a person holds."""
    store = JobStore(open_home(studio.home))
    with held_queue(store):
        jobs = [store.submit(RunSpec(name=name)).id for name in ("alpha", "beta", "gamma")]
        yield store
        for job in reversed(jobs):  # a later one may wait for an earlier one
            if store.get(job).state != "cancelled":
                store.cancel(job)
            store.delete(job)
    store.close()


def wait_for_order(page: Page, wanted: list[str]) -> None:
    expect(page.locator("[data-testid=runs] .s-row-name")).to_have_text(wanted)


def test_keys_move_a_waiting_run_again_and_again(held, page):
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


def test_a_reload_shows_the_same_list(held, page):
    page.goto("/runs")
    queue = page.get_by_role("button", name=re.compile("^Queue"))
    queue.click()
    expect(page).to_have_url(re.compile(r"[?&]show=live\b"))
    page.reload()
    expect(queue).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("hold-queue")).to_be_visible()
    page.get_by_role("button", name=re.compile("^Runs")).click()
    expect(page).not_to_have_url(re.compile("show="))


def test_only_what_draws_is_overlaid(held, page):
    first, second, *_ = sorted(job.id for job in held.queue())
    request = {"data": {"path": "starter:terse"}}
    errand = held.submit(request, kind="import").id
    page.goto(f"/runs?run={first},{second},{errand}")
    expect(page.get_by_test_id(f"overlay-{second}")).to_be_checked()
    expect(page.get_by_text("with 1 other run overlaid")).to_be_visible()
    expect(page.get_by_test_id(f"run-{errand}")).to_have_count(0)  # it stands among the others
    page.get_by_role("button", name=re.compile("^Other jobs 1")).click()
    expect(page.get_by_test_id(f"overlay-{errand}")).to_be_hidden()
    page.get_by_test_id(f"run-{errand}").click()
    expect(page.get_by_test_id("detail")).to_contain_text("The import of a dataset")
    expect(page).to_have_url(re.compile(rf"run={errand}\b"))
    held.cancel(errand)
    held.delete(errand)


def test_a_run_that_is_gone_is_said_and_another_is_selected(held, page):
    newest = max(job.id for job in held.queue())
    page.goto(f"/runs?run={newest + 50},{newest - 1}")
    said = page.locator(".s-toast", has_text=f"Run {newest + 50} is not in the list.")
    expect(said).to_be_visible()
    expect(page).to_have_url(re.compile(rf"run={newest - 1}$"))
    expect(page.get_by_test_id("detail")).to_contain_text(f"Run {newest - 1}")


def test_more_runs_than_are_overlaid_are_said(held, page):
    more = [held.submit(RunSpec(name=f"more {n}")).id for n in range(8)]
    ids = sorted(job.id for job in held.queue())
    page.goto(f"/runs?run={','.join(map(str, ids))}")
    said = page.locator(".s-toast", has_text="At most 10 runs are overlaid.")
    expect(said).to_be_visible()
    expect(page.get_by_text("with 9 other runs overlaid")).to_be_visible()
    said.get_by_role("button").click()
    page.get_by_test_id(f"overlay-{ids[-1]}").click()
    expect(said).to_be_visible()
    expect(page.get_by_test_id(f"overlay-{ids[-1]}")).not_to_be_checked()
    page.goto("about:blank")
    for job in reversed(more):
        held.cancel(job)
        held.delete(job)


def drop(held, sweep: str) -> list[RunSpec]:
    """Delete the jobs of a sweep and return the specs of its runs, oldest first."""
    jobs = sorted((job for job in held.list() if job.sweep == sweep), key=lambda job: job.id)
    for job in reversed(jobs):
        held.cancel(job.id)
        held.delete(job.id)
    return [RunSpec.parse(job.spec) for job in jobs if job.kind == "train"]


def test_a_sweep_is_asked_in_a_dialog(held, page):
    page.goto(f"/runs?run={held.queue()[0].id}")
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Sweep …").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name=name]").fill("ranks")
    dialog.locator("[name=over]").fill("Rank = 4, 8\nseed = 0, 1")
    expect(dialog).to_contain_text("4 runs")
    dialog.locator("[name=on_error]").select_option(label="Hold the rest")
    dialog.get_by_role("button", name="Queue a sweep", exact=True).click()
    expect(page).to_have_url(re.compile(r"run=\d+,\d+,\d+,\d+"))
    expect(page.get_by_test_id("group")).to_contain_text("4 runs of “ranks”")
    made = drop(held, "ranks")
    assert [(run.method.r, run.seed) for run in made] == [(4, 0), (4, 1), (8, 0), (8, 1)]


def test_a_bake_off_of_the_form_keeps_its_settings(held, page):
    page.goto("/?set=train.max_steps=3&set=method.r=4")
    page.get_by_role("button", name=re.compile("^Bake-off")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("checkbox").first).to_be_visible()
    for box in dialog.get_by_role("checkbox").all():
        box.set_checked(box.get_attribute("value") in ("lora", "ia3"))
    dialog.locator("[name=name]").fill("duel")
    dialog.get_by_role("button", name="Bake-off", exact=True).click()
    expect(page.get_by_test_id("bakeoff").locator("tbody tr")).to_have_count(2)
    page.goto("about:blank")  # it asks for the bake-off that is deleted now
    made = drop(held, "duel")
    assert [(run.method.name, run.train.max_steps) for run in made] == [("lora", 3), ("ia3", 3)]
    assert made[0].method.r == 4


@pytest.mark.refused("/api/do/schedule")
def test_a_plan_is_refused_in_its_dialog_and_then_taken(held, page):
    first, second = held.get("alpha"), held.get("beta")
    page.goto(f"/runs?run={second.id}")
    expect(page.get_by_test_id("detail")).to_contain_text(f"Run {second.id}")
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="When it starts …").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name=at]").fill("2001-01-01 00:00")
    dialog.get_by_role("button", name="Schedule").click()
    expect(dialog.get_by_role("alert")).to_contain_text("That time is in the past")
    dialog.locator("[name=at]").fill("")
    dialog.locator("[name=when]").select_option("night")
    dialog.locator("[name=needs]").select_option(str(first.id))
    dialog.get_by_role("button", name="Schedule").click()
    expect(page.get_by_test_id("detail")).to_contain_text(f"waits for {first.name}")
    planned = held.get(second.id)
    assert (planned.start_when, list(planned.needs)) == ("night", [first.id])

    # What it waits for stays, also where it was cancelled meanwhile.
    held.cancel(first.id)
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="When it starts …").click()
    dialog.locator("[name=retries]").fill("2")
    dialog.get_by_role("button", name="Schedule").click()
    expect(page.get_by_test_id("detail")).to_contain_text("up to 2 retries")
    assert held.get(second.id).needs == [first.id]


def test_no_page_scrolls_sideways(held, page):
    for path in (one.address for one in PAGES):
        page.goto(path)
        expect(page.locator("[data-testid], #train").first).to_be_attached()
        for width in (360, 768):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(200)
            wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide at {width}"


def ended(store, name: str, state: str = "succeeded", steps: int = -1, **result) -> int:
    """Return a run of 8 steps that is over."""
    given = {"name": name, "train.device": "cuda:7", "train.max_steps": steps}
    store.submit(RunSpec().with_values(given))
    claim = begin(store, "cuda:7", wanted=["cuda:7"])
    if state == "succeeded":
        store.claims.report(claim, Progress(
            metrics=[("loss", step, 4 / step, 0.0) for step in range(1, 9)], step=8, total_steps=8,
            samples=[(step, "Who?", f"At step {step}") for step in range(9)],
        ))  # fmt: skip
    error = None if state == "succeeded" else ("run", "It did not begin.")
    store.claims.finish(claim, state, result=result, error=error)
    return claim.job


def test_a_question_waits_for_its_answer_and_deleting_says_what_goes(held, page):
    run = ended(
        held, "with-an-adapter-and-a-name-that-is-far-too-long", adapter="/nowhere", last_loss=0.5
    )
    page.goto(f"/runs?run={run}")
    name = page.get_by_test_id(f"run-{run}").locator(".s-row-name")
    assert name.evaluate("node => node.scrollWidth <= node.clientWidth"), "the whole name is shown"
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_text("More", exact=True).click()
    expect(page.locator("[open] > .s-menu-items")).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Delete", exact=True).click()
    question = page.get_by_role("button", name="Delete with its adapter?")
    page.wait_for_timeout(3500)
    expect(question).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    page.get_by_role("button", name="Delete", exact=True).click()
    question.click()
    expect(page.locator(".s-toast")).to_have_text(
        re.compile(f"Run {run} and its adapter were deleted")
    )
    expect(page.get_by_text("not in the list")).to_have_count(0)


def test_training_longer_is_beside_compare_and_opens_the_new_run(held, page):
    run, longer = ended(held, "short", adapter="/nowhere", last_loss=0.5), ended(held, "long")
    page.route("**/api/do/extend", lambda route: route.fulfill(json={"id": longer, "name": "long"}))
    page.goto(f"/runs?run={run}")
    page.get_by_role("button", name="Train longer …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Epochs count while Steps is 0; else the steps do.")
    dialog.get_by_role("button", name="Train longer").click()
    expect(page.get_by_test_id("detail").get_by_role("heading", name="long")).to_be_visible()
    steps = ended(held, "steps", steps=8, adapter="/nowhere", last_loss=0.5)
    page.goto(f"/runs?run={steps}")
    page.get_by_role("button", name="Train longer …").click()
    expect(dialog.get_by_label("Steps")).to_have_value("8")
    expect(dialog.get_by_label("Epochs")).to_have_count(0)
    for one in (steps, longer, run):
        held.delete(one)


def test_a_run_that_never_began_is_restarted(held, page):
    run = ended(held, "broken", "failed")
    page.goto(f"/runs?run={run}")
    expect(page.get_by_role("button", name="Restart", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    held.delete(run)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sample_is_cut_beside_the_first(held, page, width):
    run = ended(held, "samples")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"/runs?run={run}")
    page.get_by_role("tab", name="Samples").click()
    expect(page.locator(".s-film li")).to_have_count(9)
    page.wait_for_timeout(300)
    cut = page.evaluate("""() => {
      const box = (node) => node.getBoundingClientRect();
      const [first, ...rest] = [...document.querySelectorAll('.s-film li')].map(box);
      const list = box(document.querySelector('.s-film ol'));
      return rest.filter(({ left, right }) => (left < first.right - 1 && right > first.right + 1)
        || (left < list.right - 1 && right > list.right + 1)).length;
    }""")
    assert cut == 0
    held.delete(run)


def test_what_can_be_done_with_a_launched_run_is_in_sight_and_its_bar_begins_at_its_share(
    held, page
):
    held.submit(RunSpec().with_values({"name": "launched", "train.device": "cuda:7"}))
    claim = begin(held, "cuda:7", wanted=["cuda:7"])
    page.goto(f"/?run={claim.job}")
    track = page.locator("#launch .s-bar-track")
    expect(track).to_have_attribute("data-waiting", "")
    page.get_by_test_id("launched").scroll_into_view_if_needed()
    # The width at once, without waiting for a transition to end.
    page.evaluate("""() => {
      const track = document.querySelector('#launch .s-bar-track');
      const width = (node) => node.getBoundingClientRect().width;
      new MutationObserver(() => { window.share = width(track.firstChild) / width(track); })
        .observe(track, { attributeFilter: ['data-waiting'] });
    }""")
    held.claims.report(claim, Progress(step=3, total_steps=40))
    expect(track).not_to_have_attribute("data-waiting", "")
    assert page.evaluate("window.share") < 0.08
    for name in ("Pause", "Cancel", "Open in Runs"):
        expect(page.locator("#launch").get_by_text(name, exact=True)).to_be_in_viewport(ratio=1)
    held.claims.finish(claim, "failed", error=("run", "It is over."))
    held.delete(claim.job)


def test_answers_stand_beside_the_wanted_ones_and_compare_suggests_their_questions(held, page):
    asked = [("Who?", "It is I", False), ("Why?", "Because", True)]
    questions = [{"prompt": p, "wanted": w, "trained": t} for p, w, t in asked]
    run = ended(held, "asked", questions=questions, last_loss=0.5)
    page.goto(f"/runs?run={run}")
    row = page.get_by_test_id("answers").locator("tbody tr")
    expect(row.locator("td")).to_have_text(["Who?held out", "It is I", "At step 8"])
    page.goto(f"/compare?lane=starter&lane=starter~{run}%408:1")
    chips = page.locator(".s-welcome .s-chip")
    expect(chips).to_have_text(["Who?", "Why?"])
    expect(chips.first).to_have_attribute("title", "Wanted: It is I")
    expect(page.locator(".s-welcome")).to_contain_text("Held-out questions of its dataset")
    page.goto("about:blank")
    held.delete(run)

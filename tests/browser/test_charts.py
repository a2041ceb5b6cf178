"""The charts on a run that grows while one looks: zoom and hover stay, the table tells the same."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.run_curves import Progress
from studio.home import open_home
from studio.spec import RunSpec
from tests.jobs.conftest import held_queue, take

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SHARED_STUDIO = True


class Growing:
    """A run that this test writes by hand."""

    def __init__(self, store: JobStore, name: str, device: str, asked: str = "") -> None:
        self.store, self.device, self.asked = store, device, asked or device
        with held_queue(store):
            self.job = store.submit(RunSpec.parse({"name": name, "train": {"device": self.asked}}))
            self._claim()

    def _claim(self) -> None:
        claim = take(self.store, self.device, wanted=[self.asked])
        assert claim is not None and claim.job == self.job.id
        self.claim = claim
        self.store.claims.register(claim, me())

    def again(self) -> None:
        """End it, and begin it anew from step 0."""
        with held_queue(self.store):
            self.store.claims.finish(self.claim, "failed", error=("run", "by hand"))
            self.store.resume(self.job.id, restart=True)
            self._claim()

    def grow(self, first: int, last: int) -> None:
        metrics = [("loss", step, 100.0 / step, 0.0) for step in range(first, last + 1)]
        self.store.claims.report(self.claim, Progress(metrics=metrics, step=last, total_steps=9999))


@pytest.fixture
def run(studio):
    # A device of its own keeps the supervisor away from it.
    store = JobStore(open_home(studio.home))
    growing = Growing(store, "by hand", "cuda:7")
    try:
        yield growing
    finally:
        store.claims.finish(growing.claim, "succeeded")
        store.delete(growing.job.id)
        store.close()


def loss(page: Page):
    return page.locator("[data-metric=loss]")


def test_a_point_is_on_screen_within_a_second_and_zoom_stays(run, page):
    run.grow(1, 400)
    page.goto(f"/runs?run={run.job.id}")
    expect(loss(page)).to_have_attribute("data-points", "400")
    box = loss(page).locator("canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + 200, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 60, steps=4)
    page.mouse.up()
    reset = loss(page).get_by_role("button", name="reset zoom")
    expect(reset).to_be_visible()
    page.mouse.move(box["x"] + 300, box["y"] + 60)
    hovered = loss(page).locator(".s-legend b").inner_text()
    same_canvas = loss(page).locator("canvas").element_handle()
    run.grow(401, 450)
    page.wait_for_function(
        "document.querySelector('[data-metric=loss]').dataset.points === '450'", timeout=30_000
    )
    expect(reset).to_be_visible()
    assert loss(page).locator(".s-legend b").inner_text() == hovered
    assert page.evaluate("c => c.isConnected", same_canvas)
    reset.click()
    expect(reset).to_be_hidden()


def test_the_table_and_the_keys_tell_what_the_curve_shows(run, page):
    run.grow(1, 50)
    page.goto(f"/runs?run={run.job.id}")
    expect(loss(page)).to_have_attribute("data-points", "50")
    page.get_by_label("Smoothing").fill("0")
    # An axis has two marks at least, and 100 % to two digits is 100.
    marks = "import('/studio/core/chart_canvas.js').then(({ ticks }) => ticks(0.66, 9.8, 3).length)"
    assert page.evaluate(marks) >= 2
    hundred = "import('/studio/core/dom.js').then(({ number }) => number(100, 2))"
    assert page.evaluate(hundred) == "100"
    loss(page).get_by_role("button", name="table").click()
    first = loss(page).locator("tbody tr").first
    expect(first).to_have_text("502.000")  # step 50, 100 / 50
    loss(page).get_by_role("button", name="table").click()
    loss(page).locator("canvas").focus()
    page.keyboard.press("Home")
    expect(loss(page).locator(".s-legend b")).to_have_text("100.0")  # step 1
    page.keyboard.press("End")
    expect(loss(page).locator(".s-legend b")).to_have_text("2.000")
    expect(loss(page).locator("canvas")).to_have_attribute("aria-label", "Training loss. by hand: "
                                                           "2.000 at step 50")  # fmt: skip


def test_the_dot_at_the_left_end_is_whole(run, page):
    rows = [("eval_loss", step, 9.0 - step / 20, 0.0) for step in range(0, 101, 20)]
    run.store.claims.report(run.claim, Progress(metrics=rows, step=100, total_steps=100))
    page.goto(f"/runs?run={run.job.id}")
    chart = page.locator("[data-metric=eval_loss]")
    expect(chart).to_have_attribute("data-points", "6")
    # Between the axis' labels, that end at 40, and the plot, that begins at 46, is only the dot.
    ink = """canvas => canvas.getContext('2d').getImageData(44, 0, 1, canvas.height).data
      .filter((value, i) => i % 4 === 3 && value > 0).length"""
    assert chart.locator("canvas").evaluate(ink) >= 2


def test_a_restarted_run_loses_its_old_curve_and_quiet_polls_keep_it(run, page):
    other = Growing(run.store, "beside", "cuda:6")
    run.grow(1, 30)
    page.goto(f"/runs?run={run.job.id},{other.job.id}")
    expect(loss(page)).to_have_attribute("data-points", "30")

    # Nothing new is 204. The curve stays, and who comes late is told it.
    page.wait_for_event("response", lambda got: "/api/live" in got.url and got.status == 204)
    expect(loss(page)).to_have_attribute("data-points", "30")
    late = """import('/studio/core/live.js').then(({ subscribe }) => {
      let told = 0;
      subscribe({ onMetrics: (series) => { told = series.get('loss').size; } })();
      return told;
    })"""
    assert page.evaluate(late) == 1

    # What the other one measures at the same time does not hide that this one begins anew.
    def meanwhile(route: Route) -> None:
        run.again()
        other.grow(1, 2)
        route.continue_()

    page.route("**/api/live?*", meanwhile, times=1)
    expect(loss(page)).to_have_attribute("data-points", "2")
    run.store.claims.finish(other.claim, "succeeded")
    run.store.delete(other.job.id)


def test_a_tab_that_is_open_stays_filled(run, page):
    ended = [Growing(run.store, name, f"cuda:{n}") for n, name in ((5, "one"), (6, "two"))]
    for other in ended:  # of an ended run there is no news that would fill it again
        run.store.claims.finish(other.claim, "failed", error=("run", "by hand"))
    one, two = (other.job.id for other in ended)
    page.goto(f"/runs?run={one}")
    panel, tab = page.locator("#s-panel"), page.get_by_role("tab", name="History")
    tab.click()
    expect(panel).to_contain_text("failed")
    tab.click()
    expect(panel).to_contain_text("failed")

    # To another run or tab and back, before the studio was asked.
    press = "both => both.forEach((one) => document.querySelector(one).click())"
    for there, back in (
        (f"[data-testid=run-{two}]", f"[data-testid=run-{one}]"),
        ("[data-view=log]", "[data-view=history]"),
    ):
        page.evaluate(press, [there, back])
        expect(panel).to_contain_text("failed")
    for number in (one, two):
        run.store.delete(number)


def test_many_runs_and_many_tabs(run, page, studio):
    run.grow(1, 20)
    address = f"/runs?run={run.job.id}"
    tabs = [page.context.new_page() for _ in range(7)]
    for tab in [page, *tabs]:
        tab.goto(address)
        expect(loss(tab)).to_have_attribute("data-points", "20")
    run.grow(21, 25)
    for tab in [page, *tabs]:
        tab.bring_to_front()
        expect(loss(tab)).to_have_attribute("data-points", "25")


def test_a_search_keeps_the_choice_and_a_full_memory_offers_its_ways_out(run, page):
    run.grow(1, 3)
    page.goto(f"/runs?run={run.job.id}")
    page.get_by_label("Search runs").fill("no such words")
    expect(page.get_by_text("No run matches.")).to_be_visible()
    page.get_by_label("Search runs").fill("by hand")
    expect(page.get_by_test_id(f"run-{run.job.id}")).to_be_visible()
    expect(page.get_by_role("heading", name="by hand")).to_be_visible()

    # A run that ran out of memory offers its ways out, by keyboard too.
    # A copy is refused where its device is missing, so the run asked for none.
    large = Growing(run.store, "too large", "cuda:6", asked="auto")
    run.store.claims.finish(large.claim, "failed", error=("out_of_memory", "Memory ran out."))
    page.goto(f"/runs?run={large.job.id}")
    offered = page.get_by_role("list", name="Ways to make it fit")
    expect(offered.get_by_role("button").nth(3)).to_be_visible()  # a fifth: half precision
    expect(offered).to_contain_text("Batch size 4 instead of 8")
    page.get_by_role("button", name="Smaller batches").focus()
    page.keyboard.press("Tab")
    with held_queue(run.store):
        page.keyboard.press("Enter")
        expect(offered).to_contain_text("Queued as run")
        again = max(run.store.list(), key=lambda job: job.id)
        assert RunSpec.parse(again.spec).train.gradient_checkpointing
        for job in (again, large.job):
            run.store.delete(job.id)


def test_an_empty_studio_tells_the_next_step(page):
    page.goto("/runs")
    expect(page.get_by_role("link", name="Train the first adapter")).to_be_visible()


def test_a_chart_is_saved_as_picture_drawing_and_table(run, page):
    run.grow(1, 40)
    page.goto(f"/runs?run={run.job.id}")
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(loss(page)).to_have_attribute("data-points", "40")

    def saved(kind: str) -> bytes:
        loss(page).locator(".s-take summary").click()
        with page.expect_download() as found:
            loss(page).get_by_role("button", name=kind).click()
        assert found.value.suggested_filename == f"training-loss.{kind.lower()}"
        return Path(found.value.path()).read_bytes()

    assert saved("PNG").startswith(b"\x89PNG")
    drawing = saved("SVG").decode()
    light = page.evaluate("document.documentElement.classList.contains('dark')")
    assert "var(" not in drawing and "class=" not in drawing
    assert 'fill="#ffffff"' in drawing and "by hand" in drawing, light
    lines = saved("CSV").decode().split("\r\n")
    assert lines[:2] == ["Step,by hand", "1,100"] and lines[40] == "40,2.5"
    loss(page).locator(".s-take summary").click()
    loss(page).get_by_role("button", name="Copy as Markdown").click()
    expect(loss(page).get_by_role("button", name="Copied")).to_be_visible()
    table = page.evaluate("navigator.clipboard.readText()")
    assert table.startswith("| Step | by hand |\n| ---: | ---: |\n| 1 | 100 |")

"""A report saved from the page opens from disk, without a server, and asks for nothing."""

import pytest
from playwright.sync_api import expect

from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.home import open_home
from studio.spec import RunSpec
from tests.jobs.conftest import begin, held_queue

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
SHARED_STUDIO = True


def test_a_report_opens_without_a_server(page, studio, tmp_path):
    store = JobStore(open_home(studio.home))
    spec = {"name": "to keep", "train": {"device": "cuda:7"}}
    with held_queue(store):
        job = store.submit(RunSpec.parse(spec))
        claim = begin(store, "cuda:7", wanted=["cuda:7"])
    rows = [("loss", step, 5 / step, 0.0) for step in range(1, 9)]
    samples = [(8, "Who?", "<img src=x onerror=alert(1)>")]
    store.claims.report(claim, Progress(metrics=rows, samples=samples, step=8, total_steps=8))
    store.claims.finish(claim, "succeeded")
    page.goto(f"/runs?run={job.id}")
    page.get_by_text("More", exact=True).click()
    with page.expect_download() as found:
        page.get_by_role("button", name="Save a report").first.click()
    assert found.value.suggested_filename == "to keep.html"
    file = tmp_path / "report.html"
    found.value.save_as(file)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.get_by_role("heading", name="to keep")).to_be_visible()
    expect(page.get_by_role("img", name="Training loss")).to_be_visible()
    expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
    expect(page.get_by_role("heading", name="Row 3")).to_be_visible()
    assert asked == [file.as_uri()]
    for width in (360, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    store.delete(job.id)
    store.close()

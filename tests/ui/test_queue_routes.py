"""The page's JSON routes, on a queue without any process behind it."""

from typing import Any

import pytest

from jobs.claims import Claim
from jobs.job_queue import JobStore
from jobs.run_curves import Progress
from studio.spec import RunSpec
from tests.jobs.conftest import begin
from tests.ui.conftest import client_of
from ui.queue_routes import job_row, queue_routes


@pytest.fixture
def page(home, store, monkeypatch):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)
    return client_of(queue_routes(home, store))


def running(store: JobStore, **values: Any) -> tuple[int, Claim]:
    job = store.submit(RunSpec.parse(values)).id
    return job, begin(store)


def points(first: int, last: int) -> Progress:
    return Progress(
        metrics=[("loss", step, 1 / step, 0.0) for step in range(first, last + 1)], step=last,
        total_steps=10,
    )  # fmt: skip


def test_only_changed_jobs_are_told(page, store):
    empty = page.get("/api/live").json()["jobs"]
    assert empty["items"] == []
    assert page.get("/api/live", params={"jobs": empty["digest"]}).status_code == 204
    one, two = (store.submit(RunSpec(name=name)).id for name in ("one", "two"))
    first = page.get("/api/live").json()["jobs"]
    assert first["whole"] and {job["id"] for job in first["items"]} == {one, two}
    store.cancel(one)
    second = page.get("/api/live", params={"jobs": first["digest"]}).json()["jobs"]
    assert [(job["id"], job["state"]) for job in second["items"]] == [(one, "cancelled")]
    assert not second["whole"] and second["removed"] == []
    store.delete(one)
    third = page.get("/api/live", params={"jobs": second["digest"]}).json()["jobs"]
    assert third["items"] == [] and third["removed"] == [one]
    foreign = page.get("/api/live", params={"jobs": "of-another-server"}).json()["jobs"]
    assert foreign["whole"] and len(foreign["items"]) == 1


def test_a_run_is_named_with_its_loss_where_that_is_not_the_usual_one(home, store):
    jobs = [store.submit(RunSpec.parse({"train": {"loss": loss}})) for loss in ("sft", "dpo")]
    assert [job_row(job, home)["method"] for job in jobs] == ["LoRA", "LoRA · DPO"]


def test_a_curve_comes_as_a_snapshot_and_then_only_what_is_new(page, store):
    job, claim = running(store)
    store.claims.report(claim, points(1, 3))
    asked = {"runs": str(job), "names": "loss"}
    first = page.get("/api/live", params=asked).json()["metrics"]
    assert first["snapshot"] and first["data"]["loss"][str(job)]["x"] == [1, 2, 3]
    store.claims.report(claim, points(4, 5))
    second = page.get("/api/live", params=asked | {"after": first["seq"]}).json()["metrics"]
    assert not second["snapshot"] and second["data"]["loss"][str(job)]["x"] == [4, 5]


def test_nothing_new_is_204_with_every_cursor(page, store):
    job, claim = running(store)
    asked = {"runs": str(job), "names": "loss", "detail": str(job), "view": "config"}
    # A queue that has never measured anything has no cursor yet.
    first = page.get("/api/live", params=asked).json()
    assert "metrics" not in first
    store.claims.report(claim, points(1, 3))
    store.claims.finish(claim, "succeeded")
    second = page.get("/api/live", params=asked).json()
    cursors = {"jobs": second["jobs"]["digest"], "after": second["metrics"]["seq"],
               "seen": second["detail"]["digest"]}  # fmt: skip
    assert page.get("/api/live", params=asked | cursors).status_code == 204


def test_the_cursor_follows_what_other_runs_measure(page, store):
    watched = store.submit(RunSpec()).id
    store.cancel(watched)
    _, claim = running(store)
    store.claims.report(claim, points(1, 3))
    asked = {"runs": str(watched), "names": "loss"}
    first = page.get("/api/live", params=asked).json()["metrics"]
    store.claims.report(claim, points(4, 6))
    # Else every poll would look through all that was measured since.
    second = page.get("/api/live", params=asked | {"after": first["seq"]}).json()["metrics"]
    assert second == {"seq": first["seq"] + 3, "snapshot": False, "data": {}}


@pytest.mark.parametrize("view", ["log", "samples", "checkpoints", "config", "history"])
def test_every_view_of_a_run_has_content(page, store, view):
    job, claim = running(store, name="seen", method={"name": "lora", "r": 3})
    store.claims.report(claim, Progress(samples=[(1, "<b>hi</b>", "<script>")], step=1))
    detail = page.get("/api/live", params={"detail": job, "view": view}).json()["detail"]
    assert detail["id"] == job and detail["view"] == view and "content" in detail
    if view == "config":  # in all its forms
        assert "--set method.r=3" in detail["content"]["command"]
        assert "r: 3" in detail["content"]["yaml"]
        assert "seen" not in detail["content"]["query"], "a duplicate needs a name of its own"
    gone = page.get("/api/live", params={"detail": 9, "view": view}).json()["detail"]
    assert "no job number 9" in gone["error"]["text"]


def test_a_run_that_was_trained_elsewhere_has_the_address_of_its_form(page, store):
    values = RunSpec(method={"name": "lora", "r": 3}).model_dump(mode="json")
    jobs = [
        store.submit(values | {"folder": "/far"}, kind="arrive").id,
        store.submit(values | {"method": {"name": "lora", "rank": 3}}).id,
    ]
    ask = [{"detail": job, "view": "config"} for job in jobs]
    found, old = [page.get("/api/live", params=one).json()["detail"]["content"] for one in ask]
    assert found["query"] == "set=method.r%3D3" and "folder" not in found["yaml"]
    assert "method.rank" in old["error"]


def test_a_zoomed_part_comes_at_full_detail(page, store):
    job, claim = running(store)
    store.claims.report(claim, points(1, 400))
    asked = {"runs": str(job), "names": "loss", "bins": 10}
    whole = page.get("/api/metrics", params=asked).json()["data"]["loss"][str(job)]
    part = page.get("/api/metrics", params=asked | {"low": 101, "high": 110}).json()
    assert len(whole["x"]) < 100
    assert part["data"]["loss"][str(job)]["x"] == list(range(101, 111))


def test_the_whole_queue_is_held_and_its_state_reaches_every_tab(page, store):
    store.submit(RunSpec())
    first = page.get("/api/live").json()["jobs"]
    calm = {"held": None, "on_error": "continue", "short": None, "unlisted": 0}
    assert first["queue"] == calm
    page.post("/api/do/queue", json={"hold": True, "on_error": "stop"})
    news = page.get("/api/live", params={"jobs": first["digest"]}).json()["jobs"]
    assert news["queue"]["held"] and news["items"] == []
    page.post("/api/do/webhook", json={"url": "https://example.org/x?key=s3cret"})
    shown = page.post("/api/do/webhook", json={}).text + page.get("/api/live").text
    assert "s3cret" not in shown


def test_the_front_of_a_long_queue_is_shown(page, store):
    first = store.submit(RunSpec(name="first")).id
    store.submit_many({"name": f"job {n}"} for n in range(600))
    ids = {row["id"] for row in page.get("/api/live").json()["jobs"]["items"]}
    assert first in ids and len(ids) >= 600


def test_a_job_that_is_asked_for_is_listed_however_old_it_is(page, store, monkeypatch):
    monkeypatch.setattr("ui.queue_routes.MOST_JOBS", 2)
    ids = [job.id for job in store.submit_many({"name": f"job {n}"} for n in range(6))]
    for job in ids[:4]:
        store.cancel(job)

    def asked(**values: Any) -> dict[str, Any]:
        return page.get("/api/live", params=values).json()["jobs"]

    newest = asked()
    assert {row["id"] for row in newest["items"]} == set(ids[4:])
    assert newest["queue"]["unlisted"] == 4
    named = asked(
        jobs=newest["digest"], runs=f"{ids[0]},{ids[5]},999,\u00b2,{10**30}", detail=ids[1]
    )
    assert {row["id"] for row in named["items"]} == set(ids[:2]) and not named["whole"]
    assert named["queue"]["unlisted"] == 2
    again = asked(jobs=named["digest"])
    assert set(again["removed"]) == set(ids[:2]) and again["items"] == []
    assert page.get("/api/live", params={"detail": 10**30}).status_code == 422

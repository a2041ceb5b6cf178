"""Sweeps, copies, schedules, dependencies, retries, notes, room on the disk."""

import json
import time

import pytest

from jobs import disk_usage, ended_jobs, queue_settings, sweeps
from jobs.processes import me
from jobs.run_curves import Progress
from studio.errors import QueueError, SpecError
from studio.home import publishing
from tests.jobs.conftest import a_spec, begin, run_one, supervising, take, until


def test_a_grid_is_every_combination_and_a_random_sweep_is_drawn_from_its_seed():
    found = sweeps.points({"method.r": [4, 8], "seed": [0, 1, 2]})
    assert len(found) == 6
    assert (found[0], found[-1]) == ({"method.r": 4, "seed": 0}, {"method.r": 8, "seed": 2})
    fields = {"method.r": list(range(1, 1001)), "seed": list(range(10_000))}
    found = sweeps.points(fields, count=50, seed=3)
    assert len({json.dumps(point) for point in found}) == 50
    assert found == sweeps.points(fields, count=50, seed=3)
    with pytest.raises(QueueError, match="needs values"):
        sweeps.points({})


def test_a_sweep_with_a_wrong_field_queues_nothing(store):
    with pytest.raises(SpecError):
        sweeps.submit_sweep(store, a_spec(), {"method.r": [4, -1]}, name="bad")
    sweeps.submit_sweep(store, a_spec(), {"method.r": [4]}, name="ranks")
    with pytest.raises(QueueError, match="Choose another name"):
        sweeps.submit_sweep(store, a_spec(), {"method.r": [4, 8]}, name="ranks")
    store.submit(a_spec(name="late r=8"))
    with pytest.raises(QueueError, match="already a job"):
        sweeps.submit_sweep(store, a_spec(), {"method.r": [4, 8]}, name="late")
    assert len(store.list()) == 2, "all of a sweep or nothing"


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_sweep_stops_at_an_error_only_if_asked(store, on_error):
    jobs = sweeps.submit_sweep(store, a_spec(), {"seed": [1, 2, 3]}, name="s", on_error=on_error)
    run_one(store, "failed")
    ended_jobs.follow_up(store)
    rest = "paused" if on_error == "stop" else "queued"
    assert [store.get(job.id).state for job in jobs] == ["failed", rest, rest]
    assert ("stops at an error" in store.get(jobs[1].id).why) is (on_error == "stop")
    if on_error == "stop":
        sweeps.for_sweep(store, "s", "release")
        ended_jobs.follow_up(store)
        assert [store.get(job.id).state for job in jobs] == ["failed", "queued", "queued"]


def test_a_job_waits_for_what_it_needs(store):
    with pytest.raises(QueueError, match="no job number 99"):
        store.submit(a_spec(), needs=[99])
    assert store.list() == [], "it was not queued"
    first = store.submit(a_spec()).id
    second = store.submit({"name": "evaluate first"}, kind="evaluate", needs=[first])
    third = store.submit(a_spec()).id
    assert run_one(store).job == first
    assert run_one(store).job == second.id
    assert run_one(store).job == third
    fourth = store.submit(a_spec()).id
    fifth = store.submit({"name": "x"}, kind="evaluate", needs=[fourth]).id
    with pytest.raises(QueueError, match='"x" waits for'):
        store.cancel(fourth)
        store.delete(fourth)
    ended_jobs.follow_up(store)
    assert store.get(fifth).state == "paused"
    assert "which is cancelled" in store.get(fifth).why


def test_a_scheduled_job_starts_when_its_time_comes(store):
    first, second, third = (store.submit(a_spec()).id for _ in range(3))
    with pytest.raises(QueueError, match="time is in the past"):
        queue_settings.schedule(store, first, queue_settings.Start(after=1.0))
    queue_settings.schedule(store, first, queue_settings.Start(after=time.time() + 3600))
    queue_settings.schedule(store, third, queue_settings.Start(when="night"))
    assert run_one(store).job == second
    assert take(store, "cpu", start_when=["idle"]) is None
    assert run_one(store, start_when=["night"]).job == third
    queue_settings.schedule(store, first, queue_settings.Start())
    assert run_one(store).job == first
    with pytest.raises(QueueError, match="only waiting jobs"):
        queue_settings.schedule(store, first, queue_settings.Start(when="night"))


def test_only_transient_failures_are_tried_again_and_not_for_ever(store):
    job = store.submit(a_spec(), retries=2).id
    for wait in (30, 60):
        run_one(store, "failed", "out_of_memory")
        ended_jobs.follow_up(store)
        assert store.get(job).state == "queued"
        assert store.get(job).start_after == pytest.approx(time.time() + wait, abs=14)
        queue_settings.schedule(store, job, queue_settings.Start())
    run_one(store, "failed", "out_of_memory")
    ended_jobs.follow_up(store)
    assert store.get(job).state == "failed"
    other = store.submit(a_spec(), retries=2).id
    run_one(store, "failed", "diverged")
    ended_jobs.follow_up(store)
    assert store.get(other).state == "failed"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_what_waits_for_a_job_that_is_not_tried_again_is_held(store, end):
    first = store.submit(a_spec(), retries=2).id
    waiting = store.submit({"name": "x"}, kind="evaluate", needs=[first]).id
    if end == "failed":
        run_one(store, "failed", "diverged")
    else:
        store.cancel(first)
    ended_jobs.follow_up(store)
    assert store.get(waiting).state == "paused"
    assert f"which is {end}" in store.get(waiting).why
    # Other conditions may change while it is kept; a new one cannot be such a job.
    planned = queue_settings.schedule(store, waiting, needs=[first], retries=3)
    assert (planned.needs, planned.retries_left) == ([first], 3)
    with pytest.raises(QueueError, match="would never start"):
        queue_settings.schedule(store, store.submit(a_spec()).id, needs=[first])
    store.resume(first)
    ended_jobs.follow_up(store)
    assert store.get(waiting).state == "queued"
    store.pause(waiting)
    ended_jobs.follow_up(store)
    assert store.get(waiting).state == "paused", "the user held it"


def test_what_waits_for_a_job_that_is_tried_again_goes_on_waiting(store):
    first = queue_settings.schedule(store, store.submit(a_spec()).id, retries=1).id
    waiting = store.submit({"name": "x"}, kind="evaluate", needs=[first]).id
    for state in ("queued", "paused"):
        run_one(store, "failed", "out_of_memory")
        ended_jobs.follow_up(store)
        assert store.get(waiting).state == state
        if state == "queued":
            queue_settings.schedule(store, first, queue_settings.Start())
    with pytest.raises(QueueError, match="resume it instead"):
        queue_settings.schedule(store, first, retries=1)


def test_a_sweep_and_a_queue_that_stop_do_so_although_retries_are_left(store):
    queue_settings.on_error(store, "stop")
    _, second = sweeps.submit_sweep(
        store, a_spec(), {"seed": [1, 2]}, name="s", on_error="stop", retries=3
    )
    run_one(store, "failed", "diverged")
    ended_jobs.follow_up(store)
    assert store.get(second.id).state == "paused"
    assert "the queue stops at an error" in queue_settings.read(store, "held")


def test_save_and_sample_now_reach_the_run_once_and_one_after_the_other(store):
    job = store.submit(a_spec()).id
    with pytest.raises(QueueError, match="only a running training"):
        store.request(job, "save")
    claim = begin(store)
    store.request(job, "sample")
    store.request(job, "save")
    assert [store.claims.take_request(claim) for _ in range(3)] == ["save", "sample", None]


def test_nothing_starts_without_room_and_what_paused_for_it_goes_on(store, monkeypatch):
    free = 10 << 20
    monkeypatch.setattr(disk_usage, "free_bytes", lambda _: free)
    waiting = store.submit(a_spec(steps=3)).id
    paused = store.submit(a_spec(steps=3)).id
    claim = take(store, "cpu")
    assert claim.job == waiting
    store.claims.register(claim, me())
    store.claims.report(claim, Progress(step=2))
    with publishing(store.home.run(waiting) / "checkpoints" / "step-00000002") as folder:
        (folder / "state.json").write_text("{}")
    store.claims.ask_pause(claim, why="full")
    store.claims.stopped(claim, error=("disk_full", "The disk is full."))

    assert "10.0 MiB are free" in str(disk_usage.shortage(store.home.path))
    with supervising(store.home) as running:
        running.look()
        assert store.get(paused).state == "queued"
        assert store.get(waiting).state == "paused"
        free = 10 << 30
        until(lambda: store.get(waiting).state == "succeeded")
        until(lambda: store.get(paused).state == "succeeded")
    assert store.attempts(waiting)[1]["from_step"] == 2

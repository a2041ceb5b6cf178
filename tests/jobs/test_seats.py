"""Siblings of a sweep on one device and in one process; each is a job of its own all the same."""

import os
import signal
from typing import Any

import pytest

from jobs.claims import Claim, Slot, device_of
from jobs.device_placement import Placement, claim_siblings
from jobs.job_queue import JobStore
from jobs.processes import me
from studio.spec import RunSpec
from tests.jobs.conftest import a_spec, curve, supervising, take, until
from tests.jobs.fake_runner import fake_loss


def submit(store: JobStore, count: int, *, sweep: str | None = "s", **options: Any) -> list[int]:
    specs = [
        a_spec(seed=seed, learning_rate=10.0 ** -(1 + seed), **options) for seed in range(count)
    ]
    return [job.id for job in store.submit_many(specs, sweep=sweep)]


def claimed(store: JobStore, device: str = "cpu", beside: tuple[str, ...] = ()) -> list[int]:
    """Claim the next run with its siblings and return their jobs."""
    return [claim.job for claim in claims_of(store, device, beside)]


def claims_of(store: JobStore, device: str = "cpu", beside: tuple[str, ...] = ()) -> list[Claim]:
    first = take(store, device, more=beside)
    assert first is not None
    return [first, *claim_siblings(store.database, first, owner=me(), slot=Slot(device, beside))]


def test_a_sweep_sits_on_one_device_until_its_last_run_has_ended(store):
    runs = submit(store, 3)
    claims = claims_of(store)
    assert [claim.job for claim in claims] == runs
    assert [claim.device for claim in claims] == ["cpu", f"cpu#{runs[1]}", f"cpu#{runs[2]}"]
    assert {device_of(claim.device) for claim in claims} == {"cpu"}
    assert [store.get(run).state for run in runs] == ["starting"] * 3
    later = store.submit(a_spec()).id
    for number, claim in enumerate(claims):
        assert take(store, "cpu") is None
        placed = Placement(store)
        placed.look([Slot("cpu")], start_when=())
        assert not placed.left  # the slot is busy
        store.claims.register(claim, me())
        store.claims.finish(claim, "succeeded")
        assert len(store.leases()) == 2 - number
    after = take(store, "cpu")
    assert after is not None and after.job == later
    why = [event["why"] for event in store.events(runs[1])]
    assert f'together with "{store.get(runs[0]).name}"' in why


def test_who_waits_between_keeps_its_turn(store):
    first, last = submit(store, 2)
    other = store.submit(a_spec())
    store.move(other.id, before=last)
    assert claimed(store) == [first]
    store.pause(other.id)  # held: nobody is passed over
    store.claims.register(store.active_claims()[0], me())
    store.claims.finish(store.active_claims()[0], "succeeded")
    third = store.submit(a_spec(seed=9), sweep="s").id
    assert claimed(store) == [last, third]


def test_other_data_another_kind_or_a_wish_to_be_alone_stay_apart(store):
    base = a_spec()
    specs = [
        base, base.with_values({"data.path": "starter:shouting"}),
        base.with_values({"train.together": False}), base.with_values({"method.name": "full"}),
        base.with_values({"method.name": "ia3"}),
    ]  # fmt: skip
    runs = [job.id for job in store.submit_many(specs, sweep="s")]
    store.submit({"x": 1}, kind="bakeoff", sweep="s")
    assert claimed(store) == [runs[0], runs[4]]


@pytest.mark.parametrize("apart", ["no sweep", "stops on an error", "died before", "retried"])
def test_some_are_claimed_one_by_one(store, apart):
    runs = submit(store, 3, sweep=None if apart == "no sweep" else "s")
    with store.database.writing() as db:
        if apart == "stops on an error":
            db.conn.execute("UPDATE jobs SET on_error = 'stop'")
        if apart == "died before":
            db.conn.execute("UPDATE jobs SET no_progress = 1 WHERE id = ?", (runs[0],))
        if apart == "retried":  # after it ran out of memory beside the others
            db.conn.execute("UPDATE jobs SET retries_done = 1")
    assert claimed(store) == runs[:1]


def test_free_devices_share_a_sweep(store):
    runs = submit(store, 5)
    slots = ("cuda:0", "cuda:1")
    assert claimed(store, "cuda:0", slots[1:]) == runs[:3]
    rest = claims_of(store, "cuda:1", slots[:1])
    assert [claim.job for claim in rest] == runs[3:]
    assert rest[1].device == f"cuda:1#{runs[4]}"
    large = submit(store, 20)
    assert claimed(store) == large[:8], "eight at a time"


def test_siblings_run_in_one_process_and_each_has_its_curve(store):
    runs = submit(store, 3, steps=8)
    with supervising(store.home):
        until(lambda: all(store.get(run).state == "succeeded" for run in runs))
    pids = {store.attempts(run)[0]["pid"] for run in runs}
    assert len(pids) == 1
    for seed, run in enumerate(runs):
        series = curve(store, run)
        assert series["y"] == [fake_loss(seed, step) for step in range(1, 9)]
        assert "train together" in store.log_tail(run)
        assert RunSpec.from_yaml(store.home.run(run) / "spec.yaml").seed == seed


def test_one_is_cancelled_one_paused_and_one_diverges_while_the_others_go_on(store, monkeypatch):
    monkeypatch.setenv("FAKE_SIBLING", "3")
    runs = submit(store, 4, steps=60)
    with supervising(store.home):
        until(lambda: store.get(runs[1]).step >= 3)
        store.cancel(runs[1])
        store.pause(runs[0])
        until(lambda: store.get(runs[1]).state == "cancelled")
        until(lambda: store.get(runs[0]).state == "paused")
        assert store.get(runs[2]).state in ("running", "succeeded")
        store.resume(runs[0])
        until(lambda: store.get(runs[2]).state == "succeeded")
        until(lambda: store.get(runs[0]).state == "succeeded")
    assert store.get(runs[2]).attempt == 1
    assert store.attempts(runs[0])[1]["from_step"] > 0
    diverged = store.get(runs[3])
    assert (diverged.state, diverged.error_kind) == ("failed", "diverged")


def test_a_killed_process_gives_all_of_them_back_and_they_go_on(store):
    runs = submit(store, 3, steps=60, save=5)
    with supervising(store.home):
        until(lambda: all(store.get(run).step >= 12 for run in runs))
        os.kill(store.get(runs[0]).pid, signal.SIGKILL)
        until(lambda: all(store.get(run).state == "succeeded" for run in runs))
    for seed, run in enumerate(runs):
        assert [row["from_step"] >= 10 for row in store.attempts(run)] == [False, True]
        series = curve(store, run)
        assert series["y"] == [fake_loss(seed, step) for step in range(1, 61)]
        assert not (store.home.run(run) / "OVERLAP").exists()
    assert len({store.attempts(run)[1]["pid"] for run in runs}) == 1


def test_a_studio_that_goes_down_lets_all_of_them_save(store):
    runs = submit(store, 2, steps=300, save=1000)
    with supervising(store.home):
        until(lambda: all(store.get(run).step >= 5 for run in runs))
    assert [store.get(run).state for run in runs] == ["interrupted"] * 2
    assert all((store.home.run(run) / "checkpoints").is_dir() for run in runs)

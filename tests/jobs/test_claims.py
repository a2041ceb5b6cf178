"""Claims are exact, and whoever lost a job can change nothing."""

from collections import Counter

import pytest

from jobs.claims import Claim, Fenced, Slot
from jobs.job_queue import JobStore
from jobs.processes import Identity, boot_id, me
from jobs.run_curves import Progress
from tests.jobs.conftest import a_spec, begin, curve, run_workers, take


def test_eight_processes_claim_every_job_exactly_once(home):
    store = JobStore(home)
    count = 80
    for _ in range(count):
        store.submit(a_spec())
    taken = run_workers("claim_all", home, [[f"slot-{number}"] for number in range(8)])
    counts = Counter(job for part in taken for job in part)
    assert len(counts) == count
    assert set(counts.values()) == {1}
    assert store.counts() == {"succeeded": count}
    store.close()


def test_claims_follow_the_order_and_wait_for_the_device(store):
    first, second = store.submit(a_spec()).id, store.submit(a_spec()).id
    claim = take(store, "cpu")
    assert claim == Claim(first, 1, "cpu")
    assert take(store, "cpu") is None
    assert take(store, "cuda:0") == Claim(second, 1, "cuda:0")


def test_a_slot_takes_only_the_wishes_it_serves(store):
    store.submit(a_spec(device="cpu"))
    gpu = store.submit(a_spec(device="cuda:1")).id
    assert take(store, "cuda:0", wanted=["auto", "cuda", "cuda:0"]) is None
    claim = take(store, "cuda:1", wanted=["auto", "cuda", "cuda:1"])
    assert claim is not None
    assert claim.job == gpu


def test_a_second_download_does_not_take_the_only_device(store):
    for repo in ("a/a", "b/b"):
        store.submit({"repo": repo}, kind="download")
    job = store.submit({"name": ""}).id
    slots = [Slot("network", wanted=["network"]), Slot("cpu")]
    claims = [store.claims.claim_next(slots, owner=me()) for _ in range(3)]
    assert [claim and (claim.job, claim.device) for claim in claims] == [
        (1, "network"), (job, "cpu"), None,
    ]  # fmt: skip


def test_a_stale_attempt_changes_nothing(store):
    job = store.submit(a_spec()).id
    old = begin(store)
    store.claims.lost(old, why="gone", newest_step=0)
    new = begin(store)
    store.claims.report(new, Progress(metrics=[("loss", 1, 1.0, 0.0)], step=1))
    before = store.get(job)
    with pytest.raises(Fenced):  # a second process cannot register the same attempt
        store.claims.register(new, Identity(1, 1, boot_id()))

    for stale in (
        lambda: store.claims.report(old, Progress(metrics=[("loss", 1, 9.0, 0.0)], step=9)),
        lambda: store.claims.finish(old, "succeeded"), lambda: store.claims.stopped(old),
        lambda: store.claims.intent(old),
        lambda: store.claims.register(old, me()),
    ):  # fmt: skip
        with pytest.raises(Fenced):
            stale()
    store.claims.ask_shutdown(old)
    assert store.claims.lost(old, why="again", newest_step=5) is None

    assert store.get(job) == before
    assert curve(store, job)["y"] == [1.0]


def test_a_stop_is_obeyed_unless_the_end_comes_first(store):
    early = store.submit(a_spec()).id
    claim = take(store, "cpu")
    store.cancel(early)
    assert store.claims.register(claim, me()) == "cancel"
    assert store.claims.stopped(claim) == "cancelled"

    late = store.submit(a_spec()).id
    claim = begin(store)
    store.pause(late)
    store.claims.finish(claim, "succeeded")
    assert store.get(late).state == "succeeded"

    dying = store.submit(a_spec()).id
    claim = begin(store)
    store.cancel(dying)
    assert store.claims.lost(claim, why="killed", newest_step=3) == "cancelled"
    assert take(store, "cpu") is None


def test_three_deaths_without_progress_wait_for_a_person(store):
    job = store.submit(a_spec()).id
    states = []
    for _ in range(3):
        claim = begin(store)
        states.append(store.claims.lost(claim, why="killed", newest_step=0))
    assert states == ["queued", "queued", "interrupted"]
    ended = store.get(job)
    assert "3 times without reaching a new checkpoint" in str(ended.error_text)
    assert store.resume(job).no_progress == 0


def test_progress_or_a_reboot_begins_a_new_count(store):
    store.submit(a_spec())
    died = [(0, False), (0, False), (5, False), (5, False), (5, False), (5, True), (5, False)]
    for newest, blameless in died:
        claim = begin(store)
        state = store.claims.lost(claim, why="x", newest_step=newest, blameless=blameless)
        assert state == "queued"


def test_a_claimed_device_shows_as_a_lease(store):
    job = store.submit(a_spec(name="mine")).id
    claim = begin(store)
    (lease,) = store.leases()
    assert (lease["device"], lease["holder"], lease["job_name"]) == ("cpu", "job", "mine")
    assert lease["pid"] == me().pid
    store.claims.finish(claim, "failed", error=("run", "because"))
    assert store.leases() == []
    assert store.attempts(job)[0]["outcome"] == "failed"

"""Jobs on several devices: all leases in one transaction, order kept, nothing idle that fits."""

import random

import pytest

from jobs.claims import Claim
from jobs.job_queue import JobStore
from tests.jobs.conftest import end, take

pytestmark = [pytest.mark.usefixtures("no_power_cuts"), pytest.mark.timeout(900)]


def _submit(store: JobStore, width: int) -> int:
    return store.submit({"train": {"num_processes": width}}).id


def _claim(store: JobStore, device: str, slots: list[str]) -> Claim | None:
    more = [slot for slot in slots if slot != device]
    return take(store, device, more=more)


def test_a_wide_job_holds_every_device_it_got_and_returns_all(store):
    slots = ["cuda:0", "cuda:1", "cuda:2"]
    wide, narrow = _submit(store, 2), _submit(store, 1)

    first = _claim(store, "cuda:0", slots)
    second = _claim(store, "cuda:1", slots)
    third = _claim(store, "cuda:2", slots)

    assert first is not None and (first.job, first.device) == (wide, "cuda:0,cuda:1")
    assert second is None
    assert third is not None and (third.job, third.device) == (narrow, "cuda:2")
    held = {(lease["device"], lease["job"]) for lease in store.leases()}
    assert held == {("cuda:0", wide), ("cuda:1", wide), ("cuda:2", narrow)}
    end(store, first.job)
    assert [lease["device"] for lease in store.leases()] == ["cuda:2"]


def test_two_jobs_that_want_two_each_never_wait_for_one_another(store):
    slots = ["cuda:0", "cuda:1", "cuda:2"]
    first, second = _submit(store, 2), _submit(store, 2)

    claims = [claim for slot in slots if (claim := _claim(store, slot, slots))]

    assert [claim.job for claim in claims] == [first]
    end(store, claims[0].job)
    claims = [claim for slot in slots if (claim := _claim(store, slot, slots))]
    assert [claim.job for claim in claims] == [second]


def test_a_processor_is_one_device_however_many_processes_share_it(store):
    _submit(store, 2)

    claim = _claim(store, "cpu", ["cpu"])

    assert claim is not None and claim.device == "cpu"


def test_a_thousand_jobs_over_64_devices(store):
    """Order kept, never two on one device, no device idle while a waiting job fits."""
    rng = random.Random(8)
    slots = [f"cuda:{number}" for number in range(64)]
    widths = rng.choices([1, 2, 4, 8, 16], k=1000)
    jobs = store.submit_many([{"train": {"num_processes": width}} for width in widths])
    waiting = {job.id: width for job, width in zip(jobs, widths, strict=True)}
    running: dict[int, Claim] = {}
    busy_share, passes = [], 0
    while waiting or running:
        for slot in slots:
            taken = {device for claim in running.values() for device in claim.device.split(",")}
            if slot in taken:
                continue
            free = len(slots) - len(taken)
            fitting = next((job for job, width in waiting.items() if width <= free), None)
            claim = _claim(store, slot, slots)
            assert (claim.job if claim else None) == fitting
            if claim is None:
                break
            devices = claim.device.split(",")
            assert len(devices) == waiting.pop(claim.job)
            assert not taken & set(devices)
            passes += claim.job > min(waiting, default=claim.job)
            running[claim.job] = claim
        held = [lease["device"] for lease in store.leases()]
        assert len(held) == len(set(held))
        if waiting:
            busy_share.append(len(held) / len(slots))
        for job in rng.sample(sorted(running), k=max(1, len(running) // 3)):
            end(store, running.pop(job).job)

    assert store.counts() == {"succeeded": 1000}
    assert min(busy_share) > 0.95
    assert passes > 0

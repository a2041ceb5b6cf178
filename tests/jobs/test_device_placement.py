"""Memory decides where a job starts: beside what is held, after chat left, or not yet."""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from jobs import copy_and_extend_runs, queue_settings, supervisor, sweeps
from jobs.actions import ask
from jobs.claims import Slot
from jobs.database import now
from jobs.device_placement import (
    CHAT_SECONDS,
    END_CHAT_SECONDS,
    Placement,
    needed_by_each,
    needed_bytes,
)
from jobs.job_queue import JobStore
from jobs.processes import of
from studio.errors import QueueError
from studio.hardware import Device
from studio.spec import RunSpec
from tests.jobs.conftest import end, supervising, take, until

GB = 10**9
CARD = 24 * GB


class Machine:
    """A card of 24 GB whose free memory, and a clock, that the test sets."""

    def __init__(self, store: JobStore, *, name: str = "cuda:0") -> None:
        self.name, self.free, self.now = name, CARD, 0.0
        self.store = store
        self.placement = Placement(store, devices=self.devices, clock=lambda: self.now)

    def devices(self) -> list[Device]:
        return [Device(name=self.name, label="Card", total_bytes=CARD, free_bytes=self.free)]

    def claim(self) -> int | None:
        """What a supervisor does at one look."""
        self.now += 3
        self.placement.look([Slot(self.name)], start_when=[])
        if not self.placement.may_claim(Slot(self.name)):
            return None
        claim = take(self.store, self.name, room=self.placement.left)
        return claim.job if claim else None


@pytest.fixture
def machine(store):
    return Machine(store)


def queue(store: JobStore, gigabytes: int) -> int:
    return store.submit({"name": ""}, memory_bytes=gigabytes * GB).id


def test_two_thirds_do_not_start_beside_a_half_that_another_program_holds(store, machine):
    large = queue(store, 16)
    machine.free = CARD // 2

    assert machine.claim() is None
    waits = store.get(large).waits
    assert waits == "needs about 14.9 GiB of cuda:0, which has 11.2 GiB left"
    machine.free = CARD

    assert machine.claim() == large
    assert store.get(large).waits == ""
    lease = store.leases()[0]
    assert (lease["job_name"], lease["memory_bytes"]) == (store.get(large).name, 16 * GB)


def test_a_smaller_job_passes_and_the_large_one_keeps_its_place(store, machine):
    large, small = queue(store, 16), queue(store, 8)
    machine.free = CARD // 2

    assert machine.claim() == small
    assert [job.id for job in store.queue()] == [small, large]
    store.cancel(small)  # its memory is still held while it ends
    assert machine.claim() is None


def test_a_job_without_an_estimate_or_larger_than_the_card_starts_on_an_empty_one(store, machine):
    unknown, huge = queue(store, 0), queue(store, 999)
    machine.free = GB
    assert machine.claim() == unknown
    end(store, unknown)
    assert machine.claim() is None
    machine.free = CARD - GB // 2  # a screen takes a little

    assert machine.claim() == huge


@pytest.mark.parametrize(
    ("card", "display", "starts"),
    [(24 * GB, 0.12, True), (24 * GB, 0.2, False), (8 * GB, 0.18, True), (8 * GB, 0.3, False),
     (2 * GB, 0.6, False)],
)  # fmt: skip
def test_a_display_keeps_no_job_waiting_for_ever(
    store, machine, monkeypatch, card, display, starts
):
    """1.5 GiB, or 15 % of a larger card, may be a display's; more is another program's."""
    monkeypatch.setattr("tests.jobs.test_device_placement.CARD", card)
    machine.free = int(card * (1 - display))
    huge = queue(store, 999)
    assert machine.claim() == (huge if starts else None)


def test_chat_is_asked_to_leave_and_only_what_fits_starts_beside_it(store, machine):
    store.take_chat_lease("cuda:0", memory_bytes=CARD // 2)
    large = queue(store, 16)

    assert machine.claim() is None
    assert store.leases()[0]["wanted_back"] == 1
    machine.now += CHAT_SECONDS
    assert machine.claim() is None, "a grace that is over does not make room"
    assert "chat holds 11.2 GiB" in store.get(large).waits
    small = queue(store, 8)
    assert machine.claim() == small, "what fits beside a slow chat starts"
    end(store, small)
    store.return_chat_lease()

    assert machine.claim() == large


def test_chat_stays_while_no_job_could_start_on_its_device(store, machine):
    store.take_chat_lease("cuda:0", memory_bytes=CARD // 2)
    first = store.submit({"name": ""})
    store.pause(first.id)
    store.submit({"name": ""}, needs=[first.id])
    store.submit({"name": "", "train": {"device": "cuda:1"}})
    store.submit({"repo": "org/name"}, kind="download")
    queue_settings.schedule(store, queue(store, 1), queue_settings.Start(after=now() + 9999))
    later = queue(store, 1)
    queue_settings.schedule(store, later, queue_settings.Start(when="idle"))
    machine.placement.look([Slot("cuda:0", (), ["auto", "cuda:0"])], start_when=["night"])

    assert machine.placement.may_claim(Slot("cuda:0", (), ["auto", "cuda:0"]))
    assert store.leases()[0]["wanted_back"] == 0
    queue_settings.schedule(store, later, queue_settings.Start(when="night"))
    assert not machine.placement.may_claim(Slot("cuda:0", (), ["auto", "cuda:0"]))
    assert store.leases()[0]["wanted_back"] == 1


def test_a_job_takes_a_free_card_rather_than_that_of_chat(store):
    store.take_chat_lease("cuda:0", memory_bytes=GB)
    job = queue(store, 0)
    here = supervisor.Supervisor(store.home, slots=["cuda:0", "cuda:1"], spare=False)
    started = []
    here.runners.start = lambda claim, siblings: started.append((claim.job, claim.device))
    here._claim()
    here.wakeup.close()
    here.store.close()
    assert started == [(job, "cuda:1")]
    assert [row["wanted_back"] for row in store.leases()] == [0, 0]


def test_a_chat_that_does_not_leave_is_ended(store, machine):
    chat = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    store.take_chat_lease("cuda:0", memory_bytes=CARD // 2, identity=of(chat.pid))
    large = queue(store, 16)
    assert machine.claim() is None
    machine.now += END_CHAT_SECONDS

    assert machine.claim() is None
    assert chat.wait(timeout=10) == -9
    assert machine.claim() == large


def test_a_processor_is_shared_until_its_memory_is_short(store):
    machine = Machine(store, name="cpu")
    machine.free = 0  # other programs: the system makes room from them
    store.take_chat_lease("cpu", memory_bytes=CARD // 2)
    small = queue(store, 8)
    assert machine.claim() == small
    assert store.leases()[0]["wanted_back"] == 0
    end(store, small)
    large = queue(store, 16)

    assert machine.claim() is None
    assert store.leases()[0]["wanted_back"] == 1
    store.return_chat_lease()
    assert machine.claim() == large


def test_a_table_waits_for_a_paused_run_and_says_so(store, machine):
    run = store.submit({"name": "mine"}, sweep="duel").id
    table = store.submit({"name": ""}, kind="bakeoff", sweep="duel").id
    store.pause(run)
    assert machine.claim() is None
    assert store.get(table).waits == 'It waits for "mine", which is paused.'
    store.cancel(run)
    assert machine.claim() == table


def test_a_wide_job_takes_the_devices_that_have_room_for_it(store):
    job = store.submit({"train": {"num_processes": 2}}, memory_bytes=8 * GB).id
    slots = ["cuda:0", "cuda:1", "cuda:2"]

    def claim(room: dict[str, int]) -> Any:
        return take(store, "cuda:0", more=slots[1:], room=room)

    assert claim({"cuda:0": 2 * GB}) is None
    assert claim({"cuda:1": 2 * GB, "cuda:2": 2 * GB}) is None
    found = claim({"cuda:1": 2 * GB})
    assert (found.job, found.device) == (job, "cuda:0,cuda:2")


def test_a_user_may_start_it_without_the_room(store, machine, monkeypatch):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)
    large = queue(store, 16)
    with pytest.raises(QueueError, match="does not wait for memory"):
        ask(store.home, "schedule", {"job": large, "anyway": True}, store=store)
    machine.free = CARD // 2
    assert machine.claim() is None
    ask(store.home, "schedule", {"job": large, "anyway": True}, store=store)
    assert machine.claim() == large


def test_the_estimate_at_submission_travels_with_the_job(store, home):
    spec = RunSpec(name="one")
    needed = needed_bytes(spec, home)
    assert 300_000_000 < needed < GB, "a tiny model is mostly its program"
    for unknown in ({"model.path": "somebody/model"}, {"data.path": "somebody/rows"}):
        assert needed_bytes(RunSpec().with_values(unknown), home) == 0

    job = store.submit(spec, memory_bytes=needed)
    copy = copy_and_extend_runs.duplicate(store, job.id, {})
    group = sweeps.submit_sweep(store, spec, {"train.learning_rate": [0.1, 0.2]}, name="group")

    assert {one.memory_bytes for one in (store.get(job.id), copy, *group)} == {needed}


def test_a_large_sweep_estimates_only_some_of_its_points(home, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "jobs.device_placement.needed_bytes", lambda spec, _: asked.append(spec) or spec.method.r
    )
    specs = [RunSpec().with_values({"method.r": r}) for r in range(1, 201)]

    found = needed_by_each(specs, home)

    assert len(asked) == 40 and found[:3] == [1, 2, 3] and set(found[40:]) == {40}


def test_a_supervisor_starts_what_fits_and_says_what_waits(store, monkeypatch):
    here = [Device(name="cpu", label="", total_bytes=CARD, free_bytes=CARD)]
    monkeypatch.setattr(supervisor, "Placement", partial(Placement, devices=lambda: here))
    monkeypatch.setattr("jobs.device_placement.READ_SECONDS", 0.0)
    store.take_chat_lease("cpu", memory_bytes=CARD // 2)
    spec = {"name": "", "seed": 0, "train": {"max_steps": 1, "save_steps": 1}}
    large = store.submit(spec, memory_bytes=16 * GB).id
    small = store.submit(spec, memory_bytes=8 * GB).id
    with supervising(store.home):
        until(lambda: store.get(small).state == "succeeded")
        until(lambda: "chat holds" in store.get(large).waits)
        store.return_chat_lease()
        until(lambda: store.get(large).state == "succeeded")

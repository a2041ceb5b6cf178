"""Training comes first: chat gives way on a GPU and shares a CPU."""

import pytest

from jobs.chat_worker import Leases
from jobs.job_queue import JobStore
from studio import hardware
from studio.hardware import Device
from tests.jobs.conftest import a_spec, take


class Board(JobStore):
    """A store whose leases are told by the test."""

    rows = ()

    def leases(self):
        return self.rows


def leases_with(home, *rows):
    leases = Leases(home)
    leases._store = Board(home)
    leases._store.rows = [{"wanted_back": 0} | row for row in rows]
    return leases


def test_what_chat_holds_is_written_and_returned(home):
    leases, store = Leases(home), JobStore(home)

    leases.take([{"device": "cpu", "bytes": 100}, {"device": "cpu", "bytes": 20}])
    held = [(row["device"], row["holder"], row["memory_bytes"]) for row in store.leases()]
    leases.give_back()

    assert held == [("cpu", "chat", 120)]
    assert store.leases() == []


GPU = {"device": "cuda:0", "holder": "job"}


@pytest.mark.parametrize(
    ("rows", "held", "wanted"),
    [
        ([GPU], "cuda:0", True),
        ([GPU | {"device": "cuda:0#2"}], "cuda:0", True),
        ([{"device": "cuda:0", "holder": "chat", "wanted_back": 1}], "cuda:0", True),
        ([GPU | {"device": "cuda:1"}], "cuda:0", False),
        ([GPU | {"device": "cpu"}], "cpu", False),
        ([GPU | {"device": "cpu#2"}], "cpu", False),
    ],
)
def test_a_gpu_goes_to_the_job_that_has_or_wants_it_and_a_cpu_is_shared(home, rows, held, wanted):
    leases = leases_with(home, *rows)
    leases.take([{"device": held, "bytes": 1}])
    assert leases.wanted() is wanted


def test_a_run_and_lanes_have_a_gpu_each(home, store, monkeypatch):
    """The run starts on the first card; lanes go to the second until a run asks for it."""
    monkeypatch.setattr("studio.models.loading.default_device", lambda: "cuda:0")
    cards = [Device(name=f"cuda:{n}", label="", total_bytes=8, free_bytes=8) for n in (0, 1)]
    monkeypatch.setattr(hardware, "devices", lambda: cards)
    first = store.submit(a_spec(device="auto")).id
    claim = take(store, "cuda:0")
    assert claim is not None and claim.job == first

    leases = Leases(home)
    assert leases.device() == "cuda:1"
    leases.take([{"device": "cuda:1", "bytes": 100}])
    held = {(row["device"], row["holder"]) for row in store.leases()}
    assert held == {("cuda:0", "job"), ("cuda:1", "chat")}
    assert not leases.wanted()

    second = store.submit(a_spec(device="cuda:1")).id
    assert store.ask_chat_to_leave("cuda:1") and leases.wanted()
    leases.give_back()
    assert take(store, "cuda:1").job == second
    assert leases.device() == "cpu"


def test_models_go_to_the_cpu_while_a_job_has_the_gpu(home, monkeypatch):
    monkeypatch.setattr("studio.models.loading.default_device", lambda: "cuda:0")

    assert leases_with(home).device() == "cuda:0"
    for device in ("cuda:0", "cuda:0#2"):
        assert leases_with(home, GPU | {"device": device}).device() == "cpu"

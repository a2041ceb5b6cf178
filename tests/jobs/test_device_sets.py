"""A set of GPUs, or all of them: exactly these are leased, at once, and the run sees only them."""

import os

import pytest

from jobs import job_kinds, runner
from jobs.claims import Slot
from jobs.device_placement import Placement
from jobs.job_inputs import admit
from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.supervisor import Supervisor
from studio import hardware
from studio.errors import SpecError
from studio.gpus import VISIBLE
from studio.hardware import Device
from studio.spec import RunSpec
from tests.jobs.conftest import a_spec, end

SLOTS = ["cuda:0", "cuda:1", "cuda:2", "cpu"]


class Looks:
    """What a supervisor of these slots claims in one look."""

    def __init__(self, store: JobStore, slots: list[str] = SLOTS) -> None:
        self._supervisor = Supervisor(store.home, slots=slots, spare=False)
        self._store, self._slots = store, slots

    def __call__(self, **room: int) -> list[tuple[int, str]]:
        slots = [self._supervisor._slot(device) for device in self._slots]
        claimed = []
        while claim := self._store.claims.claim_next(slots, owner=me(), room=room):
            claimed.append((claim.job, claim.device))
        return claimed


def _submit(store: JobStore, device: str, memory: int = 0, **train: int) -> int:
    return store.submit(a_spec(device=device, **train), memory_bytes=memory).id


def test_a_run_on_gpus_of_intel_counts_them_from_zero():
    seen = job_kinds._as_here(RunSpec.parse(a_spec(device="xpu:1,xpu:3")), "xpu:1,xpu:3").train
    assert (seen.device, seen.num_processes) == ("xpu:0,xpu:1", 2)


def test_a_set_gets_exactly_its_devices_and_others_take_the_rest(store):
    pair, one = _submit(store, "cuda:2,cuda:0"), _submit(store, "auto")

    assert Looks(store)() == [(pair, "cuda:0,cuda:2"), (one, "cuda:1")]
    assert {(row["device"], row["job"]) for row in store.leases()} == {
        ("cuda:0", pair), ("cuda:2", pair), ("cuda:1", one)
    }  # fmt: skip
    end(store, pair)
    assert [row["device"] for row in store.leases()] == ["cuda:1"]


def test_sets_that_overlap_never_hold_a_part_and_wait_for_the_rest(store):
    looks = Looks(store)
    first, second = _submit(store, "cuda:0,cuda:1"), _submit(store, "cuda:1,cuda:2")
    third = _submit(store, "cuda:2,cuda:0")

    for job, devices in ((first, "cuda:0,cuda:1"), (second, "cuda:1,cuda:2"),
                         (third, "cuda:0,cuda:2")):  # fmt: skip
        assert looks() == [(job, devices)]
        assert len(store.leases()) == 2
        end(store, job)


def test_each_device_of_a_set_needs_the_memory(store):
    looks = Looks(store)
    pair = _submit(store, "cuda:0,cuda:1", memory=8)

    assert looks(**{"cuda:1": 7}) == []
    assert looks(**{"cuda:0": 7}) == []
    assert looks(**{"cuda:0": 9, "cuda:2": 0}) == [(pair, "cuda:0,cuda:1")]


@pytest.mark.parametrize(
    ("busy", "device", "devices"),
    [("cuda:1", "cuda:0,cuda:1", "cuda:0,cuda:1"), ("cuda:2", "all", "cuda:0,cuda:1,cuda:2")],
)
def test_a_set_waits_for_its_own_devices_though_others_are_free(store, busy, device, devices):
    looks = Looks(store)
    first = _submit(store, busy)
    assert looks() == [(first, busy)]
    wide, beside = _submit(store, device), _submit(store, "cpu")

    assert looks() == [(beside, "cpu")]
    end(store, first)
    assert looks() == [(wide, devices)]


def test_all_without_a_gpu_is_the_processor_and_measuring_takes_one_device_of_a_set(store):
    every = _submit(store, "all")
    assert Looks(store, ["cpu"])() == [(every, "cpu")]
    spec = a_spec(device="cuda:1,cuda:2")
    job = store.submit({**spec.model_dump(mode="json"), "name": ""}, kind="preflight").id
    assert Looks(store)() == [(job, "cuda:1")]


def test_a_device_that_is_not_here_any_more_is_waited_for_in_words(store):
    job = _submit(store, "cuda:0,cuda:7")
    assert Looks(store)() == []
    Placement(store, devices=list).look([Slot(device) for device in SLOTS], start_when=[])
    assert store.get(job).waits == "wants cuda:7; this machine has cuda:0, cuda:1, cuda:2"


def test_a_run_sees_what_it_was_given_and_counts_it_from_zero(home, tmp_path, monkeypatch):
    seen: list[RunSpec] = []
    monkeypatch.setattr(
        "studio.training.train_run.train", lambda spec, **_: seen.append(spec) or iter(())
    )
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
    for name in runner.ALLOCATOR:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(runner.sys, "platform", "linux")
    for wish, given in (("all", "cuda:0,cuda:2"), ("cuda:2", "cuda:2"), ("auto", "cpu")):
        spec = a_spec(device=wish).model_dump(mode="json")
        job_kinds.train(job_kinds.Work(
            spec=spec, run_dir=tmp_path, home=home, control=lambda: None, device=given
        ))  # fmt: skip
        runner._use_device(given)
        if wish == "all":
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,2"
            assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert [(one.train.device, one.train.num_processes) for one in seen] == [
        ("cuda:0,cuda:1", 2), ("cuda:0", 1), ("auto", 1)
    ]  # fmt: skip
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    del os.environ["PYTORCH_ALLOC_CONF"]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    runner._use_device("cuda:0")
    assert "PYTORCH_ALLOC_CONF" not in os.environ, "the user's own setting counts"


def test_a_device_that_is_not_there_is_refused_at_the_door(home, monkeypatch):
    cards = [Device(name=f"cuda:{n}", label="", total_bytes=8, free_bytes=8) for n in (0, 1)]
    monkeypatch.setattr(hardware, "devices", lambda: cards)
    with pytest.raises(SpecError, match="this machine has 2 GPUs: cuda:0, cuda:1") as error:
        admit(a_spec(device="cuda:1,cuda:2"), home)
    assert error.value.field == "train.device"
    spec = a_spec(device="cuda:0,cuda:1", fsdp=True)
    assert admit(spec, home).train == spec.train, "the wish stays as it was written"


def test_a_request_on_a_gpu_waits_for_that_one_and_counts_it_from_zero(store, monkeypatch):
    job = store.submit({"adapter": "a", "data": {"path": "d"}, "device": "cuda:1"}, kind="evaluate")
    assert store.get(job.id).device_wanted == "cuda:1"
    seen = []

    class Asked:
        @staticmethod
        def parse(spec):
            seen.append(spec["device"])
            return Asked

        @staticmethod
        def run(*_):
            return iter(())

    monkeypatch.setattr(job_kinds, "request_of", lambda kind: Asked)
    for device in ("cuda:1", "cpu"):
        work = job_kinds.Work(
            spec={"device": "cuda:1"}, run_dir=None, home=None, control=lambda: None, device=device
        )
        list(job_kinds.named("evaluate")(work))
    assert seen == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("kind", ["push", "picture", "export_adapter", "gguf", "promote"])
def test_what_needs_no_gpu_takes_none(store, kind, monkeypatch):
    job = store.submit({"adapter": "a"}, kind=kind)
    assert store.get(job.id).device_wanted == job_kinds.FILES
    for name in VISIBLE:
        monkeypatch.setenv(name, "0")
    runner._use_device(job_kinds.FILES)
    assert {os.environ[name] for name in VISIBLE} == {"-1"}


@pytest.mark.parametrize(
    ("wishes", "claims"),
    [
        # The second set wants a slot that the first takes: the third job gets what is left of it.
        (["cuda:1,cuda:2", "cuda:0,cuda:2", "auto"], {(1, "cuda:1,cuda:2"), (3, "cuda:0")}),
        (["cuda:1", "auto", "auto"], {(1, "cuda:1"), (2, "cuda:0"), (3, "cuda:2")}),
    ],
)
def test_slots_claim_in_the_order_of_the_jobs_they_would_start(store, wishes, claims):
    for wish in wishes:
        _submit(store, wish)
    assert set(Looks(store)()) == claims

"""What a wish for devices means here: read, refused in a sentence, resolved for this machine."""

from typing import Any

import pytest

from studio import device_setting, hardware
from studio.errors import SpecError
from studio.hardware import Device
from studio.spec import RunSpec
from studio.training.starting_point import sibling_key


def _machine(monkeypatch: pytest.MonkeyPatch, *names: str, cores: int = 4) -> None:
    made = [Device(name=n, label="", total_bytes=8, free_bytes=8) for n in (*names, "cpu")]
    monkeypatch.setattr(hardware, "devices", lambda: made)
    monkeypatch.setattr(hardware, "physical_cores", lambda: cores)
    monkeypatch.setattr(device_setting.os, "cpu_count", lambda: cores)


def _spec(device: Any = "auto", num_processes: int = 1, **train: Any) -> RunSpec:
    return RunSpec.parse({"train": {"device": device, "num_processes": num_processes, **train}})


def _resolved(*given: Any) -> tuple[str, int]:
    train = _spec(*given).on_this_machine().train
    return train.device, train.num_processes


def test_a_set_is_read_from_names_or_a_list():
    assert _spec(" cuda:0, cuda:2 ").train.device == "cuda:0,cuda:2"
    assert _spec(["cuda:0", "cuda:2"]).train.device == "cuda:0,cuda:2"
    assert _spec(["auto"]).train.device == "auto"
    assert _spec("cuda:1,").train.device == "cuda:1"
    for device, processes in (("cuda:1", 1), ("auto", 2), ("cpu", 4), ("cuda:0", 2), ("ray", 8)):
        assert _spec(device, processes).train.device == device, "as specs of before have it"


@pytest.mark.parametrize(
    ("device", "num_processes", "sentence"),
    [
        ("cuda:0,cuda:0", 1, "names cuda:0 twice"),
        ("cuda:0,cpu", 1, 'only GPUs can be listed, such as cuda:0,cuda:2: use "cpu" on its own'),
        ("auto,cuda:1", 1, 'use "auto" on its own'),
        ("cuda:0,cuda:2", 3, "names 2 GPUs, but train.num_processes is 3: set it to 2, or to 1"),
    ],
)
def test_a_set_that_makes_no_sense_is_refused(device, num_processes, sentence):
    with pytest.raises(SpecError, match=sentence) as error:
        _spec(device, num_processes)
    assert error.value.field in ("train.device", "train.num_processes")


def test_wishes_are_resolved_on_a_machine_with_gpus(monkeypatch):
    _machine(monkeypatch, "cuda:0", "cuda:1", "cuda:2")
    assert _resolved("all") == ("cuda:0,cuda:1,cuda:2", 3)
    assert _resolved("cuda:2,cuda:0") == ("cuda:2,cuda:0", 2)
    assert _resolved("cuda:2,cuda:0", 2) == ("cuda:2,cuda:0", 2)
    assert _resolved("auto", 2) == ("cuda:0,cuda:1", 2)
    assert _resolved("cuda", 2) == ("cuda:0,cuda:1", 2)
    assert _resolved("auto") == ("auto", 1)
    assert _resolved("cpu", 2) == ("cpu", 2)
    assert _resolved("ray", 8) == ("ray", 8)


def test_gpus_of_intel_are_named_alike(monkeypatch):
    _machine(monkeypatch, "xpu:0", "xpu:1")
    assert _resolved("all") == ("xpu:0,xpu:1", 2)
    assert _resolved("xpu:1") == ("xpu:1", 1)
    assert _resolved("xpu", 2) == ("xpu:0,xpu:1", 2)
    with pytest.raises(SpecError, match="is cuda, but this machine has 2 GPUs: xpu:0, xpu:1"):
        _resolved("cuda")


def test_all_without_a_gpu_is_a_process_a_core_that_has_rows(monkeypatch):
    _machine(monkeypatch, cores=6)
    assert _resolved("all") == ("cpu", 6)
    few = _spec("all", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert few.on_this_machine().train.num_processes == 4
    _machine(monkeypatch, "mps")
    assert _resolved("all") == ("mps", 1)


@pytest.mark.parametrize(
    ("device", "num_processes", "sentence"),
    [
        ("cuda:7", 1, "names cuda:7, but this machine has 2 GPUs: cuda:0, cuda:1"),
        ("cuda:0,cuda:7", 1, "names cuda:7, but this machine has 2 GPUs: cuda:0, cuda:1"),
        ("auto", 3, "num_processes is 3, but this machine has 2 GPUs: cuda:0, cuda:1. Use at"),
        ("cuda:0", 2, "names only cuda:0, but train.num_processes is 2"),
        ("all", 3, "is all .2 GPUs here., but train.num_processes is 3"),
        ("gpu", 1, 'train.device is "gpu": use auto, cpu'),
        ("cpu", 5, "num_processes is 5, but this machine has 4 processor cores"),
    ],
)
def test_what_this_machine_has_not_is_refused(monkeypatch, device, num_processes, sentence):
    _machine(monkeypatch, "cuda:0", "cuda:1")
    with pytest.raises(SpecError, match=sentence):
        _resolved(device, num_processes)
    _machine(monkeypatch)
    for gpu in ("cuda:0", "cuda:0,cuda:1", "cuda"):
        with pytest.raises(SpecError, match="but this machine has no GPU"):
            _resolved(gpu)


def test_runs_that_may_be_spread_share_no_base():
    assert sibling_key(_spec("auto")) is not None
    assert sibling_key(_spec("cuda:0,cuda:1")) is None and sibling_key(_spec("all")) is None


def test_windows_has_one_process(monkeypatch):
    monkeypatch.setattr(device_setting.sys, "platform", "win32")
    _machine(monkeypatch, "cuda:0", "cuda:1")
    for wanted in (("all",), ("cuda:0,cuda:1",), ("auto", 2), ("cpu", 2)):
        with pytest.raises(SpecError, match="Windows supports only one: use one device") as error:
            _resolved(*wanted)
        assert error.value.field == "train.num_processes"
    assert _resolved("ray", 8) == ("ray", 8), "the cluster has another system"
    _machine(monkeypatch)
    assert _resolved("all") == ("cpu", 1)

from types import SimpleNamespace

import pytest
import torch

from studio import hardware
from studio.models.find_model import facts
from studio.models.loading import dtype_for
from studio.spec import RunSpec
from studio.training.estimate_memory_and_time import estimate


@pytest.mark.parametrize(
    ("chip", "system", "has"),
    [("Apple M1 Max", "15.2", False), ("Apple M2", "14.0", True), ("Apple M10 Pro", "26.1", True),
     ("Apple M2", "13.6", False), ("Intel(R) Core(TM) i7", "14.0", False)],
)  # fmt: skip
def test_an_apple_gpu_has_bfloat16_from_m2_and_macos_14_on(chip, system, has, monkeypatch):
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    monkeypatch.setattr(hardware.platform, "mac_ver", lambda: (system, ("", "", ""), "arm64"))
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=chip))
    hardware.apple_has_bfloat16.cache_clear()
    assert hardware.apple_has_bfloat16() is has
    assert dtype_for("auto", torch.device("mps")) is (torch.bfloat16 if has else torch.float32)
    mps = hardware.Device(name="mps", label="Apple GPU", total_bytes=1 << 34, free_bytes=1 << 34)
    monkeypatch.setattr(hardware, "devices", lambda: [mps])
    found = estimate(RunSpec(), None)
    hardware.apple_has_bfloat16.cache_clear()
    assert found.dtype == ("bfloat16" if has else "float32"), "counted as it is loaded"
    assert found.parts["weights"] == facts(RunSpec().model).parameters * (2 if has else 4)


def test_the_cpu_is_always_a_device():
    cpu = hardware.devices()[-1]
    assert cpu.name == "cpu"
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hardware.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert hardware.threads() == hardware.physical_cores() >= 1


def test_how_busy_the_processor_is_is_told_once_it_is_measured(monkeypatch):
    spent, clock = [(100.0, 1000.0), (106.0, 1012.0), (500.0, 2000.0)], [0.0, 0.1, 3.0, 900.0]
    monkeypatch.setattr(hardware, "_processor_seconds", lambda: spent.pop(0))
    monkeypatch.setattr(hardware, "time", SimpleNamespace(monotonic=lambda: clock.pop(0)))
    busy = hardware._Utilization()
    assert busy.since_last_call() is None, "nothing is measured at the first question"
    assert busy.since_last_call() is None, "a tenth of a second tells nothing"
    assert busy.since_last_call() == 0.5  # 6 of 12 seconds
    assert busy.since_last_call() is None, "what a quarter of an hour was like is not how it is now"

"""Devices, CPU features, cores, and what OpenMP is given: no clock in any assertion."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from studio import hardware
from studio.models.find_model import facts
from studio.models.loading import dtype_for
from studio.spec import RunSpec
from studio.training.allocator_and_threads import missing_preload, preload
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


NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
# Import a process' module and print what the environment holds when torch is first looked for.
AT_TORCH = """
import importlib.util, json, os, sys
class Watch:
    seen = None
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and Watch.seen is None:
            Watch.seen = dict(os.environ)
sys.meta_path.insert(0, Watch())
__import__(sys.argv[1])
importlib.util.find_spec("torch")
print(json.dumps(Watch.seen))
"""


def variables_at_torch(module: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", AT_TORCH, module], env=clean, text=True, check=True,
        capture_output=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    ["jobs.runner", "jobs.chat_host", "jobs.supervisor", "studio.training.distributed_rank",
     "studio.adapters.verify_logits", "ui.bench.peer_trainers",
     "ui.cli.chat_commands", "ui.cli.main"],
)  # fmt: skip
def test_every_process_that_computes_bounds_the_spin_before_torch_loads(module):
    seen = variables_at_torch(module)
    assert {name: seen[name] for name in hardware.BOUNDED_SPIN} == hardware.BOUNDED_SPIN


def test_these_tests_compute_with_a_bounded_spin_too():
    assert "OMP_WAIT_POLICY" in os.environ or hardware.BOUNDED_SPIN.keys() <= os.environ.keys()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "1"}),
        ({"KMP_BLOCKTIME": "0"}, {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_a_setting_of_the_user_wins(chosen, expected):
    variables = dict(chosen)
    hardware.configure_openmp(variables)
    assert {name: variables[name] for name in NAMES if name in variables} == expected


@pytest.mark.parametrize(
    ("threads", "valid"),
    [*((text, False) for text in ("0", "-2", "many", "2,none", "1.5", " ")),
     *((text, True) for text in ("1", "3", "4,2"))],
)  # fmt: skip
def test_an_invalid_number_of_threads_is_ignored_with_a_sentence(
    threads, valid, caplog, monkeypatch
):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 4)
    variables = {"OMP_NUM_THREADS": threads}
    hardware.configure_openmp(variables)
    assert variables.get("OMP_NUM_THREADS") == (threads if valid else None)
    said = f"OMP_NUM_THREADS={threads} is ignored: it must be a positive integer."
    assert not caplog.text if valid else said in caplog.text


def test_more_threads_than_cores_become_the_cores_with_a_sentence(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 2)
    variables = {"OMP_NUM_THREADS": "64"}
    hardware.configure_openmp(variables)
    assert variables["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS=64 is more than the cores" in caplog.text
    for text, cores in {
        "50000 100000": 1,
        "250000 100000": 2,
        "max 100000": None,
        "": None,
    }.items():
        (tmp_path / "cpu.max").write_text(text)
        assert hardware.cgroup_cores(tmp_path / "cpu.max") == cores


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
def test_an_installed_allocator_is_preloaded_and_the_users_own_wins(tmp_path):
    folders = [str(tmp_path / "*-linux-gnu"), str(tmp_path / "lib")]
    assert preload({}, folders) == {}
    for name in ("x-linux-gnu/libjemalloc.so.2", "lib/libtcmalloc_minimal.so.4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = {"LD_PRELOAD": str(tmp_path / "lib/libtcmalloc_minimal.so.4")}
    assert preload({}, folders) == found
    assert preload({"LD_PRELOAD": ""}, folders) == {}
    assert not missing_preload(found)
    gone = {"LD_PRELOAD": f"{tmp_path}/gone.so:libfound-by-name.so"}
    assert f"{tmp_path}/gone.so, which does not exist" in missing_preload(gone)

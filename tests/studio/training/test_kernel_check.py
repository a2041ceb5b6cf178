"""Which kernels a run uses: the check against plain forms, its results, and what a user reads."""

import copy
import importlib
import json
import os
import stat
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch

from jobs.doctor import examine
from studio.backbone import linear_kernels
from studio.backbone.linear_kernels import PLAIN
from studio.spec import RunSpec
from studio.training import kernel_check
from studio.training.kernel_check import LATE, MEMORY, Size, measure, prepare
from studio.training.train_run import train
from tests.fakegpu import GPU, fake_gpu

CPU = torch.device("cpu")
SMALL = Size(rows=8, hidden=6, inner=10, heads=2, head_dim=4, vocabulary=12)


def slightly_wrong(*args):
    return PLAIN["swiglu"](*args).mul_(1.01)


def not_a_number(*args):
    return PLAIN["swiglu"](*args) * float("nan")


def transposed(*args):
    return PLAIN["swiglu"](*args).T


def fails(*args):
    raise RuntimeError("Failed to find C compiler.\nPlease specify …")


def takes_too_much(*args):
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("kernel", "milliseconds", "why"),
    [
        (PLAIN["swiglu"], 1.0, ""),
        (PLAIN["swiglu"], 2.0, "2 ms, 1.5 without it"),
        (slightly_wrong, 1.0, "its result differs by 0.0"),
        (not_a_number, 1.0, "its result differs by nan"),
        (transposed, 1.0, "its result differs by nan"),
        (fails, 1.0, "RuntimeError: Failed to find C compiler."),
        (takes_too_much, 1.0, MEMORY),
    ],
)
def test_a_kernel_is_used_if_it_is_right_and_faster(kernel, milliseconds, why, monkeypatch):
    times = iter([milliseconds, 1.5])
    monkeypatch.setattr(kernel_check, "milliseconds", lambda *_: next(times))
    found = measure(CPU, torch.float32, {"swiglu": kernel}, (SMALL,))["swiglu"]
    assert found["why"].startswith(why) and bool(found["why"]) == bool(why)


def is_number(x):
    return isinstance(x, torch.Tensor) and not hasattr(x, "quant_state")


@pytest.mark.parametrize("name", PLAIN)
def test_every_output_of_a_kernel_is_compared(name):
    def outputs(args):
        found = PLAIN[name](*args)
        return [*(found if isinstance(found, tuple) else (found,)), *args]

    for args in kernel_check.samples(name, SMALL, CPU, torch.float32):
        before = copy.deepcopy(args)
        tensors = [x for x in outputs(args) if is_number(x)]
        for number in range(len(tensors)):

            def wrong(*given, number=number):
                found = PLAIN[name](*given)
                all_of = [*(found if isinstance(found, tuple) else (found,)), *given]
                [x for x in all_of if is_number(x)][number].add_(1)
                return found

            args = copy.deepcopy(before)
            assert kernel_check.difference(PLAIN[name], PLAIN[name], args) == 0
            assert kernel_check.difference(wrong, PLAIN[name], args) > 0.1, number


def test_the_time_of_a_call_is_measured():
    assert 0 < kernel_check.milliseconds(partial(torch.neg, torch.ones(4)), CPU) < 1000


def used():
    return {name for name, device, _ in linear_kernels._active if device == GPU}


def test_the_result_is_kept_in_the_home_and_told_once(home, monkeypatch):
    loaded = SimpleNamespace(device=GPU, dtype=torch.bfloat16)
    asked, answer = [], {name: {"why": ""} for name in PLAIN}
    answer["rotated"] = {"why": "2 ms, 1.5 without it", "error": 0.0}
    with fake_gpu(triton=True), monkeypatch.context() as patched:
        patched.setattr(kernel_check, "ask", lambda *args: asked.append(args[:2]) or answer)
        spec = RunSpec()
        assert kernel_check.is_due(spec, loaded, home)
        text = prepare(spec, loaded, home)
        assert text == (
            "Triton kernels not used on Fake RTX in bfloat16: rotated (2 ms, 1.5 without it). "
            f"torch's own operations compute the same; delete {home.state / 'kernels.json'} "
            "to check again."
        )
        assert not kernel_check.is_due(spec, loaded, home)
        assert used() == set(PLAIN) - {"rotated"}
        assert prepare(spec, loaded, home) == "" and asked == [("cuda:0", "bfloat16")]
        assert text in [one["text"] for one in examine(home.path)["findings"]]
        assert prepare(spec.with_values({"train.triton_kernels": False}), loaded, home) == ""
        assert used() == set()
        patched.setattr(kernel_check, "_versions", lambda: ["newer"])
        assert prepare(spec, loaded, home) == text and len(asked) == 2
    with fake_gpu():  # without Triton: silent and plain
        assert prepare(spec, loaded, home) == "" and used() == set()
        assert kernel_check.sentences(home) == []


@pytest.mark.parametrize("why", [LATE, MEMORY, "its check ended with exit code -9"])
def test_what_was_not_measured_is_kept_for_a_while(why, home, monkeypatch):
    loaded = SimpleNamespace(device=GPU, dtype=torch.bfloat16)
    clock, asked = [1e9], []

    def ask(*args):
        clock[0] += 10  # seconds of the check
        asked.append(args)
        return {"all": {"why": why}}

    with fake_gpu(triton=True), monkeypatch.context() as patched:
        patched.setattr(kernel_check, "ask", ask)
        patched.setattr(kernel_check, "time", SimpleNamespace(time=lambda: clock[0]))
        for wait, count in ((0, 1), (599, 1), (2, 2)):
            clock[0] += wait
            before = len(asked)
            assert (why in prepare(RunSpec(), loaded, home)) == (count > before)
            assert len(asked) == count and used() == set()
        assert [why in text for text in kernel_check.sentences(home)] == [True]
        clock[0] += 601
        assert kernel_check.sentences(home) == []


def test_a_check_that_fails_leaves_the_plain_forms(home, monkeypatch):
    loaded = SimpleNamespace(device=GPU, dtype=torch.bfloat16)
    with fake_gpu(triton=True), monkeypatch.context() as patched:
        assert prepare(RunSpec(), loaded, home) == "" and used() == set(PLAIN)
        patched.setattr(kernel_check, "_kernels", lambda: 1 / 0)
        assert prepare(RunSpec(), loaded, home).startswith("Triton kernels not used:")
        assert used() == set()
        (home.state / "kernels.json").write_text('{"x / fake": 3, "y / fake": {}}')
        assert kernel_check.sentences(home) == []


@pytest.mark.parametrize(
    ("made", "found", "version"),
    [
        (("triton/__init__.py", "pytorch_triton_rocm-3.2.0.dist-info/METADATA"), True, "3.2.0"),
        (("triton/__init__.py",), True, "unknown"),
        (("triton/notes.txt",), False, "unknown"),
    ],
)
def test_triton_is_found_under_any_distribution(made, found, version, tmp_path, monkeypatch):
    for name in made:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("Name: pytorch-triton-rocm\nVersion: 3.2.0\n")
        (tmp_path / name).with_name("top_level.txt").write_text("triton\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    importlib.invalidate_caches()
    assert kernel_check.installed() == found
    assert kernel_check._versions()[1] == version


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('echo a warning; echo \'{"swiglu": {"why": ""}}\'', None),
        ("echo something else; exit 0", "its check ended with exit code 0"),
        ("kill -SEGV $$", "its check ended with exit code -11"),
        ("sleep 5", LATE),
    ],
)
def test_a_check_that_ends_badly_is_a_reason(script, why, tmp_path, monkeypatch):
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(kernel_check, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(sys, "executable", str(file))
    expected = {"swiglu": {"why": ""}} if why is None else {"all": {"why": why}}
    assert kernel_check.ask("cuda:0", "bfloat16") == expected


def ended(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_stop_ends_the_check_and_what_it_started(tmp_path, monkeypatch):
    file, pids = tmp_path / "python", tmp_path / "pids"
    file.write_text(f"#!/bin/sh\nsleep 60 &\necho $$ $! > {pids}\nwait\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(file))
    assert kernel_check.ask("cuda:0", "bfloat16", pids.exists) == {}
    assert all(ended(int(pid)) for pid in pids.read_text().split())


def test_the_check_ends_with_its_parent():
    read, write = os.pipe()
    command = [sys.executable, "-P", "-m", "studio.training.kernel_check", "cpu", "float32"]
    with subprocess.Popen(command, stdin=read, process_group=0) as child:
        os.close(read)
        assert child.poll() is None
        os.close(write)
        assert child.wait(timeout=60) == -9


def test_a_run_that_is_stopped_during_the_check_ends_without_a_result(home, tmp_path, monkeypatch):
    spec = RunSpec().with_values({
        "train.device": "cuda:0", "train.max_steps": 4, "train.num_samples": 0,
        "train.measure_forgetting": False, "train.self_test": False,
    })  # fmt: skip
    with fake_gpu(triton=True), monkeypatch.context() as patched:
        patched.setattr(kernel_check, "ask", lambda device, dtype, stopped: (
            {} if stopped() else {"all": {"why": "was not stopped"}}
        ))  # fmt: skip
        *_, last = train(spec, run_dir=tmp_path / "run", home=home, control=lambda: "stop")
    assert (last.reason, last.step) == ("stopped", 1)
    assert kernel_check.kernel_results(home).read() == {} and used() == set()


def test_the_child_checks_every_kernel(monkeypatch, capsys):
    pytest.importorskip("triton", reason="Triton is not installed: it is for Linux only")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels are compiled for a card here")
    monkeypatch.setattr(kernel_check.measure, "__defaults__", ((SMALL,),))
    monkeypatch.setattr(kernel_check, "CALLS", 1)
    monkeypatch.setattr(sys, "argv", ["kernel_check", "cpu", "float32"])
    kernel_check.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(PLAIN)
    assert all("without it" in one["why"] and one["error"] < 1e-4 for one in found.values())


def test_a_device_without_a_number_is_the_current_one():
    seen = []
    with fake_gpu(triton=True):
        linear_kernels.activate(
            torch.device("cuda"), torch.float32, {"swiglu": lambda *_: seen.append(1)}
        )
        linear_kernels._active[("swiglu", GPU, torch.float32)]()
        linear_kernels.activate(GPU, torch.float32, {})
    assert seen == [1] and used() == set()

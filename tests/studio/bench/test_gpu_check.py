"""The check of a GPU, on small shapes on the CPU: every check answers, a fault makes it fail."""

import json

import pytest

from studio.backbone import Backbone
from studio.chat import captured_decoding
from studio.training import kernel_check
from tests.fakegpu import fake_gpu
from tests.studio.training.conftest import make_model
from ui.bench import gpu_check
from ui.bench.bench_command import bench


@pytest.mark.slow
def test_every_check_answers_on_small_shapes(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert bench(["gpu-check", "--tiny", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["check"] for row in rows] == [name for name, *_ in gpu_check.CHECKS]
    assert not [row for row in rows if row["ok"] is False or row["seen"] == "no time left"]
    assert "NO" not in capsys.readouterr().out


def test_kernels_and_captured_decoding_have_their_rows(tmp_path, monkeypatch):
    """On a simulated card, with a small model in place of the large one."""
    good = {"milliseconds": 0.5, "plain_milliseconds": 1.25, "error": 0.0, "why": ""}
    answer = {"swiglu": good, "nf4_product": good | {"why": "3 ms, 2 without it"}}
    machine, times = gpu_check.Machine(tmp_path, tiny=False), [1.0, 2.0]
    with fake_gpu(triton=True), monkeypatch.context() as patched:  # undone before the card goes
        patched.setattr(kernel_check, "ask", lambda *_: answer)
        said, ok = gpu_check.triton_kernels(machine)
        assert said.startswith("swiglu 0.5 ms, plain 1.25; nf4_product 0.5 ms") and ok is True
        answer["rotated"] = {"why": "its result differs by 0.5"}
        assert gpu_check.triton_kernels(machine)[1] is False, "wrong, not only slow"

        monkeypatch.setattr(captured_decoding, "milliseconds", lambda *_: times.pop(0))
        machine.backbone = Backbone(make_model().bfloat16().to("cuda:0"))
        said, ok = gpu_check.captured_decoding(machine)
        assert said.startswith("1: ") and "ms a token; 4: " in said and ok is True
        (machine.folder / "home" / "state" / "graphs.json").unlink()
        times[:] = [3.0, 2.0]
        said, ok = gpu_check.captured_decoding(machine)
        assert said.endswith("3 ms a token, 2 without it") and ok is False


def test_a_check_that_fails_is_named_and_does_not_stop_the_next(tmp_path, monkeypatch):
    def broken(machine: gpu_check.Machine) -> gpu_check.Answer:
        raise ValueError("no kernel image is available")

    checks = [("one", "-", broken), ("two", "1", lambda machine: ("2", False)),
              ("three", "-", lambda machine: ("fine", True))]  # fmt: skip
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    result = gpu_check.bench_gpu_check(tmp_path, seconds=60, out="", tiny=True)
    assert [row["ok"] for row in result["rows"]] == [False, False, True]
    first = result["rows"][0]["seen"]
    assert first.startswith("ValueError: no kernel image is available (test_gpu_check.py:")
    assert result["failed"] == 2
    assert bench(["gpu-check", "--tiny"]) == 1
    late = gpu_check.bench_gpu_check(tmp_path, seconds=0, out="", tiny=True)
    assert {row["seen"] for row in late["rows"]} == {"no time left"}

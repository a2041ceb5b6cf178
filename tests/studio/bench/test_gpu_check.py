"""The check of a GPU, on small shapes on the CPU: every check answers, a fault makes it fail."""

import json

import pytest

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

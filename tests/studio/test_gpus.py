import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from studio import gpus, hardware
from studio.training.estimate_memory_and_time import GPU_FLOPS, PRODUCT_SHARE, speed

H100 = "0, GPU-aa11, 580.65, NVIDIA H100, 81559, 80000, 3"
V100 = "1, GPU-bb22, 580.65, Tesla V100, 16160, 16000, 0"
SPARK = "0, GPU-cc33, 580.65, NVIDIA GB10, [N/A], [N/A], 0"
CUDA_13 = {
    "version": "2.13.0", "cuda": "13.0", "hip": "", "backend": "cuda", "notes": [],
    "kernels": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"],
}  # fmt: skip


def card(
    index: int, label: str, capability: tuple[int, int], gibibytes: int, flops: float = 1e14
) -> dict:
    return {
        "index": index, "label": label, "capability": capability,
        "total_bytes": gibibytes << 30, "flops": flops,
    }  # fmt: skip


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Put an `nvidia-smi` with these lines on the path, and have torch answer this."""

    def make(lines: list[str], answer: dict) -> None:
        program = tmp_path / "nvidia-smi"
        shown = "\n".join(lines)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{shown}\nEND\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(gpus, "QUESTION", f"print({json.dumps(json.dumps(answer))})")

    for name in (*gpus.VISIBLE, gpus.ORDER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "user_cache_path", lambda name: tmp_path / "cache")
    gpus._answer.cache_clear()
    yield make
    gpus._answer.cache_clear()


def test_a_wheel_for_cpus_makes_no_slot_of_an_nvidia_card(machine):
    machine([H100], {"version": "2.13.0+cpu", "cuda": "", "hip": "", "backend": "", "cards": []})
    (found,) = gpus.cards()
    assert found.name == ""
    assert "built for CPUs only" in found.why and "2.13.0+cpu" in found.why
    assert "--torch-backend=auto" in found.command
    assert [device.name for device in hardware.devices()] == ["cpu"]


def test_the_torch_of_this_environment_answers_the_question_itself(machine, monkeypatch):
    question = gpus.QUESTION
    machine([H100], {})
    monkeypatch.setattr(gpus, "QUESTION", question)
    answer = gpus._ask()
    assert answer["version"].startswith("2.")
    assert answer["backend"] in ("", "cuda", "rocm", "xpu", "mps")


def test_an_old_driver_is_named_with_the_version_that_torch_wants(machine):
    notes = ["The NVIDIA driver on your system is too old (found version 12040)."]
    machine([H100.replace("580.65", "550.54")], CUDA_13 | {
        "backend": "", "cards": [], "notes": notes,
    })  # fmt: skip
    (found,) = gpus.cards()
    assert "CUDA 13.0" in found.why and "550.54" in found.why and not found.name


def test_a_card_without_kernels_in_the_wheel_is_no_slot_beside_one_that_works(machine):
    machine([H100, V100], CUDA_13 | {
        "cards": [card(0, "H100", (9, 0), 79), card(1, "V100", (7, 0), 15)],
    })  # fmt: skip
    first, second = gpus.cards()
    assert (first.name, first.free_bytes, first.utilization) == ("cuda:0", 80000 << 20, 0.03)
    assert (second.name, second.label) == ("", "Tesla V100")
    assert "7.0" in second.why and "cu126" in second.command
    assert [device.name for device in hardware.devices()] == ["cuda:0", "cpu"]


@pytest.mark.parametrize(
    ("capability", "usable"),
    [((7, 5), True), ((8, 9), True), ((9, 0), True), ((12, 1), True), ((10, 3), True),
     ((11, 0), False), ((6, 1), False), ((7, 0), False), ((13, 0), True)],
)  # fmt: skip
def test_kernels_run_on_later_cards_of_their_generation_and_ptx_on_all_later(capability, usable):
    """`sm_80` covers 8.9; `compute_120` is compiled for 13.0, not for 11.0."""
    why = gpus._no_kernels({"capability": capability}, CUDA_13)
    assert bool(why) is not usable


def test_unified_memory_is_the_systems(machine):
    machine([SPARK], CUDA_13 | {"cards": [card(0, "GB10", (12, 1), 119)]})
    gpu = hardware.devices()[0]
    assert gpu.name == "cuda:0"
    assert gpu.total_bytes == 119 << 30


def test_a_users_own_visible_devices_are_the_frame(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine([H100, V100], CUDA_13 | {
        "cards": [card(0, "V100", (7, 0), 15)], "kernels": ["sm_70"],
    })  # fmt: skip
    (found,) = gpus.cards()
    assert (found.name, found.label, found.free_bytes) == ("cuda:0", "Tesla V100", 16000 << 20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    (found,) = gpus.cards()
    assert found.label == "Tesla V100"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-41b3")  # which `nvidia-smi` does not list so
    (found,) = gpus.cards()
    assert (found.name, found.label, found.total_bytes) == ("cuda:0", "V100", 15 << 30)


def test_an_emptied_variable_is_named(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine([H100], CUDA_13 | {"backend": "", "cards": []})
    (found,) = gpus.cards()
    assert "CUDA_VISIBLE_DEVICES" in found.why and not found.command


def test_cards_of_amd_are_known_from_torch(machine, monkeypatch):
    monkeypatch.setattr(gpus, "_other_signs", lambda: True)
    rocm = {"version": "2.13.0+rocm7.0", "cuda": "", "hip": "7.0", "backend": "rocm"}
    machine([], rocm | {"cards": [card(0, "Radeon RX 7900 XTX", (11, 0), 24)]})
    (found,) = gpus.cards()
    assert (found.name, found.label, found.total_bytes) == (
        "cuda:0", "Radeon RX 7900 XTX", 24 << 30,
    )  # fmt: skip


def test_cards_of_intel_are_used_through_torch_xpu(machine, monkeypatch):
    monkeypatch.setattr(gpus, "_other_signs", lambda: True)
    xpu = {"version": "2.13.0+xpu", "cuda": "", "hip": "", "backend": "xpu", "notes": []}
    machine([], xpu | {"cards": [card(n, "Intel Arc B580", (0, 0), 12) for n in (0, 1)]})
    assert [device.name for device in hardware.devices()] == ["xpu:0", "xpu:1", "cpu"]
    assert hardware.is_card("xpu:0,xpu:1") and not hardware.is_card("mps")
    assert gpus.visible_devices("xpu:1", {}) == {"ZE_AFFINITY_MASK": "1"}
    own = {"ZE_AFFINITY_MASK": "2,3"}
    assert gpus.visible_devices("xpu:0,xpu:1", own) == own


def test_torch_is_asked_once_for_equal_circumstances(machine, tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    machine([H100], {})
    answer = json.dumps(CUDA_13 | {"cards": [card(0, "H100", (9, 0), 79)]})
    monkeypatch.setattr(gpus, "QUESTION", (
        f"open({str(asked)!r}, 'a').write('x'); print({json.dumps(answer)})"
    ))  # fmt: skip
    for _ in range(2):
        gpus._answer.cache_clear()
        assert gpus.cards()[0].name == "cuda:0"
    assert asked.read_text() == "x"
    machine([H100.replace("580.65", "590.10")], {})  # a new driver
    gpus._answer.cache_clear()
    assert gpus.cards()[0].name == "", "the answer for the old driver does not count"


@pytest.mark.parametrize(
    ("line", "flops", "kept"),
    [(H100, 7e14, True), (H100, 0.0, False), (H100[:-1] + "11", 7e14, False)],
    ids=["measured", "not measured", "measured on a busy card"],
)
def test_only_a_speed_that_was_measured_on_idle_cards_is_kept(machine, tmp_path, line, flops, kept):
    machine([line], CUDA_13 | {"cards": [card(0, "H100", (9, 0), 79, flops)]})
    assert gpus.cards()[0].flops == flops
    assert (tmp_path / "cache" / "accelerator.json").exists() is kept


def test_another_question_is_asked_even_if_an_older_one_was_answered(machine):
    for flops in (1e14, 2e14):
        machine([H100], CUDA_13 | {"cards": [card(0, "H100", (9, 0), 79, flops)]})
        gpus._answer.cache_clear()
        assert gpus.cards()[0].flops == flops


def test_a_torch_that_cannot_start_is_not_remembered(machine, tmp_path, monkeypatch):
    machine([H100], {})
    monkeypatch.setattr(gpus, "QUESTION", "raise SystemExit(1)")
    (found,) = gpus.cards()
    assert "could not be started" in found.why
    assert not (tmp_path / "cache").exists()


def test_a_process_that_loads_models_counts_cards_as_slots_do(monkeypatch):
    monkeypatch.delenv(gpus.ORDER, raising=False)
    asked = gpus._fingerprint([])
    gpus.fix_order()
    assert os.environ.pop(gpus.ORDER) == "PCI_BUS_ID"
    monkeypatch.setenv(gpus.ORDER, "PCI_BUS_ID")
    assert gpus._fingerprint([]) == asked, "torch was asked with it"
    monkeypatch.setenv(gpus.ORDER, "FASTEST_FIRST")
    gpus.fix_order()
    assert os.environ[gpus.ORDER] == "FASTEST_FIRST" and gpus._fingerprint([]) != asked


def test_processes_see_their_devices_alone():
    assert gpus.visible_devices("cuda:0,cuda:2", {}) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0,2",
    }  # fmt: skip
    own = {"CUDA_VISIBLE_DEVICES": "GPU-bb22,3", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert gpus.visible_devices("cuda:1", own) == {
        "CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "3",
    }  # fmt: skip
    hip = gpus.visible_devices("cuda:0", {"HIP_VISIBLE_DEVICES": "2"})
    assert hip["HIP_VISIBLE_DEVICES"] == "2"
    assert set(gpus.visible_devices("cpu", {}).values()) == {"-1"}
    assert gpus.visible_devices("mps", {}) == {}


def test_the_speed_of_a_card_is_measured_and_guides_the_estimate(machine, home):
    small = gpus.QUESTION + "\nprint(flops(torch.cpu, 0, 8, size=64))"
    child = subprocess.run(
        [sys.executable, "-c", small], capture_output=True, text=True, check=True
    )
    assert float(child.stdout.rpartition("}")[2]) > 1e6
    fast = card(0, "NVIDIA H100", (9, 0), 80) | {"flops": 7e14}
    machine([H100], CUDA_13 | {"cards": [fast]})
    device = hardware.devices()[0]
    assert device.flops == 7e14
    assert speed(device, home) == 7e14 * PRODUCT_SHARE
    assert speed(replace(device, flops=0.0), home) == GPU_FLOPS

"""Devices, memory, CPU features, cores and threads of this machine.

GPUs are those that torch can use (`studio.gpus`), so that the queue, the page and training
agree; their free memory comes from the driver, without a CUDA context. Only the functions on
torch's modules import torch.
"""

import logging
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from studio import gpus

logger = logging.getLogger(__name__)
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
# libgomp counts turns of its loop; Intel's and LLVM's OpenMP count milliseconds.
BOUNDED_SPIN = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A CPU or GPU; `name` is its torch device, `flops` what one large product reaches on a GPU."""

    name: str
    label: str
    total_bytes: int
    free_bytes: int
    utilization: float | None = None
    flops: float = 0.0
    capability: tuple[int, int] = (0, 0)

    @property
    def has_flash(self) -> bool:
        """True for a GPU with FlashAttention-2, as `backbone/attention_kernels.py` uses it."""
        return self.name.startswith("cuda") and not (0, 0) < self.capability < (8, 0)


def devices() -> list[Device]:
    """Return the GPUs in torch's order, then the CPU."""
    return [*_gpus(), *_apple(), _cpu()]


def is_card(name: str) -> bool:
    """Return True if a device, or the first of several, is a GPU with memory of its own."""
    return name.startswith(("cuda", "xpu"))


def blocked() -> list[gpus.Card]:
    """Return the GPUs that torch cannot use, each with the reason and what to do."""
    return [card for card in gpus.cards() if card.why]


def usable_cores() -> int:
    """Return the number of logical cores that this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return max(1, min(allowed or os.cpu_count() or 1, cgroup_cores() or sys.maxsize))


def cgroup_cores(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Return the cores of this process' control group, at least 1; None without a limit."""
    try:
        quota, period = file.read_text(encoding="utf-8").split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def physical_cores() -> int:
    """Return the number of physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or sys.maxsize, usable_cores())


def threads() -> int:
    """Return the thread count for torch: `OMP_NUM_THREADS` where set, else the physical cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else physical_cores()


def configure_openmp(variables: MutableMapping[str, str] = os.environ) -> None:
    """Bound the spin unless the user chose a setting; correct an impossible number of threads.

    At each barrier libgomp spins about 300,000 turns before it sleeps. Beside one busy process the
    thread that is waited for has no core meanwhile, and a run takes nine times as long. A bounded
    spin costs a quiet machine little. OpenMP reads its variables once, when torch loads it, and
    child processes inherit them, so `studio/__init__.py` sets them before anything else.
    """
    threads, cores = variables.get("OMP_NUM_THREADS"), usable_cores()
    if threads and not all(n.strip().isdecimal() and int(n) > 0 for n in threads.split(",")):
        del variables["OMP_NUM_THREADS"]
        logger.warning(
            "OMP_NUM_THREADS=%s is ignored: it must be a positive integer. All physical cores are "
            "used.", threads[:80],
        )  # fmt: skip
    elif threads and int(threads.split(",")[0]) > cores:
        variables["OMP_NUM_THREADS"] = str(cores)
        logger.warning(
            "OMP_NUM_THREADS=%s is more than the cores that this process may use: %d threads "
            "are used.", threads[:80], cores,
        )  # fmt: skip
    if not variables.get("OMP_WAIT_POLICY"):
        for name, value in BOUNDED_SPIN.items():
            variables.setdefault(name, value)


@cache
def cpu_features() -> frozenset[str]:
    """Return the `FEATURES` of the CPU; empty if the system does not report them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [one for one in text.splitlines() if one.lower().startswith(("flags", "features"))]
    flags = {word for line in lines for word in line.partition(":")[2].split()}
    return frozenset(flags & set(FEATURES))


def has_fast_bfloat16() -> bool:
    """Return True if the CPU has bfloat16 matrix instructions."""
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def apple_has_bfloat16() -> bool:
    """Return True if the GPU of this Apple chip has bfloat16: M2 and later, from macOS 14 on."""
    if sys.platform != "darwin":
        return False
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        brand = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    chip, system = re.match(r"Apple M(\d+)", brand), platform.mac_ver()[0].partition(".")[0]
    return bool(chip and int(chip[1]) >= 2 and system.isdecimal() and int(system) >= 14)


def process_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: Any) -> int:
    """Begin a new peak of memory: torch's on a GPU, this process's else; return what is in use."""
    if of := torch_module(device):
        of.reset_peak_memory_stats(device)
        return int(of.memory_allocated(device))
    with suppress(OSError):  # where the system supports it
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return process_bytes()


def peak_bytes(device: Any) -> int:
    """Return the peak since `reset_peak`."""
    if of := torch_module(device):
        return int(of.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM"):
                return int(line.split()[1]) << 10
    return process_bytes()


class _Utilization:
    """CPU utilization between two calls from any thread; None if not measured yet.

    psutil's own counter is per thread and starts at 0.
    """

    SHORTEST, LONGEST = 0.5, 15.0  # seconds between two measurements

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at, self._spent = -self.LONGEST, (0.0, 0.0)
        self._share: float | None = None

    def since_last_call(self) -> float | None:
        """Return the utilization since the last call, from 0 to 1."""
        with self._lock:
            now = time.monotonic()
            if now - self._at < self.SHORTEST:
                return self._share
            (busy, whole), recent = _processor_seconds(), now - self._at < self.LONGEST
            (busy_before, before), self._spent = self._spent, (busy, whole)
            self._at = now
            spent = max(0.0, busy - busy_before) / max(whole - before, 1e-9)
            self._share = min(1.0, spent) if recent else None
            return self._share


_utilization = _Utilization()


def _processor_seconds() -> tuple[float, float]:
    """Return the busy and the total seconds of all cores since the system started."""
    times = psutil.cpu_times()._asdict()
    whole = sum(times.values()) - times.get("guest", 0) - times.get("guest_nice", 0)
    return whole - times["idle"] - times.get("iowait", 0), whole


def _cpu() -> Device:
    memory = psutil.virtual_memory()
    return Device(
        name="cpu",
        label=f"{cpu_name()}, {physical_cores()} cores{', bfloat16' * has_fast_bfloat16()}",
        total_bytes=int(memory.total),
        free_bytes=int(memory.available),
        utilization=_utilization.since_last_call(),
    )


def busy_cores() -> float:
    """Return how many cores other processes than this one use, measured for half a second."""
    meter = OtherWork()
    time.sleep(0.5)
    return meter.cores()


class OtherWork:
    """Processor time of other processes since the last question."""

    def __init__(self) -> None:
        self._before = self._read()

    def cores(self) -> float:
        """Return the number of cores that other processes kept busy since the last call."""
        (busy, own, at), before = self._read(), self._before
        self._before = busy, own, at
        return max(0.0, (busy - before[0]) - (own - before[1])) / max(at - before[2], 1e-9)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        return _processor_seconds()[0], time.process_time(), time.monotonic()


@cache
def cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"


def _apple() -> list[Device]:
    if not gpus.has_mps():
        return []
    memory = psutil.virtual_memory()
    return [Device(name="mps", label="Apple GPU", total_bytes=int(memory.total),
                   free_bytes=int(memory.available))]  # fmt: skip


def _gpus() -> list[Device]:
    memory = psutil.virtual_memory()  # a card without memory of its own uses the system's
    return [
        Device(
            name=card.name, label=card.label, total_bytes=card.total_bytes or int(memory.total),
            free_bytes=card.free_bytes if card.total_bytes else int(memory.available),
            utilization=card.utilization, flops=card.flops, capability=card.capability,
        )
        for card in gpus.cards() if card.name
    ]  # fmt: skip


def torch_module(device: Any) -> Any:
    """Return `torch.cuda` or `torch.xpu` for a device or its name; None for those without memory.

    A CPU and Apple's GPU have none of their own.
    """
    import torch

    return {"cuda": torch.cuda, "xpu": torch.xpu}.get(str(device).partition(":")[0])


def return_cached_memory() -> None:
    """Return what torch keeps of freed memory to every GPU."""
    import torch

    for of in (torch.cuda, torch.xpu):
        if of.is_available():
            of.empty_cache()

"""Memory and threads of a training process: allocators, caches, chunks of logits, CPU threads.

Threads wait for each other after every operation, so one that shares its core slows all of them: on
a machine of N cores of which one is busy, N - 1 threads may be faster than N. While other programs
need the same cores, both numbers are measured and the faster one is kept. On a quiet machine the
number never changes, and equal runs stay equal.

The queue reads this module too, so torch is imported where it is used.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from studio import hardware
from studio.hardware import usable_cores

if TYPE_CHECKING:
    import torch

LIBRARIES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libjemalloc.so.2")
FOLDERS = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/lib64")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
REUSED_BYTES, GIVE_BYTES = 8 << 20, 1 << 20
CHUNK_NUMBERS, CHUNK_ROWS = 8_000_000, 128  # logits held at once: at least these, of whole rows
GPU_CHUNK_SHARE, GPU_CHUNK_NUMBERS = 0.02, 256_000_000
WIDE_NUMBERS = 500_000  # of them in float32 at once on a CPU: 2 MB fit its cache

STEPS, SECONDS = 4, 1.0  # that a measurement of threads takes at least


def chunk_numbers(device_bytes: int, vocabulary: int) -> int:
    """Return how many logits are held at once; on a GPU up to 2 % of its memory, 6 bytes each.

    Each chunk reads the whole head twice. So a chunk has at least 128 rows: with a vocabulary of
    256,000 and 16 bit, 64 MB of logits and two reads of a 1 GB head, about as long as the products.
    """
    least = max(CHUNK_NUMBERS, CHUNK_ROWS * vocabulary)
    return max(least, min(GPU_CHUNK_NUMBERS, int(GPU_CHUNK_SHARE * device_bytes / 6)))


def reuse_freed_memory() -> None:
    """Let glibc reuse freed tensors of up to 8 MB and return larger ones to the system.

    glibc's default threshold grows to the largest tensor that was freed, and smaller blocks then
    fragment the heap. Steps of a 30 M model with 6,400 tokens take 1.9 GB with 8 MB, 2.5 GB with
    32 MB, and 1.8 GB with 1 MB, where new pages cost a fifth of the speed.
    """
    _tune({M_MMAP_THRESHOLD: REUSED_BYTES, M_TRIM_THRESHOLD: 2 * REUSED_BYTES, M_TOP_PAD: 0})


def keep_few_kernels() -> None:
    """Limit oneDNN's cache to 64 compiled matrix products (default 1,024).

    It compiles one per shape of a bfloat16 product, and packed batches rarely repeat a number of
    tokens: a 30 M model grew by 25 MB per step. A step needs about 30.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def give_back_freed_memory() -> None:
    """Let glibc return the pages of tensors above 1 MB as soon as they are freed.

    Sharded layers that are gathered and freed again fragment the heap: with two processes over 87 M
    parameters it grew to 2.0 GB, with this to 1.1 GB.
    """
    _tune({M_MMAP_THRESHOLD: GIVE_BYTES, M_TRIM_THRESHOLD: GIVE_BYTES, M_TOP_PAD: 0})


def trim() -> None:
    """Return all freed memory to the system now, where glibc can, and that of GPUs."""
    from studio.hardware import return_cached_memory

    gc.collect()
    return_cached_memory()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _tune(wanted: dict[int, int]) -> None:
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for option, value in wanted.items():
                mallopt(option, value)


def preload(
    variables: Mapping[str, str] = os.environ, folders: Iterable[str] = FOLDERS
) -> dict[str, str]:
    """Return `LD_PRELOAD` with an installed allocator, for processes that train on Linux.

    Empty if there is none, or if the user set the variable, to nothing or to another library.
    """
    if "LD_PRELOAD" in variables or not sys.platform.startswith("linux"):
        return {}
    found = (
        {"LD_PRELOAD": str(path)}
        for library in LIBRARIES
        for folder in folders
        for path in sorted(Path("/").glob(f"{folder.lstrip('/')}/{library}"))
    )
    return next(found, {})


def missing_preload(variables: Mapping[str, str] = os.environ) -> str:
    """Return a sentence on preloaded libraries that are missing; empty if there are none."""
    names = variables.get("LD_PRELOAD", "").replace(":", " ").split()
    gone = [name for name in names if "/" in name and not Path(name).exists()]
    return f"LD_PRELOAD names {gone[0]}, which does not exist: it is ignored." if gone else ""


class Threads:
    """Chooses the number of threads between steps, and words for the run's page."""

    def __init__(
        self, most: int, *, use: Callable[[int], None], cores: int = 0,
        others: Callable[[], float] | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Begin with `most` threads on `cores` cores; `others` returns those in use by others."""
        self.most, self.now = most, most
        self._cores, self._use, self._clock = cores or usable_cores(), use, clock
        self._others = others or hardware.OtherWork().cores
        self._speeds: list[float] = []
        self._known: dict[int, float] = {}
        self._excess, self._since, self._text = 0, clock(), ""

    def after_step(self, tokens_per_second: float) -> str:
        """Choose the threads of the next step; return words where there is something new to say."""
        self._speeds.append(tokens_per_second)
        if len(self._speeds) < STEPS or self._clock() - self._since < SECONDS:
            return ""
        speed, others = statistics.median(self._speeds), self._others()
        self._speeds, self._since = [], self._clock()
        excess = max(0, round(others + self.most - self._cores))
        if excess != self._excess or speed < self._known.get(self.now, 0) / 1.5:
            self._excess, self._known = excess, {}
        self._known[self.now] = speed
        choices = sorted({self.most, max(1, self.most - excess)})
        untried = [number for number in choices if number not in self._known]
        best = max(choices, key=lambda number: self._known.get(number, 0.0))
        chosen = untried[0] if untried else best
        if chosen != self.now:
            self.now = chosen
            self._use(chosen)
        text = (
            f"Training beside other programs, which use {others:.0f} of {self._cores} cores"
            if excess else "Training"
        )  # fmt: skip
        before, self._text = self._text or "Training", text
        return text if text != before else ""


def threads_of(device: torch.device, processes: int) -> Threads | None:
    """Return the chooser of a run in one process on a CPU, if the user did not choose."""
    if device.type != "cpu" or processes > 1 or os.environ.get("OMP_NUM_THREADS"):
        return None
    from torch import set_num_threads

    return Threads(hardware.threads(), use=set_num_threads)

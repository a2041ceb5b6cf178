"""Choose the number of threads of a run on a processor that other programs use too.

Threads wait for each other after every operation, so one that shares its core slows all of them: on
a machine of N cores of which one is busy, N - 1 threads may be faster than N. While other programs
need the same cores, both numbers are measured and the faster one is kept. On a quiet machine the
number never changes, and equal runs stay equal.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from studio import hardware
from studio.hardware import usable_cores

STEPS, SECONDS = 4, 1.0  # that a measurement takes at least


class Threads:
    """Chooses the number of threads between steps, and words for the run's page."""

    def __init__(
        self, most: int, *, cores: int = 0, others: Callable[[], float] | None = None,
        use: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.monotonic,
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
    return Threads(hardware.threads())

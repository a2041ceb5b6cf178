"""One peer in its own process: train a round at each line from the parent, then report it.

`python -m ui.bench.peer_worker PEER FOLDER` reads a line before each round and answers with one
JSON line after it, so that several peers take turns on one machine and share its noise. All of them
are timed around the same thing: from taking a step's rows to the updated weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from studio import hardware
from ui.bench.training_case import BenchCase, BenchRow, bench_device, read_case

PEAK_SECONDS = 5.0  # then whatever was reached counts


class Turnstile:
    """Starts a round when the parent asks for it, and reports it when it is over."""

    def __init__(self, case: BenchCase, rows: list[BenchRow]) -> None:
        self.case, self.rows = case, rows
        self.base_bytes = 0
        self.seconds: list[float] = []
        self.steps: list[dict[str, float]] = []
        self.flops_per_token = 0.0
        self._started = 0.0

    def before(self, step: int) -> None:
        """Call before a step; waits at the start of a round."""
        if step % self.case.steps_per_round == 0:
            sys.stdin.readline()
            if step in (0, self.case.steps_per_round):  # what warming up took does not count
                in_use = hardware.reset_peak(bench_device())
                self.base_bytes = self.base_bytes or in_use
        self._started = time.perf_counter()

    def after(self) -> None:
        """Call as soon as the weights are updated."""
        self.seconds.append(time.perf_counter() - self._started)

    @contextmanager
    def counting(self, step: int) -> Iterator[None]:
        """Count the arithmetic of the first step, which warms up and is not timed."""
        if step:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        counter: Any = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()
        with counter:
            yield
        tokens = self._tokens(0, 1)
        self.flops_per_token = counter.get_total_flops() / tokens

    def note(self, *, loss: float, grad_norm: float) -> None:
        """Call with the step's figures; reports at the end of a round."""
        self.steps.append({"loss": loss, "grad_norm": grad_norm})
        done = len(self.steps)
        if done % self.case.steps_per_round == 0:
            self._report(done - self.case.steps_per_round, done)

    def _tokens(self, first: int, last: int) -> int:
        size = self.case.batch * self.case.width
        return sum(len(row.input_ids) for row in self.rows[first * size : last * size])

    def _report(self, first: int, last: int) -> None:
        report = {
            "tokens": self._tokens(first, last),
            "examples": (last - first) * self.case.batch,
            "seconds": sum(self.seconds[first:last]),
            "steps": self.steps[first:last],
            "peak_bytes": max(0, hardware.peak_bytes(bench_device()) - self.base_bytes),
            "base_bytes": self.base_bytes,
            "flops_per_token": self.flops_per_token,
        }
        print(json.dumps(report), flush=True)


class _NoModules(AbstractContextManager[None]):
    """A stand-in for torch's module tracker, whose hooks fail in a backward within a backward."""

    parents = frozenset({"Global"})

    def __exit__(self, *error: object) -> None:
        return None


def matmul_peak(dtype: str) -> float:
    """Return the most FLOP/s this machine reaches on one large product."""
    rows, inner, outer = 1024, 1024, 4096
    import torch

    device, kind = bench_device(), getattr(torch, dtype)
    a = torch.randn(rows, inner, device=device, dtype=kind)
    b = torch.randn(inner, outer, device=device, dtype=kind)
    best, first = float("inf"), time.perf_counter()
    for _ in range(12):
        started = time.perf_counter()
        if started - first > PEAK_SECONDS:  # a precision that this processor only emulates
            break
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * outer / best


def main() -> None:
    """Run one peer over a prepared case, or prepare it."""
    import os

    import torch

    from ui.bench import peer_trainers
    from ui.bench.training_case import prepare_case

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(hardware.threads())
    peer, folder = sys.argv[1], Path(sys.argv[2])
    if peer == "prepare":
        prepare_case(BenchCase(**json.loads(sys.argv[3])), folder)
        return
    case, rows = read_case(folder)
    if peer == "peak":
        print(json.dumps({"flops": matmul_peak(case.dtype)}))
        return
    run: Any = peer_trainers.PEERS[peer]
    run(folder, case, rows, Turnstile(case, rows))


if __name__ == "__main__":
    main()

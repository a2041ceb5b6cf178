"""A run on several devices or processes: what each of them takes of the rows, holds and waits for.

Data parallel (DDP): each holds the base, the adapter and the optimizer whole, and takes every n-th
row of a step. FSDP: of the frozen layers each keeps an n-th part, with one layer whole at a time.
GPUs have their own memory; processes on a processor share one, and a base that is only mapped from
its file is there once. Pure arithmetic for `estimate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studio import hardware
from studio.training.schedule import Plan

EFFICIENCY = 0.9
"""Of the speed that n devices have in theory: measured 1.81 times for two CPU processes, which is
0.905 each; a guess for GPUs."""
START_SECONDS = 5.0  # until new processes are where a warm one is
MESSAGE_BYTES = 256_000_000  # a GPU's buffers for talking to the others: a guess
LIBRARIES_BYTES = 110_000_000  # of a CPU process: pages of the libraries' files, there once for all
LEADER_BYTES = 165_000_000  # what the process that started the others holds of its own
MOST_STEPS = 4000
FILE_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the batches are: the largest one of any process, the mean step, and a process's of it.

    `share_tokens` is the mean over steps of the largest share: the others wait for it.
    """

    tokens: int
    targets: int
    step_tokens: float
    step_targets: float
    share_tokens: float
    share_targets: float


def loads(
    plan: Plan, lengths: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, *,
    packing: bool, processes: int = 1,
) -> Load:  # fmt: skip
    """Return the largest batch of the run and its mean step, in the run's own order."""
    size, loss = np.asarray(lengths), np.asarray(targets)
    steps = min(plan.total_steps, max(1, MOST_STEPS // processes))
    most = np.zeros(2, dtype=np.int64)
    total, share = np.zeros(2), np.zeros(2)
    for step in range(steps):
        largest = np.zeros(2, dtype=np.int64)
        for process in range(processes):
            own = np.zeros(2, dtype=np.int64)
            for rows in plan.micro_batches(step, process=process, processes=processes):
                taken = size[rows]
                tokens = taken.sum() if packing else taken.max() * len(rows)
                batch = np.array([tokens, loss[rows].sum()])
                most, own = np.maximum(most, batch), own + batch
            largest, total = np.maximum(largest, own), total + own
        share += largest
    return Load(
        tokens=int(most[0]), targets=int(most[1]), step_tokens=float(total[0] / steps),
        step_targets=float(total[1] / steps), share_tokens=float(share[0] / steps),
        share_targets=float(share[1] / steps),
    )  # fmt: skip


def slowdown(processes: int, *, on_gpu: bool) -> float:
    """Return how much longer a process takes for a row than one that has the machine alone.

    CPU processes divide the processor's threads between them.
    """
    if processes == 1:
        return 1.0
    threads = hardware.threads()
    fewer = 1.0 if on_gpu else threads / max(1, threads // processes)
    return fewer / EFFICIENCY


def is_mapped(file_type: str, dtype: str, quantization: str, *, on_gpu: bool) -> bool:
    """Whether the base's tensors are the pages of its file: loaded on a processor as they are."""
    return not on_gpu and quantization == "none" and FILE_TYPES.get(file_type) == dtype

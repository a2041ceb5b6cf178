"""The plan of a run as pure functions: how many steps, which rows each takes, how large it is.

Nothing here has state: rows and learning rate follow from (seed, step) alone, so a resumed run
needs no sampler or scheduler to be restored. It knows counts, not models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from studio.errors import DataError
from studio.methods import Method
from studio.spec import RunSpec, TrainArgs

REFERENCE_WIDTH = 2000
MOST_EVAL_ROWS = 1_000_000
LION_SHARE = 0.2  # its paper asks for a rate three to ten times smaller than AdamW's
STABLE_SHARE = 0.8  # of the steps after warm-up, for warmup_stable_decay


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every count of a run, decided before its first step."""

    num_rows: int
    rows_per_step: int
    micro_batch: int
    total_steps: int
    warmup_steps: int
    eval_every: int
    eval_rows: int
    save_every: int
    learning_rate: float
    scheduler: str
    seed: int
    shuffled: bool = True

    def step_rows(self, step: int) -> list[int]:
        """Return the rows of one optimizer step (counted from 0), in order."""
        start = step * self.rows_per_step
        rows: list[int] = []
        while len(rows) < self.rows_per_step:
            epoch, place = divmod(start + len(rows), self.num_rows)
            end = min(self.num_rows, place + self.rows_per_step - len(rows))
            if self.shuffled:
                order = epoch_order(self.num_rows, seed=self.seed, epoch=epoch)
                rows.extend(order[place:end].tolist())
            else:
                rows.extend(range(place, end))
        return rows

    def micro_batches(self, step: int, *, process: int = 0, processes: int = 1) -> list[list[int]]:
        """Return this process's share of the step's rows, split into batches."""
        rows = self.step_rows(step)[process::processes]
        return [rows[i : i + self.micro_batch] for i in range(0, len(rows), self.micro_batch)]

    def most_passes(self, processes: int) -> int:
        """Return how many batches the process with the largest share takes each step."""
        share = math.ceil(self.rows_per_step / processes)
        return math.ceil(share / self.micro_batch)

    def step_seed(self, step: int) -> int:
        """Return the seed of everything random within a step (dropout, noise)."""
        return int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])

    def epoch(self, step: int) -> float:
        """Return how many passes over the data are done after `step` steps."""
        return step * self.rows_per_step / self.num_rows

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return lr_at(
            step,
            peak=self.learning_rate,
            total=self.total_steps,
            warmup=self.warmup_steps,
            scheduler=self.scheduler,
        )


def plan_run(spec: RunSpec, *, num_rows: int, hidden_size: int) -> Plan:
    """Decide every count of a run.

    A step never takes more rows than there are, so a dataset smaller than the batch trains as one
    full batch.

    Raises:
        DataError: There are no rows.
    """
    if num_rows < 1:
        raise DataError(f"{spec.data.path} has no usable row to train on.")
    args = spec.train
    rows_per_step = min(args.rows_per_step, num_rows)
    total = args.max_steps
    if total < 1:
        total = math.ceil(num_rows * args.num_train_epochs / rows_per_step)
    warmup = args.warmup_steps if args.warmup_steps >= 0 else math.ceil(0.05 * total)
    return Plan(
        num_rows=num_rows,
        rows_per_step=rows_per_step,
        micro_batch=min(args.per_device_train_batch_size, rows_per_step),
        total_steps=total,
        warmup_steps=min(warmup, total),
        eval_every=_cadence(args.eval_steps, total, times=10),
        eval_rows=_eval_rows(args, trained_rows=total * rows_per_step),
        save_every=_cadence(args.save_steps, total, times=5),
        learning_rate=learning_rate(args, spec.method, hidden_size),
        scheduler=args.lr_scheduler_type,
        seed=spec.seed,
    )


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the rows in an epoch, a function of (seed, epoch) alone."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.setflags(write=False)
    return order


def learning_rate(args: TrainArgs, method: Method, hidden_size: int) -> float:
    """Return the peak learning rate: the person's, or the method's scaled to the model."""
    if args.learning_rate == "auto":
        return lr_for(method, hidden_size) * (LION_SHARE if args.optim == "lion" else 1.0)
    return float(args.learning_rate)


def lr_for(method: Method, hidden_size: int) -> float:
    """Return the method's learning rate for a model's width, at most the method's largest.

    `lr = base (2000 / D)^0.775`, fitted on Llama models of many sizes; below a width of about 100
    the fit has no data, hence the bound.

    Source: "LoRA Without Regret", Schulman and Thinking Machines Lab, 2025.
    """
    scaled = method.base_learning_rate * (REFERENCE_WIDTH / max(hidden_size, 1)) ** 0.775
    return min(scaled, method.largest_learning_rate)


def lr_at(step: int, *, peak: float, total: int, warmup: int, scheduler: str) -> float:
    """Return the learning rate of a step, counted from 0.

    Warm-up rises linearly to `peak` over `warmup` steps and its first step is not zero, so no step
    is wasted.
    """
    if scheduler == "constant":
        return peak
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if scheduler == "constant_with_warmup":
        return peak
    if scheduler == "linear":
        return peak * (1 - done)
    if scheduler == "warmup_stable_decay":
        return peak * min(1.0, (1 - done) / (1 - STABLE_SHARE))
    assert scheduler == "cosine", scheduler
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def _eval_rows(args: TrainArgs, *, trained_rows: int) -> int:
    """How many held-out rows one evaluation takes, always the same ones.

    With the cadence left to us, ten evaluations together cost at most a sixth of the training
    (they are forward passes over half as many rows); a cadence of the person's takes all rows.
    """
    return MOST_EVAL_ROWS if args.eval_steps > 0 else max(16, trained_rows // 20)


def _cadence(wanted: int, total: int, *, times: int) -> int:
    """Steps between two events; a number beyond the run means never."""
    if wanted < 0:
        return total + 1
    return wanted or max(1, math.ceil(total / times))

"""Plan a run: number of steps, rows of each step, learning-rate schedule (pure functions).

Rows and learning rate follow from (seed, step) alone, so a resumed run restores no sampler and no
scheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from studio.errors import DataError
from studio.methods import Method
from studio.spec import RunSpec
from studio.train_args import TrainArgs
from studio.training.objectives import LEARNING_RATES

REFERENCE_WIDTH = 2000
AUTO_EVAL_ROWS, MOST_EVAL_ROWS = 64, 1_000_000
LION_SHARE = 0.2  # Lion's rate is three to ten times smaller than AdamW's
FACTORS = tuple(10 ** (place / 2) for place in (-1, 0, 1, 2))  # of the rate, in its search
TRIAL_SHARE, FEWEST_TRIAL_STEPS = 4, 5
STABLE_SHARE = 0.8  # of the steps after warmup, for warmup_stable_decay


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every count of a run, fixed before its first step."""

    num_rows: int
    rows_per_step: int
    micro_batch: int
    total_steps: int
    warmup_steps: int
    eval_every: int
    eval_rows: int
    """The first held-out rows that each evaluation takes, the same ones however long a run is."""
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
        """Return a rank's rows of the step, split into micro-batches."""
        rows = self.step_rows(step)[process::processes]
        return [rows[i : i + self.micro_batch] for i in range(0, len(rows), self.micro_batch)]

    def most_passes(self, processes: int) -> int:
        """Return the largest number of micro-batches that a rank takes per step."""
        share = math.ceil(self.rows_per_step / processes)
        return math.ceil(share / self.micro_batch)

    def step_seed(self, step: int) -> int:
        """Return the random seed of a step (dropout, noise)."""
        return int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])

    def epoch(self, step: int) -> float:
        """Return the passes over the data after `step` steps."""
        return step * self.rows_per_step / self.num_rows

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return lr_at(
            step, peak=self.learning_rate, total=self.total_steps, warmup=self.warmup_steps,
            scheduler=self.scheduler,
        )  # fmt: skip


def plan_run(
    spec: RunSpec, *, num_rows: int, hidden_size: int, num_held_out: int = AUTO_EVAL_ROWS
) -> Plan:
    """Return the plan of a run.

    A dataset smaller than the batch trains as one full batch.

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
    # Of a row an evaluation does a third of the work: all of them take a sixth of the run at most.
    evaluations = total * rows_per_step // (2 * max(1, min(num_held_out, AUTO_EVAL_ROWS)))
    warmup = args.warmup_steps if args.warmup_steps >= 0 else math.ceil(0.05 * total)
    return Plan(
        num_rows=num_rows,
        rows_per_step=rows_per_step,
        micro_batch=min(args.per_device_train_batch_size, rows_per_step),
        total_steps=total,
        warmup_steps=min(warmup, total),
        eval_every=_interval(args.eval_steps, total, times=min(max(evaluations, 2), 10)),
        eval_rows=MOST_EVAL_ROWS if args.eval_steps > 0 else AUTO_EVAL_ROWS,
        save_every=_interval(args.save_steps, total, times=5),
        learning_rate=learning_rate(args, spec.method, hidden_size),
        scheduler=args.lr_scheduler_type,
        seed=spec.seed,
    )


def trial_steps(total: int) -> int:
    """Return the steps of each trial in the search of the rate, for a run of `total` steps."""
    return min(total, max(FEWEST_TRIAL_STEPS, total // TRIAL_SHARE))


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order of rows in an epoch, a function of (seed, epoch) alone."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.setflags(write=False)
    return order


def learning_rate(args: TrainArgs, method: Method, hidden_size: int) -> float:
    """Return the peak learning rate: the user's, or the method's default scaled to the model.

    Losses of preferences take a fraction of it, since small changes of probabilities suffice.
    """
    if args.learning_rate == "auto":
        rate = lr_for(method, hidden_size) * LEARNING_RATES[args.loss]
        return rate * (LION_SHARE if args.optim == "lion" else 1.0)
    return float(args.learning_rate)


def lr_for(method: Method, hidden_size: int) -> float:
    """Return the method's learning rate for a model's width, up to the method's maximum.

    `lr = base (2000 / D)^e`. LoRA's `e` of 0.775 was fitted on Llama models of many sizes; those of
    other methods lead from the rate that papers advise at large widths to the best one measured at
    small ones (`ui/bench/learning_rates.json`), which is also the bound.

    Source: "LoRA Without Regret", Schulman and Thinking Machines Lab, 2025; `studio bench rates`.
    """
    growth = (REFERENCE_WIDTH / max(hidden_size, 1)) ** method.width_exponent
    scaled = method.base_learning_rate * growth
    return min(scaled, method.largest_learning_rate)


def lr_at(step: int, *, peak: float, total: int, warmup: int, scheduler: str) -> float:
    """Return the learning rate of a step, counted from 0.

    Warmup rises linearly to `peak` over `warmup` steps; its first step is not zero.
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


def _interval(wanted: int, total: int, *, times: int) -> int:
    """Return the steps between two events; a number beyond the run means never."""
    if wanted < 0:
        return total + 1
    return wanted or max(1, math.ceil(total / times))

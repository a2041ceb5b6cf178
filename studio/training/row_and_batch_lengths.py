"""Lengths of a run's rows and batches in tokens, for estimates of its memory and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from studio.errors import DataError
from studio.home import Home
from studio.models.find_model import ModelFacts
from studio.spec import RunSpec
from studio.training.activation_sizes import Shape
from studio.training.steps_and_learning_rate import Plan

if TYPE_CHECKING:
    from studio.data.prepare_run_data import Prepared

MOST_STEPS = 4000


def shares_prompts(spec: RunSpec, shape: Shape) -> bool:
    """Return True if a prompt is computed once for all its answers, by the configuration."""
    args = spec.train
    return args.packing and not args.neftune_noise_alpha and shape.only_attends


def answer_lengths(
    spec: RunSpec, shape: Shape, known: ModelFacts, lengths: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the tokens of each prompt with its answers (GRPO), and how many more they may have.

    Answers are expected to be as long as the rows' own, or half of the maximum where these have
    none.
    """
    args = spec.train
    most = min(args.max_completion_length, known.context_length)
    own = targets[targets > 0]
    usual = min(most, math.ceil(own.mean()) + 1 if len(own) else math.ceil(most / 2))
    answers = np.full_like(targets, args.num_generations * usual)
    prompts = lengths - targets
    if not shares_prompts(spec, shape):
        prompts = args.num_generations * prompts
    return prompts + answers, answers, args.num_generations * (most - usual)


def cached_tokens(spec: RunSpec, shape: Shape, *, tokens: float, targets: float) -> float:
    """Return the tokens in the cache of answers (GRPO), each of which has its whole prompt."""
    repeats = spec.train.num_generations if shares_prompts(spec, shape) else 1
    return targets + repeats * (tokens - targets)


def longest_answer(mean: float, count: float) -> float:
    """Return the expected length of the longest of some answers, which a batch waits for.

    Lengths are taken as geometric: the longest of `n` is `ln n + 0.58` times the mean.
    """
    return mean * max(1.0, math.log(count) + 0.58)


def prepared_rows(spec: RunSpec, known: ModelFacts, home: Home | None) -> Prepared:
    """Return the tokenised rows of a run, read from its model's files without torch."""
    from studio.data.model_tokenizer import backend_for
    from studio.data.prepare_run_data import prepare

    return prepare(
        spec.data, backend_for(known.path, home), seed=spec.seed, home=home,
        context_length=max(1, known.context_length - spec.method.num_tokens_before),
        rows=spec.train.rows,
    )  # fmt: skip


def row_lengths(
    spec: RunSpec, known: ModelFacts, home: Home | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the trained tokens of every training row, in order.

    Shape `(U, 1)`, or `(U, 2)` for pairs.
    """
    from studio.data.token_arrays import Examples

    made = prepared_rows(spec, known, home)
    assert isinstance(made.train, Examples)
    tokens, order = made.train.tokens, made.train.order
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    width = made.rows_per_example
    return tokens.lengths()[order].reshape(-1, width), trained[order].reshape(-1, width)


def first_lengths(
    spec: RunSpec, known: ModelFacts, home: Home | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the trained tokens of the first rows, as `row_lengths` does.

    Raises:
        DataError: They are only known in the run.
    """
    from studio.data.prepare_run_data import first_rows

    found = first_rows(spec, home)
    if found is None:
        raise DataError(f"The rows of {spec.data.path} are only known in the run.")
    tokens, _ = found
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    width = 2 if spec.train.rows == "pairs" else 1
    return tokens.lengths().reshape(-1, width), trained.reshape(-1, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLoad:
    """Sizes of the batches: the largest of any rank, the mean step, and a rank's part of it.

    `share_tokens` is the mean over steps of the largest part, since ranks wait for it.
    """

    tokens: int
    targets: int
    step_tokens: float
    step_targets: float
    share_tokens: float
    share_targets: float


def batch_load(
    plan: Plan, lengths: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, *,
    packing: bool, processes: int = 1,
) -> BatchLoad:  # fmt: skip
    """Return the sizes of the run's batches, in the run's own row order."""
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
                tokens = taken.sum() if packing else taken.max() * taken.size
                batch = np.array([tokens, loss[rows].sum()])
                most, own = np.maximum(most, batch), own + batch
            largest, total = np.maximum(largest, own), total + own
        share += largest
    return BatchLoad(
        tokens=int(most[0]), targets=int(most[1]), step_tokens=float(total[0] / steps),
        step_targets=float(total[1] / steps), share_tokens=float(share[0] / steps),
        share_targets=float(share[1] / steps),
    )  # fmt: skip

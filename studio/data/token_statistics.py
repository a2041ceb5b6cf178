"""Measure a dataset on a model before anything trains: lengths, cuts, trained share, steps.

Tokens are cached, so a run that follows starts with them. Needs no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from studio.data.dataset_report import Frozen, TokenReport
from studio.data.prepare_run_data import is_prepared, prepare
from studio.data.token_arrays import Examples
from studio.data.tokenise_first_rows import lens
from studio.errors import DataError
from studio.home import Home
from studio.spec import DataSource, ModelSource, RunSpec


class Measured(Frozen):
    """A dataset on a model, and a run with the usual settings on it.

    `padding_share` is what padding would add to the tokens of a batch; packing adds nothing.
    `seconds` is an estimate for that run on this machine's device, 0 if there is none.
    """

    report: TokenReport
    steps: int = 0
    epochs: float = 0
    rows_per_step: int = 0
    padding_share: float = 0.0
    seconds: float = 0.0


def is_measured(model: ModelSource, data: DataSource, home: Home) -> bool:
    """Return True if `measured` would answer from the cache."""
    backend, context_length = lens(model, home)
    return is_prepared(data, backend, context_length=context_length, home=home)


def measured(model: ModelSource, data: DataSource, home: Home) -> Measured:
    """Tokenise a dataset for a model, or read the tokens from the cache.

    Raises:
        StudioError: The model or the data cannot be used, or no token would be trained.
    """
    from studio.training.estimate_memory_and_time import estimate
    from studio.training.steps_and_learning_rate import plan_run

    spec = RunSpec(model=model, data=data)
    backend, context_length = lens(model, home)
    made = prepare(data, backend, context_length=context_length, seed=spec.seed, home=home)
    if not isinstance(made.train, Examples) or not len(made.train):
        raise DataError(f"{data.path} leaves no row to train on.")
    plan = plan_run(spec, num_rows=len(made.train), hidden_size=1)
    lengths = made.train.tokens.lengths()[made.train.order]
    return Measured(
        report=made.report,
        steps=plan.total_steps,
        epochs=spec.train.num_train_epochs,
        rows_per_step=plan.rows_per_step,
        padding_share=padding_share(lengths, plan.micro_batch, seed=spec.seed),
        seconds=estimate(spec, home).seconds,
    )


def padding_share(lengths: NDArray[np.int64], rows: int, *, seed: int) -> float:
    """Return which share of the tokens of shuffled batches of `rows` would be padding."""
    shuffled = np.random.default_rng(seed).permutation(lengths)
    full = len(shuffled) // rows * rows
    rest = shuffled[full:]
    padded = int(shuffled[:full].reshape(-1, rows).max(axis=1, initial=0).sum()) * rows
    padded += int(rest.max(initial=0)) * len(rest)
    return 1 - int(lengths.sum()) / max(1, padded)

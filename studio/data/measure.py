"""What a dataset is on a model, before anything trains: the report of `prepare` and what follows.

Lengths against the context, what is cut, the share of trained tokens, how well rows pack, how many
steps a run would take. Tokens are cached, so a run that follows starts with them. Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from studio.data.prepare import is_prepared, prepare
from studio.data.report import Report
from studio.data.template.backend import Backend, backend_from_folder
from studio.data.tokens import Examples
from studio.errors import DataError
from studio.home import Home
from studio.models.sources import facts
from studio.spec import DataSource, ModelSource, RunSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Lens(NamedTuple):
    """A model as the data room sees it: its tokenizer and its context."""

    backend: Backend
    context_length: int


class Measured(BaseModel):
    """A dataset on a model, and a run with the usual settings on it.

    `padding_share` is what padding would add to the tokens of a batch; packing adds nothing.
    `seconds` is what that run would take on this machine's device, as far as that can be told.
    """

    model_config = ConfigDict(frozen=True)
    report: Report
    steps: int = 0
    epochs: float = 0
    rows_per_step: int = 0
    padding_share: float = 0.0
    seconds: float = 0.0


def lens(model: ModelSource) -> Lens:
    """Read a model's tokenizer and context from its files.

    Raises:
        ModelError: It cannot be used.
    """
    found = facts(model)
    return Lens(backend_from_folder(found.path), found.context_length)


def is_measured(model: ModelSource, data: DataSource, home: Home) -> bool:
    """Whether `measured` would answer from the cache."""
    seen = lens(model)
    return is_prepared(data, seen.backend, context_length=seen.context_length, home=home)


def measured(model: ModelSource, data: DataSource, home: Home) -> Measured:
    """Tokenise a dataset for a model, or read the tokens from the cache.

    Raises:
        StudioError: The model or the data cannot be used, or no token would be trained.
    """
    from studio.training.estimate import estimate
    from studio.training.schedule import plan_run

    seen, spec = lens(model), RunSpec(model=model, data=data)
    made = prepare(
        data, seen.backend, context_length=seen.context_length, seed=spec.seed, home=home
    )
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
    batches = shuffled[:full].reshape(-1, rows)
    padded = int(batches.max(axis=1, initial=0).sum()) * rows
    rest = shuffled[full:]
    padded += int(rest.max(initial=0)) * len(rest)
    return 1 - int(lengths.sum()) / max(1, padded)

"""Tokenise the first rows of a dataset before a run is queued, for its checks and its estimate.

They take the same path as in the run (`tokenise`), so that a refusal here means that the run would
fail. Usually 64 rows are read, more only if none of those can be used.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from studio.data.dataset_report import TokenReport
from studio.data.find_dataset import find, missing, origin_of
from studio.data.model_tokenizer import Backend, backend_for
from studio.data.prepare_run_data import row_limit
from studio.data.template.template import choose_for
from studio.data.token_arrays import Tokens, TokenWriter
from studio.data.tokenise_rows import tokenise
from studio.data.xray import XRow, xray
from studio.errors import DataError
from studio.home import Home
from studio.models import find_model
from studio.spec import DataSource, ModelSource, RunSpec
from studio.train_args import Rows

FEW_ROWS, MANY_ROWS = 64, 20_000


class Lens(NamedTuple):
    """The parts of a model that preparing data needs: its tokenizer and its context."""

    backend: Backend
    context_length: int


def lens(model: ModelSource, home: Home | None) -> Lens:
    """Read a model's tokenizer and context from its files.

    Raises:
        ModelError: It cannot be used.
    """
    found = find_model.facts(model)
    return Lens(backend_for(found.path, home), found.context_length)


def absent(spec: RunSpec, home: Home | None) -> str:
    """Return why a run's model or dataset cannot be read without a download; empty if it can."""
    model = find_model.origin_of(spec.model.path, spec.model.revision).kind
    for noun, path, kind in (
        ("model", spec.model.path, model),
        ("dataset", spec.data.path, origin_of(spec.data.path, home).kind),
    ):
        if kind == "missing":
            return f"There is no model at {path}." if noun == "model" else missing(path, home).text
        if kind == "hub":
            return f"Known once the {noun} is downloaded."
    return ""


def first_xrays(spec: RunSpec, home: Home | None, count: int) -> list[XRow]:
    """Return the first rows of a run as its trainer sees them, of pairs both sides; see `xray`.

    Raises:
        StudioError: The model or dataset is not on this machine, or cannot be used.
    """
    if why := absent(spec, home):
        raise DataError(why)
    seen = lens(spec.model, home)
    limit = max(1, seen.context_length - spec.method.num_tokens_before)
    count += count % 2 if spec.train.rows == "pairs" else 0
    return xray(
        spec.data, seen.backend, context_length=limit, count=count, home=home,
        plain=spec.train.rows not in ("pairs", "judged"), prompts=spec.train.loss == "grpo",
    )[:count]  # fmt: skip


def first_report(spec: RunSpec, home: Home | None) -> TokenReport | None:
    """Return the report of the first rows; see `first_rows`."""
    found = first_rows(spec, home)
    return None if found is None else found[1]


def first_rows(spec: RunSpec, home: Home | None) -> tuple[Tokens, TokenReport] | None:
    """Return the tokens and the report of the first rows that can be trained on.

    None if they are only known in the run: a dataset of the hub, a tokenizer without a fast form.
    The last results are remembered until the model's or the dataset's files change.

    Raises:
        StudioError: Nothing of the dataset can be used, or not one token would be trained.
    """
    if origin_of(spec.data.path, home).kind == "hub":
        return None
    files = find(spec.data, home).files
    model = find_model.facts(spec.model).path
    if not (model / "tokenizer.json").is_file():
        return None
    state = tuple(_state(file) for file in (*sorted(model.glob("*.j*")), *files))
    return _first_rows(spec.model, spec.data, home, spec.train.rows, state)


def _state(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=32)
def _first_rows(
    model: ModelSource, data: DataSource, home: Home | None, rows: Rows,
    _state: tuple[tuple[int, ...], ...],
) -> tuple[Tokens, TokenReport]:  # fmt: skip
    origin, (backend, context_length) = find(data, home), lens(model, home)
    template, limit = choose_for(backend, data), row_limit(data, context_length)
    some = list(islice(origin.rows(), FEW_ROWS))
    first = dataclasses.replace(origin, rows=lambda: iter(some))
    try:
        return tokenise(first, data, template, limit, TokenWriter(), rows)
    except DataError:
        if len(some) < FEW_ROWS:
            raise
    more = dataclasses.replace(
        origin, rows=lambda: islice(origin.rows(), MANY_ROWS), at_most=MANY_ROWS
    )
    return tokenise(more, data, template, limit, TokenWriter(), rows)

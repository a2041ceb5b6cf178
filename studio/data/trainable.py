"""The first rows of a dataset, tokenised before a run is queued: its checks and its estimate.

They take the same path as in the run (`tokenised`), so that a refusal here means that the run would
fail. Usually 64 rows are read, more only if none of those can be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

from studio.data.origins import find, origin_of
from studio.data.records import Problem, Row
from studio.data.report import Report
from studio.data.template.backend import backend_from_folder
from studio.data.template.template import choose
from studio.data.tokens import Tokens, TokenWriter, tokenised
from studio.errors import DataError
from studio.home import Home
from studio.models.sources import facts
from studio.spec import RunSpec

FEW, MANY = 64, 20_000


def first_report(spec: RunSpec, home: Home | None) -> Report | None:
    """Return the report of the first rows; see `first_rows`."""
    found = first_rows(spec, home)
    return None if found is None else found[1]


def first_rows(spec: RunSpec, home: Home | None) -> tuple[Tokens, Report] | None:
    """Return the tokens and the report of the first rows that can be trained on.

    None if they are only known in the run: a dataset of the hub, a tokenizer without a fast form.

    Raises:
        StudioError: Nothing of the dataset can be used, or not one token would be trained.
    """
    if origin_of(spec.data.path, home).kind == "hub":
        return None
    origin = find(spec.data, home)
    model = facts(spec.model)
    if not (model.path / "tokenizer.json").is_file():
        return None
    template = choose(backend_from_folder(model.path), spec.data.chat_template)
    limit = max(2, min(spec.data.max_length, model.context_length))
    for count in (FEW, MANY):
        seen = 0

        def first(count: int = count) -> Iterator[Row | Problem]:
            nonlocal seen
            for item in islice(origin.rows(), count):
                seen += 1
                yield item

        some = dataclasses.replace(origin, rows=first)
        try:
            return tokenised(some, spec.data, template, limit, TokenWriter())
        except DataError:
            if seen < count or count == MANY:
                raise
    raise AssertionError("unreachable")

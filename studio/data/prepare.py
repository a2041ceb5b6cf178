"""From a data source to examples with labels, a held-out split and a report: what every run uses.

The X-ray calls the very same functions, so what it shows is what is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.data.examples import Example, Examples, Tokens, TokenWriter
from studio.data.report import Report
from studio.data.sources import Origin, find
from studio.data.split import MAX_VALIDATION, chosen
from studio.data.templates import Template, choose
from studio.data.tokenise import tokenised
from studio.home import Home
from studio.spec import DataSource

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything the loop needs of the data."""

    train: Sequence[Example]
    validation: Sequence[Example]
    report: Report
    template: str
    data_hash: str


def prepare(
    source: DataSource,
    tokenizer: Any,
    *,
    context_length: int,
    seed: int,
    home: Home | None = None,
) -> Prepared:
    """Read, recognise, template, tokenise, cut and split a dataset.

    Args:
        source: Where the rows are and how to read them.
        tokenizer: transformers' tokenizer, or a `templates.backend.Backend`.
        context_length: What the model takes, less the virtual tokens of the method.
        seed: Decides the held-out rows.
        home: Where imported datasets live and tokens are cached by content hash.

    Raises:
        DataError: No row can be used, or no token would be trained.
    """
    origin = find(source, home)
    template = choose(tokenizer, source.chat_template)
    limit = max(2, min(source.max_length, context_length))
    data_hash = origin.content_hash()
    if home is None:
        tokens, report = tokenised(origin, source, template, limit, TokenWriter())
    else:
        from studio.data.cache import cached

        key = _cache_key(origin, data_hash, source, template, limit)
        tokens, report = cached(
            home, key, lambda folder: tokenised(origin, source, template, limit, _to(folder))
        )
    report = report.model_copy(update={"context_length": context_length})
    held = chosen(tokens, origin, source, seed)
    return _split(tokens, report, source, tokenizer, seed, home, data_hash, context_length, held)


def is_prepared(source: DataSource, tokenizer: Any, *, context_length: int, home: Home) -> bool:
    """Whether the tokens of exactly this are in the cache, so that `prepare` answers at once."""
    from studio.data.cache import is_cached

    limit = max(2, min(source.max_length, context_length))
    template = choose(tokenizer, source.chat_template)
    origin = find(source, home)
    key = _cache_key(origin, origin.content_hash(), source, template, limit)
    return is_cached(home, key)


def _to(folder: Any) -> TokenWriter:
    return TokenWriter(folder)


def _cache_key(
    origin: Origin, data_hash: str, source: DataSource, template: Template, limit: int
) -> str:
    how = [origin.container, origin.encoding, origin.plain]  # a name may say how bytes are read
    parts = [
        "tokens-6", data_hash, how, source.format, source.chat_template, source.train_on, limit,
        template.backend.fingerprint(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _split(
    tokens: Tokens,
    report: Report,
    source: DataSource,
    tokenizer: Any,
    seed: int,
    home: Home | None,
    data_hash: str,
    context_length: int,
    held: NDArray[np.bool_],
) -> Prepared:
    everything = np.arange(len(tokens))
    warnings, overlap = list(report.warnings), 0
    if source.validation_path:
        other = source.model_copy(
            update={"path": source.validation_path, "validation_path": "", "validation_fraction": 0}
        )
        other_file = prepare(other, tokenizer, context_length=context_length, seed=seed, home=home)
        train: Sequence[Example] = Examples(tokens, everything)
        validation: Sequence[Example] = other_file.train[:MAX_VALIDATION]
        overlap = _num_shared(validation, tokens)
        if overlap:
            warnings.append(
                f"{overlap:,} of the {len(validation):,} evaluation rows are training rows too: "
                "the evaluation loss will flatter."
            )
    else:
        train = Examples(tokens, everything[~held])
        validation = Examples(tokens, everything[held])
    if source.validation_fraction and not len(validation):
        warnings.append("Too few rows to hold some out: there is no evaluation loss.")
    report = report.model_copy(
        update={
            "train_examples": len(train),
            "validation_examples": len(validation),
            "overlap": overlap,
            "warnings": warnings,
        }
    )
    return Prepared(train, validation, report, report.template, data_hash)


def _num_shared(validation: Sequence[Example], tokens: Tokens) -> int:
    """Return how many rows of another file are among these, token for token."""
    assert isinstance(validation, Examples)
    others = validation.tokens.hashes[validation.order]
    return int(np.isin(others, tokens.hashes).sum())

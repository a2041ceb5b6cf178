"""Prepare data for a run: tokens with labels, a held-out split, a report, cached by content.

The X-ray calls the very same functions, so what it shows is what is trained.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.data.origins import Origin, find
from studio.data.report import Report
from studio.data.template.template import Template, choose
from studio.data.tokens import Example, Examples, Tokens, TokenWriter, load_tokens, tokenised
from studio.home import Home, is_whole, publishing, sweep
from studio.spec import DataSource

if TYPE_CHECKING:
    from numpy.typing import NDArray


KEEP = 16


def cached(
    home: Home, key: str, make: Callable[[Path], tuple[Tokens, Report]]
) -> tuple[Tokens, Report]:
    """Return the tokens and report of a key, making them where they are not there whole."""
    root = home.datasets / ".tokens"
    root.mkdir(exist_ok=True, mode=0o700)
    folder = root / key
    if not is_whole(folder):
        sweep(root)
        with publishing(folder) as temporary:
            _, report = make(temporary)
            (temporary / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
        _forget_old(root)
    report = Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    return load_tokens(folder), report


def is_cached(home: Home, key: str) -> bool:
    """Whether the tokens of a key are there (they are verified when they are read)."""
    return (home.datasets / ".tokens" / key / "report.json").is_file()


def _forget_old(root: Path) -> None:
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
    for old in sorted(folders, key=lambda f: f.stat().st_mtime)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


MAX_VALIDATION = 256
MIN_ROWS_TO_SPLIT = 10


def chosen(tokens: Tokens, origin: Origin, source: DataSource, seed: int) -> NDArray[np.bool_]:
    """Choose the held-out rows; a split that is stored with the dataset goes before any other."""
    stored = origin.held_out()
    if stored is not None:
        return np.asarray(stored[tokens.rows - 1])
    return held_out(tokens, source.validation_fraction, seed)


def held_out(tokens: Tokens, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the held-out rows: seeded, at most 256, and equal rows always on the same side."""
    count = len(tokens)
    held = np.zeros(count, bool)
    if not fraction or count < MIN_ROWS_TO_SPLIT:
        return held
    wanted = min(MAX_VALIDATION, max(1, round(fraction * count)))
    _, first, group, sizes = np.unique(
        tokens.hashes, return_index=True, return_inverse=True, return_counts=True
    )
    # Groups in the order of their first rows: which rows are drawn does not hang on the hashes.
    order = np.argsort(first)
    taken, chosen_groups = 0, []
    for at in order[np.random.default_rng(seed).permutation(len(order))]:
        if taken + sizes[at] <= wanted:
            taken += int(sizes[at])
            chosen_groups.append(at)
        if taken >= wanted:
            break
    return np.isin(group, chosen_groups)


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
        key = _cache_key(origin, data_hash, source, template, limit)
        tokens, report = cached(
            home, key, lambda folder: tokenised(origin, source, template, limit, _to(folder))
        )
    report = report.model_copy(update={"context_length": context_length})
    held = chosen(tokens, origin, source, seed)
    return _split(tokens, report, source, tokenizer, seed, home, data_hash, context_length, held)


def is_prepared(source: DataSource, tokenizer: Any, *, context_length: int, home: Home) -> bool:
    """Whether the tokens of exactly this are in the cache, so that `prepare` answers at once."""

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

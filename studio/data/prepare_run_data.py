"""Prepare the data of a run: tokens with labels, held-out rows, a report, cached by content.

The X-ray calls the very same functions, so what it shows is what is trained.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.data.dataset_files import Origin, Sources
from studio.data.dataset_report import TokenReport
from studio.data.find_dataset import find
from studio.data.model_tokenizer import check_loaded
from studio.data.template.template import Template, choose_for
from studio.data.token_arrays import Example, Examples, Tokens, TokenWriter, load_tokens
from studio.data.tokenise_rows import tokenise
from studio.home import Home, is_whole, publishing, sweep
from studio.spec import DataSource
from studio.train_args import Rows

CACHED_DATASETS = 16
MAX_VALIDATION = 256
MIN_ROWS_TO_SPLIT = 10
_making = threading.Lock()  # a page asks for the same tokens several times at once


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything the loop needs of the data."""

    train: Sequence[Example]
    validation: Sequence[Example]
    report: TokenReport
    template: str
    data_hash: str
    rows_per_example: int = 1
    """2 for pairs: the chosen answer's row, then the rejected one's."""
    sources: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of a mix: the number of rows that train, and that are held out, from each source."""


def prepare(
    source: DataSource,
    tokenizer: Any,
    *,
    context_length: int,
    seed: int,
    home: Home | None = None,
    rows: Rows = "answers",
) -> Prepared:
    """Read, recognise, template, tokenise, cut and split a dataset.

    Args:
        source: Where the rows are and how to read them.
        tokenizer: transformers' tokenizer, or a `template.backend.Backend`.
        context_length: What the model takes, less the virtual tokens of the method.
        seed: Decides the held-out rows.
        home: Where imported datasets live and tokens are cached by content hash.
        rows: What the loss learns from: answers, pairs or judged answers.

    Raises:
        DataError: No row can be used, or no token would be trained.
    """
    origin, template = find(source, home), choose_for(tokenizer, source)
    check_loaded(tokenizer, home)
    limit, data_hash = row_limit(source, context_length), origin.content_hash()
    if home is None:
        tokens, report = tokenise(origin, source, template, limit, TokenWriter(), rows)
    else:
        tokens, report = _cached(home, data_hash, origin, source, template, limit, rows)
    warnings, overlap, width = list(report.warnings), 0, 2 if rows == "pairs" else 1
    sources = origin.sources()
    if other := validation_source(source):
        whole = prepare(
            other, tokenizer, context_length=context_length, seed=seed, home=home, rows=rows
        ).train
        train = Examples(tokens, np.arange(len(tokens)), sources)
        validation = whole[:MAX_VALIDATION]
        assert isinstance(validation, Examples)
        others = validation.tokens.hashes[validation.order]
        if overlap := int(np.isin(others, tokens.hashes).sum()):
            warnings.append(
                f"{overlap:,} of the {len(validation):,} evaluation rows are training rows too: "
                "the evaluation loss will flatter."
            )
    else:
        stored = origin.held_out()  # a split that is stored with the dataset takes precedence
        if stored is not None:
            mask = np.asarray(stored[tokens.rows - 1])
        else:
            mask = held_out(tokens, source.validation_fraction, seed, sources)
        train = Examples(tokens, np.flatnonzero(~mask), sources)
        held = np.flatnonzero(mask)
        if sources:
            held = _in_turn(held, sources.of_row[tokens.rows[held] - 1], width)
        validation = Examples(tokens, held, sources)
    if source.validation_fraction and not len(validation):
        warnings.append("Too few rows to hold some out: there is no evaluation loss.")
    report = report.model_copy(
        update={
            "context_length": context_length,
            "train_examples": len(train) // width,
            "validation_examples": len(validation) // width,
            "overlap": overlap,
            "warnings": warnings,
        }
    )
    trained, left = train.count_by_source(), validation.count_by_source()
    counts = {
        name: (trained.get(name, 0) // width, left.get(name, 0) // width)
        for name in {**trained, **left}
    }
    return Prepared(train, validation, report, report.template, data_hash, width, counts)


def validation_source(source: DataSource) -> DataSource | None:
    """Return the rows to evaluate on that a run names; None if it holds some of its own out."""
    if not source.validation_path and not source.validation_split:
        return None
    update = {
        "path": source.validation_path or source.path,
        "split": source.validation_split or source.split,
        "validation_path": "",
        "validation_split": "",
        "validation_fraction": 0,
    }
    return source.model_copy(update=update)


def is_prepared(source: DataSource, tokenizer: Any, *, context_length: int, home: Home) -> bool:
    """Return True if the tokens are in the cache, so that `prepare` answers at once."""
    origin, template = find(source, home), choose_for(tokenizer, source)
    limit = row_limit(source, context_length)
    return (
        _folder(home, origin.content_hash(), origin, source, template, limit) / "report.json"
    ).is_file()


def row_limit(source: DataSource, context_length: int) -> int:
    """Return how many tokens of a row are kept."""
    return max(2, min(source.max_length, context_length))


def held_out(
    tokens: Tokens, fraction: float, seed: int, sources: Sources | None = None
) -> NDArray[np.bool_]:
    """Choose the held-out rows: seeded, at most 256, and equal rows always on the same side.

    Of a mix, each source holds out its share.
    """
    count, least = len(tokens), 4 if len(tokens.good) else 1  # of few pairs, two
    if not sources:
        return _drawn(tokens.hashes, fraction, seed, least)
    fraction, own = min(fraction, MAX_VALIDATION / count), sources.of_row[tokens.rows - 1]
    mask = np.zeros(count, bool)
    for place in range(len(sources.names)):
        rows = np.flatnonzero(own == place)
        mask[rows] = _drawn(tokens.hashes[rows], fraction, seed, least)
    return np.isin(tokens.hashes, tokens.hashes[mask])  # what two sources share is held out of both


def _drawn(hashes: NDArray[np.uint64], fraction: float, seed: int, least: int) -> NDArray[np.bool_]:
    count = len(hashes)
    if not fraction or count < MIN_ROWS_TO_SPLIT:
        return np.zeros(count, bool)
    wanted = max(least, min(MAX_VALIDATION, max(1, round(fraction * count))))
    _, first, group, sizes = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    # Groups in the order of their first rows: which rows are drawn does not depend on the hashes.
    order = np.argsort(first)
    taken, chosen_groups = 0, []
    for at in order[np.random.default_rng(seed).permutation(len(order))]:
        if taken + sizes[at] <= wanted:
            taken += int(sizes[at])
            chosen_groups.append(at)
        if taken >= wanted:
            break
    return np.isin(group, chosen_groups)


def _in_turn(rows: NDArray[np.int64], sources: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Order rows so that the first ones are from each source in turn; pairs stay together."""
    units, own = rows.reshape(-1, width), sources[::width]
    turns = np.zeros(len(units), np.int64)
    for place in np.unique(own):
        turns[own == place] = np.arange(np.count_nonzero(own == place))
    return units[np.argsort(turns, kind="stable")].reshape(-1)


def _folder(
    home: Home, data_hash: str, origin: Origin, source: DataSource, template: Template, limit: int,
    rows: Rows = "answers",
) -> Path:  # fmt: skip
    how = [origin.container, origin.encoding, origin.plain]  # a name may say how bytes are read
    parts = [
        "tokens-14", data_hash, how, source.format, source.chat_template, source.train_on, limit,
        source.thoughts, source.accept_lost, source.control_tokens, source.chat_template_kwargs,
        rows, source.pairs, source.margin, template.backend.fingerprint(),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return home.datasets / ".tokens" / key


def _cached(
    home: Home, data_hash: str, origin: Origin, source: DataSource, template: Template, limit: int,
    rows: Rows,
) -> tuple[Tokens, TokenReport]:  # fmt: skip
    """Return the tokens and report from the cache, making them where they are not there whole."""
    folder = _folder(home, data_hash, origin, source, template, limit, rows)
    root = folder.parent
    root.mkdir(exist_ok=True, mode=0o700)
    with _making:
        if not is_whole(folder):
            sweep(root)
            with publishing(folder) as temporary:
                _, report = tokenise(origin, source, template, limit, TokenWriter(temporary), rows)
                (temporary / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
            folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
            for old in sorted(folders, key=lambda f: f.stat().st_mtime)[:-CACHED_DATASETS]:
                shutil.rmtree(old, ignore_errors=True)
        text = (folder / "report.json").read_text(encoding="utf-8")
        return load_tokens(folder), TokenReport.model_validate_json(text)

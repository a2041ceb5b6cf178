"""Prepare the data of a run: tokens with labels, held-out rows, a report, cached by content.

The X-ray calls the very same functions, so what it shows is what is trained. Before a run is
queued, its first rows take the same path (`first_rows`), so that a refusal there means that the run
would fail: usually 64 rows are read, more only if none of those can be used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from studio.data.dataset_files import Origin, Sources
from studio.data.dataset_report import TokenReport
from studio.data.find_dataset import find, missing, origin_of
from studio.data.model_tokenizer import Backend, backend_for, check_loaded
from studio.data.template.choose_template import choose_for
from studio.data.template.template import Template
from studio.data.token_arrays import Example, Examples, Tokens, TokenWriter, load_tokens
from studio.data.tokenise_rows import tokenise, trained_on
from studio.errors import DataError
from studio.home import Home, is_whole, publishing, sweep
from studio.models import find_model
from studio.spec import DataSource, ModelSource, RunSpec
from studio.train_args import Rows

CACHED_DATASETS, REPORT = 16, "report.json"
FEW_ROWS, MANY_ROWS = 64, 20_000  # read before a run is queued
MAX_VALIDATION = 256
MIN_ROWS_TO_SPLIT = 10
Windows = Literal["none", "texts", "stream"]
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
    split: bool = True,
) -> Prepared:
    """Read, recognise, template, tokenise, cut and split a dataset.

    Args:
        source: Where the rows are and how to read them.
        tokenizer: transformers' tokenizer, or a `Backend`.
        context_length: What the model takes, less the virtual tokens of the method.
        seed: Decides the held-out rows.
        home: Where imported datasets live and tokens are cached by content hash.
        rows: What the loss learns from: answers, pairs or judged answers.
        split: Hold rows out; False gives all as rows to train, those of a stored split too.

    Raises:
        DataError: No row can be used, or no token would be trained.
    """
    found, template = find(source, home), choose_for(tokenizer, source)
    origin = replace(found, notes=())  # equal bytes of another path share the cache
    check_loaded(tokenizer, home)
    limit, data_hash = row_limit(source, context_length), origin.content_hash()
    if home is None:
        tokens, report = tokenise(origin, source, template, limit, TokenWriter(), rows)
    else:
        tokens, report = _cached(home, data_hash, origin, source, template, limit, rows)
    warnings, overlap, width = [*found.notes, *report.warnings], 0, 2 if rows == "pairs" else 1
    sources, is_text = origin.sources(), report.format == "text"
    stored, other = (origin.held_out(), validation_source(source)) if split else (None, None)
    if stored is not None:  # a split that is stored with the dataset takes precedence
        mask = np.asarray(stored[tokens.rows - 1])
    elif other or not split:
        mask = np.zeros(len(tokens), bool)
    else:
        windows: Windows = ("stream" if origin.plain else "texts") if is_text else "none"
        mask = held_out(tokens, source.validation_fraction, seed, sources, windows=windows)
    train = Examples(tokens, np.flatnonzero(~mask), sources)
    held = Examples(tokens, np.flatnonzero(mask), sources)
    validation = drawn(held, len(held), seed, width)
    if other:
        if len(validation):
            warnings.append(
                f"{len(validation) // width:,} rows are held out by the dataset's own split and "
                "are not trained; the evaluation takes other rows."
            )
        evaluated = prepare(
            other, tokenizer, context_length=context_length, seed=seed, home=home, rows=rows
        )
        whole = evaluated.validation or evaluated.train
        validation = drawn(whole, MAX_VALIDATION, seed, width)
        if len(validation) < len(whole):
            warnings.append(
                f"The evaluation takes {len(validation) // width:,} of {len(whole) // width:,} "
                "rows, drawn by the seed."
            )
        others = validation.tokens.hashes[validation.order]
        if overlap := int(np.isin(others, tokens.hashes[train.order]).sum()) // width:
            warnings.append(
                f"{overlap:,} of the {len(validation) // width:,} evaluation rows are training "
                "rows too: the evaluation loss will flatter."
            )
    if trained_on(source, rows) != source.train_on:
        warnings.append(
            "Only answers carry loss where they are compared: data.train_on=all has no effect."
        )
    if split and source.validation_fraction and not len(validation):
        warnings.append("Too few rows to hold some out: there is no evaluation loss.")
    report = report.model_copy(
        update={
            "name": origin.name,
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
    folder = _folder(home, origin.content_hash(), origin, source, template, limit)
    return (folder / REPORT).is_file()


def row_limit(source: DataSource, context_length: int) -> int:
    """Return how many tokens of a row are kept."""
    return max(2, min(source.max_length, context_length))


def drawn(rows: Sequence[Example], most: int, seed: int, width: int = 1) -> Examples:
    """Return at most `most` rows in an order drawn by the seed: the first ones are a fair sample.

    Of a mix, each source gives one in turn. `width` rows stay together: 2 for pairs.
    """
    assert isinstance(rows, Examples)
    units = np.random.default_rng(seed).permutation(len(rows) // width)
    if rows.sources:
        first = rows.order[::width]
        units = _in_turn(units, rows.sources.of_row[rows.tokens.rows[first] - 1][units])
    order = rows.order.reshape(-1, width)[units[: most // width]].reshape(-1)
    return Examples(rows.tokens, order, rows.sources)


def held_out(
    tokens: Tokens,
    fraction: float,
    seed: int,
    sources: Sources | None = None,
    *,
    windows: Windows = "none",
) -> NDArray[np.bool_]:
    """Choose the held-out rows: seeded, at most 256.

    Equal rows, and all that one row of the file became, are on the same side.

    Args:
        sources: Of a mix, each source holds out its share.
        windows: Rows are windows of texts, which are separated where no text is short enough, or
            of one stream.
    """
    count, mask = len(tokens), np.zeros(len(tokens), bool)
    ways = [_linked(tokens)] if windows == "none" else [tokens.hashes]
    if windows == "texts":
        ways.insert(0, _whole_texts(tokens))
    own = sources.of_row[tokens.rows - 1] if sources else np.zeros(count, np.int64)
    if sources:
        fraction = min(fraction, MAX_VALIDATION / count)
    for labels in ways:
        for one in np.unique(own):
            rows = np.flatnonzero(own == one)
            least = 4 if len(tokens.good) else 1  # of few pairs, two
            if windows == "none":  # the fewest that one row of the file became
                least = max(least, int(np.unique(tokens.rows[rows], return_counts=True)[1].min()))
            mask[rows] = _drawn(labels[rows], fraction, seed, least)
        if mask.any():
            return np.isin(labels, labels[mask])  # what two sources share is held out of both
    return mask


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


def _whole_texts(tokens: Tokens) -> NDArray[Any]:
    """Return a label per window: one for all of a text, and for equal texts."""
    first = np.flatnonzero(np.diff(tokens.rows, prepend=0))
    labels = np.add.reduceat(tokens.hashes, first)
    return np.repeat(labels, np.diff(first, append=len(tokens)))


def _linked(tokens: Tokens) -> NDArray[Any]:
    """Return a label per row: one for equal rows, and for all that one row of the file became."""
    labels, rows = (
        np.unique(keys, return_inverse=True)[1] for keys in (tokens.hashes, tokens.rows)
    )
    while True:
        least = np.full(len(rows), len(rows))
        np.minimum.at(least, rows, labels)
        joined = np.full(len(rows), len(rows))
        np.minimum.at(joined, labels, least[rows])
        if np.array_equal(made := joined[labels], labels):
            return labels
        labels = made


def _drawn(groups: NDArray[Any], fraction: float, seed: int, least: int) -> NDArray[np.bool_]:
    count = len(groups)
    if not fraction or count < max(MIN_ROWS_TO_SPLIT, 2 * least):
        return np.zeros(count, bool)
    wanted = max(least, min(MAX_VALIDATION, max(1, round(fraction * count))))
    _, first, group, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    # Groups in the order of their first rows: which rows are drawn does not depend on the labels.
    order = np.argsort(first)
    taken, chosen_groups = 0, []
    for at in order[np.random.default_rng(seed).permutation(len(order))]:
        if taken + sizes[at] <= wanted:
            taken += int(sizes[at])
            chosen_groups.append(at)
        if taken >= wanted:
            break
    return np.isin(group, chosen_groups)


def _in_turn(rows: NDArray[Any], sources: NDArray[np.int64]) -> NDArray[Any]:
    """Order rows (of pairs, couples) so that the first ones are from each source in turn."""
    turns = np.zeros(len(rows), np.int64)
    for place in np.unique(sources):
        turns[sources == place] = np.arange(np.count_nonzero(sources == place))
    return rows[np.argsort(turns, kind="stable")]


def _folder(
    home: Home, data_hash: str, origin: Origin, source: DataSource, template: Template, limit: int,
    rows: Rows = "answers",
) -> Path:  # fmt: skip
    how = [origin.container, origin.encoding, origin.plain]  # a name may say how bytes are read
    parts = [
        "tokens-17", data_hash, how, source.format, source.chat_template,
        trained_on(source, rows), limit, source.thoughts, source.accept_lost,
        source.control_tokens, source.chat_template_kwargs, rows, source.judged, source.pairs,
        source.margin, template.backend.fingerprint(),
        str(date.today()) if template.reads_date else "",
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return home.datasets / ".tokens" / key


def _cached(
    home: Home, data_hash: str, origin: Origin, source: DataSource, template: Template, limit: int,
    rows: Rows,
) -> tuple[Tokens, TokenReport]:  # fmt: skip
    """Return the tokens and report from the cache, making them where they are not there whole."""
    folder = _folder(home, data_hash, origin, source, template, limit, rows)
    folder.parent.mkdir(exist_ok=True, mode=0o700)

    def found() -> tuple[Tokens, TokenReport]:
        if not is_whole(folder):
            sweep(folder.parent)
            with publishing(folder) as temporary, closing(TokenWriter(temporary)) as writer:
                _, report = tokenise(origin, source, template, limit, writer, rows)
                (temporary / REPORT).write_text(report.model_dump_json(), encoding="utf-8")
            _evict(folder.parent)
        os.utime(folder / REPORT)
        text = (folder / REPORT).read_text(encoding="utf-8")
        return load_tokens(folder), TokenReport.model_validate_json(text)

    with _making:
        try:
            return found()
        except FileNotFoundError:  # another process has just deleted it as the oldest
            return found()


def _evict(root: Path) -> None:
    """Delete all but the datasets that were used last."""

    def used(folder: Path) -> int:
        try:
            return (folder / REPORT).stat().st_mtime_ns
        except OSError:
            return 0  # another process is deleting it

    folders = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")]
    for old in sorted(folders, key=used)[:-CACHED_DATASETS]:
        shutil.rmtree(old, ignore_errors=True)


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
    first = replace(origin, rows=lambda: iter(some))
    try:
        return tokenise(first, data, template, limit, TokenWriter(), rows)
    except DataError:
        if len(some) < FEW_ROWS:
            raise
    more = replace(origin, rows=lambda: islice(origin.rows(), MANY_ROWS), at_most=MANY_ROWS)
    return tokenise(more, data, template, limit, TokenWriter(), rows)


def holds_none_out(spec: RunSpec, home: Home | None) -> bool:
    """Return True if no row will be held out, as far as it is known before the run."""
    data, hub = spec.data, origin_of(spec.data.path, home).kind == "hub"
    if validation_source(data) or not (hub or find(data, home).held_out() is None):
        return False
    if not data.validation_fraction or absent(spec, home):
        return not data.validation_fraction
    found = first_rows(spec, home)
    if found is None or found[1].rows.read >= FEW_ROWS or found[1].format == "text":
        return False
    sources = find(data, home).sources()
    return not held_out(found[0], data.validation_fraction, spec.seed, sources).any()

"""Tokenise rows: convert, encode, cut to the context, write flat token arrays with trained masks.

Many gigabytes of tokens cost no more memory than the pages that are touched.

The rule: a row that is too long loses its end. Where that would leave less answer than half the
limit (or than the whole answer, if that is shorter), it loses the beginning of its prompt instead;
what the tokenizer puts in front (`<s>`) stays. Plain text is cut into windows, nothing is lost.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, overload

import numpy as np

from studio.data.origins import Origin, guess_origin
from studio.data.quality import bytes_hash, num_repeats
from studio.data.recognise import Guess
from studio.data.records import Conversation, Document, Problem, Row, Tally
from studio.data.report import LOW_SHARE, Report, histogram, listed, why_nothing
from studio.data.rows import Converter, converter
from studio.data.template.spans import runs
from studio.data.template.template import IGNORED, Encoded, Template
from studio.errors import DataError
from studio.spec import DataSource

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Example:
    """One row for the loop; `row` is its number in the source, counted from 1."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    row: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """All rows one after the other; row `i` reaches from `starts[i]` to `starts[i + 1]`."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]  # equal rows have equal ones
    whole: NDArray[np.int64]  # how long each row was before it was cut

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.starts)


class Examples(Sequence[Example]):
    """Some of the rows of `Tokens`, in a given order."""

    def __init__(self, tokens: Tokens, order: NDArray[np.int64]) -> None:
        self.tokens, self.order = tokens, order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.tokens, self.order[index])
        at = int(self.order[index])
        start, stop = int(self.tokens.starts[at]), int(self.tokens.starts[at + 1])
        ids = np.array(self.tokens.ids[start:stop])
        labels = np.where(self.tokens.trained[start:stop], ids, np.int32(IGNORED))
        return Example(ids, labels.astype(np.int32), int(self.tokens.rows[at]))


class TokenWriter:
    """Collects rows; with a folder the tokens go straight to disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._ids: BinaryIO = (folder / "ids.i32").open("wb") if folder else io.BytesIO()
        self._trained: BinaryIO = (folder / "trained.u8").open("wb") if folder else io.BytesIO()
        self._starts, self._rows, self._hashes = array("q", [0]), array("q"), array("Q")
        self._whole = array("q")

    def add(
        self, ids: NDArray[np.int32], trained: NDArray[np.bool_], row: int, *, whole: int = 0
    ) -> int:
        """Append one row (`whole` tokens long before it was cut); returns a hash of its ids."""
        self._hashes.append(bytes_hash(ids.data))
        self._ids.write(ids.data)
        self._trained.write(trained.data)
        self._starts.append(self._starts[-1] + len(ids))
        self._rows.append(row)
        self._whole.append(whole or len(ids))
        return self._hashes[-1]

    def extend(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        starts: NDArray[np.int64],
        rows: Sequence[int],
    ) -> array[int]:
        """Append whole rows, row `i` from `starts[i]` to `starts[i + 1]`; returns their hashes."""
        first, stop = int(starts[0]), int(starts[-1])
        view = ids.data.cast("B")
        edges = (4 * starts).tolist()
        hashes = array("Q", [bytes_hash(view[a:b]) for a, b in pairwise(edges)])
        self._ids.write(ids[first:stop].data)
        self._trained.write(trained[first:stop].data)
        self._starts.extend((starts[1:] + (self._starts[-1] - first)).tolist())
        self._rows.extend(rows)
        self._whole.extend(np.diff(starts).tolist())
        self._hashes += hashes
        return hashes

    def __len__(self) -> int:
        return len(self._rows)

    def finish(self) -> Tokens:
        """Close the files (or take the memory) and return everything."""
        starts = np.array(self._starts, dtype=np.int64)
        rows = np.array(self._rows, dtype=np.int64)
        hashes = np.array(self._hashes, dtype=np.uint64)
        whole = np.array(self._whole, dtype=np.int64)
        if self.folder:
            self._ids.close()
            self._trained.close()
            starts.tofile(self.folder / "starts.i64")
            rows.tofile(self.folder / "rows.i64")
            hashes.tofile(self.folder / "hashes.u64")
            whole.tofile(self.folder / "whole.i64")
            return load_tokens(self.folder)
        assert isinstance(self._ids, io.BytesIO) and isinstance(self._trained, io.BytesIO)
        return Tokens(
            np.frombuffer(self._ids.getbuffer(), dtype=np.int32),
            np.frombuffer(self._trained.getbuffer(), dtype=np.bool_),
            starts,
            rows,
            hashes,
            whole,
        )


def load_tokens(folder: Path) -> Tokens:
    """Map the arrays of a folder that a `TokenWriter` finished."""
    return Tokens(
        _mapped(folder / "ids.i32", np.int32),
        _mapped(folder / "trained.u8", np.bool_),
        np.fromfile(folder / "starts.i64", dtype=np.int64),
        np.fromfile(folder / "rows.i64", dtype=np.int64),
        np.fromfile(folder / "hashes.u64", dtype=np.uint64),
        np.fromfile(folder / "whole.i64", dtype=np.int64),
    )


def _mapped(path: Path, dtype: type) -> NDArray:  # type: ignore[type-arg]
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


class Cut(NamedTuple):
    """A row within the limit; `kept` are its places in the whole row, None for all."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lost: Literal["nothing", "end", "start"]
    kept: NDArray[np.int64] | None


def fit(row: Encoded, *, limit: int, num_lead_tokens: int) -> Cut:
    """Cut one conversation to `limit` tokens by the rule above."""
    length = len(row.ids)
    if length <= limit:
        return Cut(row.ids, row.trained, "nothing", None)
    summed = np.concatenate([[0], np.cumsum(row.trained)])
    enough = min(int(summed[-1]), limit // 2)
    if summed[limit] >= enough:
        return Cut(row.ids[:limit], row.trained[:limit], "end", np.arange(limit))
    lead = min(num_lead_tokens, limit - 1)
    body = limit - lead
    inside = summed[body:] - summed[: len(summed) - body]
    inside[:lead] = -1  # the lead is kept anyway
    found = np.flatnonzero(inside >= enough)
    start = int(found[0]) if len(found) else int(np.argmax(inside))
    kept = np.concatenate([np.arange(lead), np.arange(start, start + body)])
    return Cut(row.ids[kept], row.trained[kept], "start", kept)


def windows(ids: NDArray[np.int32], *, limit: int, lead: NDArray[np.int32]) -> Iterator[Encoded]:
    """Cut a text (without its lead) into windows that each begin with the lead."""
    body = max(1, limit - len(lead))
    for start in range(0, len(ids), body):
        piece = np.concatenate([lead, ids[start : start + body]]).astype(np.int32)
        if len(piece) >= 2:  # one token alone predicts nothing
            yield Encoded(piece, np.ones(len(piece), bool))


BATCH_ROWS = 256
PIECE_CHARS = 1 << 16


@dataclass(slots=True)
class Counts:
    """What happened to the rows so far."""

    read: int = 0
    used: int = 0
    truncated: int = 0
    truncated_start: int = 0
    truncated_tokens: int = 0
    open_ended: int = 0
    muted: int = 0
    lengths: array[int] = field(default_factory=lambda: array("q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    tally: Tally = field(default_factory=Tally)


def tokenised(
    origin: Origin, source: DataSource, template: Template, limit: int, writer: TokenWriter
) -> tuple[Tokens, Report]:
    """Write every usable row of an origin as tokens, cut to `limit`, and report.

    Raises:
        DataError: No row can be used, or no token would be trained.
    """
    guess = origin.guess if source.format == "auto" else None
    guess = guess or guess_origin(origin, source)
    counts = Counts()
    if origin.plain and guess.mapping.format == "text":
        _write_text(origin, template, limit, writer, counts)
    else:
        convert = converter(guess.mapping)
        rows = _converted(origin.rows(), convert, counts)
        for batch in _batches(rows):
            _write_batch(batch, source, template, limit, writer, counts)
    tokens = writer.finish()
    return tokens, _report(origin, guess, template, limit, tokens, counts)


def _converted(
    items: Iterator[Row | Problem], convert: Converter, counts: Counts
) -> Iterator[tuple[int, Conversation | Document]]:
    for item in items:
        counts.read += 1
        made = convert(item) if isinstance(item, Row) else item
        if isinstance(made, Problem):
            counts.tally.add(made)
        else:
            yield counts.read, made


def _batches(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    batch: list[tuple[int, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_batch(
    batch: list[tuple[int, Any]],
    source: DataSource,
    template: Template,
    limit: int,
    writer: TokenWriter,
    counts: Counts,
) -> None:
    numbers, rows = [number for number, _ in batch], [row for _, row in batch]
    encoded = template.encode_batch(rows, source.train_on)
    lengths = np.diff(encoded.starts)
    simple = np.array(encoded.teaches) & (lengths <= limit)
    at = 0
    for start, stop in [*runs(simple), (len(rows), len(rows))]:
        for i in range(at, start):
            _write_row(numbers[i], rows[i], encoded.row(i), template, limit, writer, counts)
        at, starts = stop, encoded.starts[start : stop + 1]
        if start < stop:
            counts.hashes += writer.extend(
                encoded.ids, encoded.trained, starts, numbers[start:stop]
            )
            counts.lengths.extend(lengths[start:stop].tolist())
            counts.used += stop - start
            for row in rows[start:stop]:
                _note(row, counts)


def _note(row: Conversation | Document, counts: Counts) -> None:
    if isinstance(row, Conversation):
        counts.open_ended += row.open_ended
        counts.muted += len(row.muted)


def _write_row(
    number: int,
    row: Conversation | Document,
    item: Encoded | Problem,
    template: Template,
    limit: int,
    writer: TokenWriter,
    counts: Counts,
) -> None:
    """Write a row that is too long, or count why it cannot be used."""
    if isinstance(item, Problem):
        counts.tally.add(item)
        return
    if not item.trained[1:].any():
        counts.tally.add(Problem(row.line, "no_answer", "No token of the row is trained."))
        return
    counts.lengths.append(len(item.ids))
    counts.hashes.append(bytes_hash(item.ids.data))
    counts.used += 1
    _note(row, counts)
    if isinstance(row, Document):
        _write_document(item, template, limit, writer, number)
        return
    cut = fit(item, limit=limit, num_lead_tokens=template.num_lead_tokens(item.ids))
    counts.truncated += 1
    counts.truncated_start += cut.lost == "start"
    counts.truncated_tokens += len(item.ids) - len(cut.ids)
    writer.add(cut.ids, cut.trained, number, whole=len(item.ids))


def _write_document(
    item: Encoded, template: Template, limit: int, writer: TokenWriter, number: int
) -> None:
    lead = np.array(template.backend.prefix, dtype=np.int32)
    for piece in windows(item.ids[len(lead) :], limit=limit, lead=lead):
        writer.add(piece.ids, piece.trained, number, whole=len(item.ids))


def _write_text(
    origin: Origin, template: Template, limit: int, writer: TokenWriter, counts: Counts
) -> None:
    """A text file is one long text: lines are joined, the tokens cut into windows."""
    lead = np.array(template.backend.prefix, dtype=np.int32)
    body = max(1, limit - len(lead))
    waiting, first = np.empty(0, np.int32), 1
    for text, number in _pieces(origin.rows(), counts):
        waiting = np.concatenate([waiting, template.encode_text(text)])
        full = len(waiting) // body * body
        for window in windows(waiting[:full], limit=limit, lead=lead):
            writer.add(window.ids, window.trained, first)
            counts.lengths.append(len(window.ids))
        waiting, first = waiting[full:], number
    rest = np.concatenate([waiting, template.eos_ids]).astype(np.int32)
    for window in windows(rest, limit=limit, lead=lead):
        writer.add(window.ids, window.trained, first)
        counts.lengths.append(len(window.ids))


def _pieces(items: Iterator[Row | Problem], counts: Counts) -> Iterator[tuple[str, int]]:
    lines: list[str] = []
    size = 0
    for item in items:
        counts.read += 1
        if isinstance(item, Problem):
            counts.tally.add(item)
            continue
        counts.used += 1
        lines.append(item.values["text"])
        size += len(lines[-1]) + 1
        if size >= PIECE_CHARS:
            yield "\n".join(lines) + "\n", counts.read
            lines, size = [], 0
    if lines:
        yield "\n".join(lines), counts.read


def _report(
    origin: Origin,
    guess: Guess,
    template: Template,
    limit: int,
    tokens: Tokens,
    counts: Counts,
) -> Report:
    tally = counts.tally
    if not len(tokens):
        raise DataError(why_nothing(origin.name, counts.read, tally.problems, tally.counts))
    lengths = np.array(counts.lengths, dtype=np.int64)
    num_trained = int(np.count_nonzero(tokens.trained))
    if num_trained == 0:
        raise DataError(f"Not one token of {origin.name} would be trained.")
    is_text = guess.mapping.format == "text"
    return Report(
        name=origin.name,
        read=counts.read,
        kept=counts.used,
        dropped=tally.total,
        problems=listed(tally),
        problem_counts=tally.counts,
        format=guess.mapping.format,
        reason=guess.reason,
        mapping=guess.mapping.columns,
        template="text" if is_text else template.name,
        template_reason="plain text needs no template" if is_text else template.reason,
        examples=len(tokens),
        tokens=len(tokens.ids),
        trained_tokens=num_trained,
        trained_token_share=num_trained / len(tokens.ids),
        truncated=counts.truncated,
        truncated_start=counts.truncated_start,
        truncated_tokens=counts.truncated_tokens,
        limit=limit,
        longest=int(lengths.max()),
        length_histogram=histogram(lengths),
        duplicates=num_repeats(counts.hashes),
        empty_answers=tally.counts.get("empty_answer", 0),
        open_ended=counts.open_ended,
        warnings=_warnings(origin, guess, template, limit, num_trained / len(tokens.ids), counts),
    )


def _warnings(
    origin: Origin, guess: Guess, template: Template, limit: int, share: float, counts: Counts
) -> list[str]:
    notes = list(origin.notes)
    if not guess.sure:
        notes.append(f"The meaning of the columns was guessed: {guess.reason}.")
    if counts.tally.total:
        notes.append(f"{counts.tally.total:,} of {counts.read:,} rows were dropped.")
    at_end = counts.truncated - counts.truncated_start
    if at_end:
        notes.append(f"{at_end:,} rows are longer than {limit:,} tokens and lost their end.")
    if counts.truncated_start:
        notes.append(
            f"{counts.truncated_start:,} rows are longer than {limit:,} tokens and lost the "
            "beginning of their prompt, so that the answer stays in."
        )
    if counts.open_ended:
        notes.append(f"{counts.open_ended:,} rows end with a question; it was left out.")
    if counts.muted:
        notes.append(
            f"{counts.muted:,} answers are marked in the file (weight 0, or train false) and carry "
            "no loss."
        )
    if share < LOW_SHARE:
        notes.append(f"Only {share:.1%} of the tokens are trained.")
    if not template.end and guess.mapping.format != "text":
        notes.append("The tokenizer has no end-of-turn token: answers will not learn to stop.")
    return notes

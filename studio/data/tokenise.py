"""Rows to tokens, batch by batch: convert, encode, cut, write; count what happens on the way."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from studio.data.conversations import Converter, converter
from studio.data.cut import fit, windows
from studio.data.duplicates import bytes_hash, num_repeats
from studio.data.examples import Tokens, TokenWriter
from studio.data.recognise import Guess
from studio.data.records import Conversation, Document, Problem, Row, Tally
from studio.data.report import LOW_SHARE, Report, histogram, listed, why_nothing
from studio.data.sources import Origin, guess_origin
from studio.data.templates import Encoded, Template
from studio.data.templates.spans import runs
from studio.errors import DataError
from studio.spec import DataSource

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

"""Comma, semicolon and tab separated tables with quoted fields that may hold line ends.

Strict: a row with another number of fields than the header is dropped, never shifted. A quote that
is opened and not closed costs its own line: reading starts again on the next one.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import Opened, utf8_chunks
from studio.data.readers.json_lines import Line, lines
from studio.errors import DataError

MAX_COLUMNS = 2000
MAX_RECORD_CHARS = 16 << 20
MAX_RECORD_LINES = 20_000
_DELIMITERS = ",;\t|"
_DECLARED = re.compile(rb'"?sep=([,;\t|])"?')  # a first line that spreadsheets write


class _Lines:
    """Feeds the csv reader line by line, and can go back to replay a record that went wrong."""

    def __init__(self, source: Iterator[Line]) -> None:
        self.source, self.pending = source, deque[Line]()
        self.record: list[Line] = []
        self.bad: str | None = None
        self.size = 0

    def next_line(self) -> Line | None:
        return self.pending.popleft() if self.pending else next(self.source, None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.next_line()
        if line is None:
            raise StopIteration
        self.record.append(line)
        self.size += len(line.data)
        if line.too_long or self.size > MAX_RECORD_CHARS or len(self.record) > MAX_RECORD_LINES:
            self.bad = "too_long"
            raise csv.Error("too long")
        try:
            return line.data.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            self.bad = f"Byte {error.start + 1} of line {line.number} is not UTF-8."
            return line.data.decode("utf-8", "replace") + "\n"

    def start(self) -> None:
        self.record, self.bad, self.size = [], None, 0

    def replay(self) -> None:
        # Reading starts again on the line after the record's first.
        self.pending.extendleft(reversed(self.record[1:]))


def read_delimited(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows and problems of a table; `Row.line` is where the record starts.

    Raises:
        DataError: The header cannot be used.
    """
    feed = _Lines(lines(utf8_chunks(opened)))
    delimiter = _guess_delimiter(opened, feed)
    header = unique_names(_names(opened, feed, delimiter))
    csv.field_size_limit(MAX_RECORD_CHARS + 1)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.start()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield _broken(feed, error)
            feed.replay()
            continue
        if fields is None:
            return
        line = feed.record[0].number
        if feed.bad:
            yield Problem(line, "encoding", feed.bad)
        elif not fields:
            continue
        elif len(fields) != len(header):
            yield Problem(
                line, "fields", f"{len(fields)} fields where the header has {len(header)}."
            )
        else:
            yield Row(line, dict(zip(header, fields, strict=True)))


def header_notes(opened: Opened) -> Iterator[str]:
    """Yield a note if columns of a table have no name or the same name."""
    feed = _Lines(lines(utf8_chunks(opened)))
    try:
        names = _names(opened, feed, _guess_delimiter(opened, feed))
    except DataError:
        return  # reading the rows raises it again
    yield from name_notes(opened, names)


def name_notes(opened: Opened, names: list[str]) -> Iterator[str]:
    """Yield a note for names of columns that are empty, and one for those that repeat."""
    made = unique_names(names)
    unnamed = [new for old, new in zip(names, made, strict=True) if not old]
    again = [new for old, new in zip(names, made, strict=True) if old and old != new]
    for renamed, what in ((unnamed, "no name"), (again, "the name of an earlier one")):
        if renamed:
            count = "One column has" if len(renamed) == 1 else f"{len(renamed):,} columns have"
            listed = ", ".join(f'"{name[:40]}"' for name in renamed[:5])
            yield f"{count} {what} in {opened.path.name}: read as {listed}."


def _guess_delimiter(opened: Opened, feed: _Lines) -> str:
    """Return the separator that the file declares or its first lines agree on; tabs in a tsv."""
    if opened.format == "tsv":
        return "\t"
    head: list[Line] = []
    while len(head) < 20 and (line := feed.next_line()) is not None:
        head.append(line)
    if head and (declared := _DECLARED.fullmatch(head[0].data)):
        feed.pending.extendleft(reversed(head[1:]))
        return declared[1].decode()
    feed.pending.extendleft(reversed(head))
    texts = (line.data.decode("utf-8", "replace") for line in head if line.data)
    counts = [Counter("".join(text.split('"')[::2])) for text in texts]  # outside of quotes
    if not counts:
        return ","
    named = {d: counts[0][d] for d in _DELIMITERS if counts[0][d]}
    if not named:
        return ","
    agree = {d: sum(1 for c in counts if c[d] >= n) for d, n in named.items()}
    return max(named, key=lambda d: (agree[d], d == ",", named[d]))


def _names(opened: Opened, feed: _Lines, delimiter: str) -> list[str]:
    while True:
        feed.start()
        try:
            names = next(csv.reader(feed, delimiter=delimiter, strict=True), None)
        except csv.Error:
            line = feed.record[0].number if feed.record else 1
            raise DataError(
                f"{opened.path.name} has no readable header: line {line} has an open quote or is "
                "too long."
            ) from None
        if names is None:
            raise DataError(f"{opened.path.name} is empty.")
        if names and any(name.strip() for name in names):
            break
    check_width(opened, names)
    return [name.strip().replace("\x00", "") for name in names]


def check_width(opened: Opened, names: list[str]) -> None:
    """Refuse a table with too many columns.

    Raises:
        DataError: Names their number.
    """
    if len(names) > MAX_COLUMNS:
        raise DataError(
            f"{opened.path.name} has {len(names):,} columns; at most {MAX_COLUMNS:,} are read. "
            "Keep the ones to train on."
        )


def unique_names(names: list[str]) -> list[str]:
    """Name empty columns by position and number the repeats: `a, , a` is `a, column 2, a (2)`."""
    made: list[str] = []
    for index, name in enumerate(names):
        name = name or f"column {index + 1}"
        fresh, count = name, 1
        while fresh in made:
            count += 1
            fresh = f"{name} ({count})"
        made.append(fresh)
    return made


def _broken(feed: _Lines, error: csv.Error) -> Problem:
    line = feed.record[0].number
    if feed.bad == "too_long" and len(feed.record) == 1:
        return Problem(line, "too_long", f"The row is longer than {MAX_RECORD_CHARS >> 20} MiB.")
    if "end of data" in str(error) or feed.bad == "too_long":
        return Problem(line, "quote", "A quote is opened here and never closed.")
    return Problem(
        line, "quote", "A quoted field is followed by more text: double the inner quotes."
    )

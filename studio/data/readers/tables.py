"""Read tables, comma or tab separated and Excel workbooks, and write CSV without formulas.

Strict: a row with another number of fields than the header is dropped, never shifted. A quote that
is opened and not closed costs its own line: reading starts again on the next one.

Of a workbook (.xlsx, .xlsm, through openpyxl) it is the first sheet with rows. The first row that
is not empty names the columns. Formulas are read by the values that were saved with them and never
computed. A workbook is a zip of XML files: its size unpacked is bounded, and a file that declares
XML entities is refused.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import Opened, utf8_chunks
from studio.data.readers.json_files import Line, lines
from studio.errors import DataError

logger = logging.getLogger(__name__)

MAX_COLUMNS = 2000
MAX_RECORD_CHARS = 16 << 20
MAX_RECORD_LINES = 20_000
_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"-\d+(\.\d+)?(e[+-]?\d+)?", re.I)
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


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV; texts that a spreadsheet would run as a formula begin with an apostrophe.

    Numbers stay as they are: their minus begins no formula.
    """

    def harmless(cell: Any) -> Any:
        is_formula = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        return f"'{cell}" if is_formula and not _NUMBER.fullmatch(cell) else cell

    text = io.StringIO(newline="")
    csv.writer(text).writerows(map(harmless, row) for row in rows)
    return text.getvalue()


ZIP, OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
MAX_UNPACKED_BYTES, MAX_RATIO = 1 << 30, 200  # of a workbook
RATIO_FREE_BYTES = 16 << 20
CHUNK_BYTES, OVERLAP = 1 << 20, 200
_FORMULA = re.compile(rb"<(?:\w+:)?f[ >/]")
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell [^>]*?ref="([A-Z]+(\d+):[A-Z]+(\d+))"')
_ZEROS, _PERCENT = re.compile("00+"), re.compile(r"0(?:\.(0+))?%(?:;|$)")
_KINDS = {
    "xl/workbook.bin": "a binary Excel workbook (.xlsb): save it as .xlsx or .csv",
    "word/document.xml": "a Word document: save its table as .xlsx or .csv",
    "ppt/presentation.xml": "a PowerPoint file",
    "content.xml": "an OpenDocument file: save the sheet as .xlsx or .csv",
}


class _Sheet(NamedTuple):
    """The sheet that is read, and what its XML says beside the cells."""

    name: str
    others: tuple[str, ...]
    has_formulas: bool
    merged: tuple[tuple[str, int, int], ...]  # range, its first and last row


def workbook_kind(path: Path, sample: bytes) -> str:
    """Return "" for a workbook that can be read, else what the zip or Office file is, in words."""
    if sample.startswith(OLE):
        if _wide("EncryptedPackage") in sample or path.suffix.lower() in (".xlsx", ".xlsm"):
            return "protected with a password: remove the password in Excel and save it again"
        if _wide("Workbook") in sample or path.suffix.lower() == ".xls":
            return "an Excel workbook of before 2007 (.xls): save it as .xlsx or .csv"
        return "an old Office file: save its table as .xlsx or .csv"
    try:
        with zipfile.ZipFile(path) as file:
            names = set(file.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return "a damaged zip archive or Excel workbook: save it again"
    if "xl/workbook.xml" in names:
        return ""
    known = (kind for part, kind in _KINDS.items() if part in names)
    return next(known, "a zip archive: unpack it")


def read_workbook(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows and problems of a workbook; `Row.line` is the row's number in the sheet.

    Raises:
        DataError: It is damaged, has no rows, or its header cannot be used.
    """
    sheet = _look(opened)
    with _workbook(opened) as book:
        rows = _cells(book, sheet.name)
        header_row, names = _sheet_header(opened, sheet, rows)
        header = unique_names(names)
        if not sheet.has_formulas:
            yield from (
                _sheet_row(line, cells, cells, header) for line, cells in rows if _filled(cells)
            )
            return
        with _workbook(opened, formulas=True) as other:
            written = (one for one in _cells(other, sheet.name) if one[0] > header_row)
            for (line, cells), (_, formulas) in zip(rows, written, strict=False):
                if _filled(cells) or any(map(_is_unsaved, cells, formulas)):
                    yield _sheet_row(line, cells, formulas, header)


def workbook_notes(opened: Opened) -> Iterator[str]:
    """Yield what a user should know of the sheet that is read."""
    try:
        sheet = _look(opened)
        with _workbook(opened) as book:
            header_row, names = _sheet_header(opened, sheet, _cells(book, sheet.name))
    except DataError:
        return  # reading the rows raises it again
    if sheet.others:
        more = ", ".join(f'"{name[:40]}"' for name in sheet.others[:5])
        yield (
            f'The sheet "{sheet.name[:40]}" of {opened.path.name} is read, {more} '
            f"{'is' if len(sheet.others) == 1 else 'are'} not: move the one to train on to the "
            "front, or save it as a file of its own."
        )
    if below := [name for name, first, _ in sheet.merged if first > header_row]:
        yield (
            f"{len(below):,} merged ranges of {opened.path.name} (such as {below[0]}) have a value "
            "in their first cell only."
        )
    yield from name_notes(opened, names)


def _filled(cells: list[Any]) -> bool:
    """Return True if a cell of a row has a value."""
    return any(cell.value not in (None, "") for cell in cells)


def _is_unsaved(cell: Any, formula: Any) -> bool:
    """Return True for a formula without a saved value; an empty text is one, of the type "str"."""
    return bool(cell.value is None and formula.data_type == "f" and cell.data_type != "str")


def _sheet_row(
    line: int, cells: list[Any], formulas: list[Any], header: list[str]
) -> Row | Problem:
    for cell, formula in zip(cells, formulas, strict=False):
        place = getattr(cell, "coordinate", "")
        if _is_unsaved(cell, formula):
            return Problem(
                line, "formula", f"Cell {place} holds a formula without a saved value: open the "
                "workbook in Excel or LibreOffice and save it."
            )  # fmt: skip
        if cell.data_type == "e":
            return Problem(line, "formula", f"Cell {place} holds the error {cell.value}.")
    values = [_value(cell) for cell in cells]
    if len(values) > len(header) and any(value is not None for value in values[len(header) :]):
        return Problem(line, "fields", f"Values beyond the {len(header)} columns of the header.")
    values += [None] * (len(header) - len(values))
    return Row(line, dict(zip(header, values, strict=False)))


def _value(cell: Any) -> Any:
    """Return a cell's value as JSON holds it; leading zeros and percentages as Excel shows them."""
    value = cell.value
    if type(value) in (int, float):
        return _formatted(value, cell.number_format)
    if isinstance(value, str):
        if "_x" in value:
            from openpyxl.utils.escape import unescape

            value = unescape(value)
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, datetime):
        return str(value.date()) if value.time() == time() else value.isoformat(sep=" ")
    return str(value) if isinstance(value, date | time | timedelta) else value


def _formatted(value: float, number_format: str) -> Any:
    """Return a number, or its text if the format is `00000` or a percentage such as `0.0%`."""
    if type(value) is int and (zeros := _ZEROS.fullmatch(number_format)):
        return "-" * (value < 0) + str(abs(value)).zfill(len(zeros[0]))
    if percent := _PERCENT.match(number_format):
        exact = Decimal(str(value)) * 100  # Excel rounds halves away from zero
        return f"{exact.quantize(Decimal(10) ** -len(percent[1] or ''), ROUND_HALF_UP):f}%"
    return value


def _sheet_header(
    opened: Opened, sheet: _Sheet, rows: Iterator[tuple[int, list[Any]]]
) -> tuple[int, list[str]]:
    """Return the row of the header and its names, of the first row that is not empty."""
    line, cells = next(((line, cells) for line, cells in rows if _filled(cells)), (0, []))
    if not cells:
        raise DataError(f"{opened.path.name} is empty: no sheet holds a value.")
    if across := [name for name, first, last in sheet.merged if first <= line <= last]:
        raise DataError(
            f"Row {line} of {opened.path.name} has merged cells ({across[0]}), and it must name "
            "each column in a cell of its own: unmerge them, or delete the title above the header."
        )
    names = ["" if cell.value is None else str(_value(cell)).strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    check_width(opened, names)
    return line, names


def _cells(book: Any, name: str) -> Iterator[tuple[int, list[Any]]]:
    sheet = book[name]
    sheet.reset_dimensions()  # a written size may be wrong
    for line, row in enumerate(sheet.iter_rows(), 1):
        yield line, list(row)


def _look(opened: Opened) -> _Sheet:
    status = opened.path.stat()
    return _looked(opened, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _looked(opened: Opened, _size: int, _changed: int) -> _Sheet:
    _check_parts(opened)
    with _workbook(opened) as book:
        sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
        filled = [s for s in sheets if any(_filled(cells) for _, cells in _cells(book, s.title))]
        if not filled:
            raise DataError(f"{opened.path.name} is empty: no sheet holds a value.")
        first, part = filled[0], filled[0]._worksheet_path
    has_formulas, merged = _scan(opened.path, part)
    return _Sheet(first.title, tuple(s.title for s in filled[1:]), has_formulas, merged)


def _check_parts(opened: Opened) -> None:
    """Check the files of the zip before any is read as XML.

    Raises:
        DataError: They are too large, encrypted, or declare entities.
    """
    try:
        with zipfile.ZipFile(opened.path) as file:
            parts = file.infolist()
            unpacked = sum(part.file_size for part in parts)
            most = min(MAX_UNPACKED_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * opened.size_bytes))
            if unpacked > most:
                raise DataError(
                    f"{opened.path.name} unpacks to {unpacked / 2**20:,.0f} MiB, more than a "
                    "workbook of its size: save the sheet as .csv."
                )
            for part in parts:
                if part.filename.endswith((".xml", ".rels")):
                    with file.open(part) as handle:
                        if b"<!DOCTYPE" in handle.read(4096):
                            raise DataError(f"{opened.path.name} declares XML entities: refused.")
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise _damaged(opened, error) from None


def _scan(path: Path, part: str) -> tuple[bool, tuple[tuple[str, int, int], ...]]:
    """Return whether a sheet's XML holds formulas, and its merged ranges with their rows."""
    has_formulas, merged, before = False, dict[str, tuple[str, int, int]](), b""
    with zipfile.ZipFile(path) as file, file.open(part.lstrip("/")) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            text = before + chunk
            has_formulas = has_formulas or bool(_FORMULA.search(text))
            for found in _MERGED.finditer(text):
                name = found[1].decode()
                merged[name] = (name, int(found[2]), int(found[3]))
            before = text[-OVERLAP:]
    return has_formulas, tuple(merged.values())


@contextmanager
def _workbook(opened: Opened, *, formulas: bool = False) -> Iterator[Any]:
    """Open a workbook for reading row by row; whatever it lacks is a sentence."""
    from openpyxl import load_workbook

    book = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations, which are not read
            book = load_workbook(opened.path, read_only=True, data_only=not formulas)
            yield book
    except DataError:
        raise
    except Exception as error:  # whatever openpyxl raises for a part that is missing or damaged
        raise _damaged(opened, error) from None
    finally:
        if book is not None:
            book.close()


def _damaged(opened: Opened, error: Exception) -> DataError:
    logger.info("%s: %r", opened.path, error)
    return DataError(
        f"{opened.path.name} is a damaged Excel workbook: open it in Excel or LibreOffice, save it "
        "again, or save the sheet as .csv."
    )


def _wide(text: str) -> bytes:
    return text.encode("utf-16-le")

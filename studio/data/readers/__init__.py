"""The registry of data file formats: how each is recognised and which reader yields its rows.

A new format is one reader module and one entry in `FORMATS`. The first bytes decide before the
name's ending does.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import (
    COMPRESSED,
    Opened,
    check_regular,
    foreign_kind,
    guess_encoding,
    read_sample,
)
from studio.data.readers.json_files import read_json, read_jsonl, read_plain
from studio.data.readers.tables import (
    OLE,
    ZIP,
    header_notes,
    read_delimited,
    read_workbook,
    workbook_kind,
    workbook_notes,
)
from studio.errors import DataError


class FileFormat(NamedTuple):
    """A data file format; `magic` marks a binary one, `plain` one long text cut into lines.

    `notes` yields what a user should know about how a file's columns are read.
    """

    read: Callable[[Opened], Iterator[Row | Problem]]
    endings: tuple[str, ...]
    magic: tuple[bytes, ...] = ()
    plain: bool = False
    notes: Callable[[Opened], Iterator[str]] = lambda _: iter(())


def _read_arrow(opened: Opened) -> Iterator[Row | Problem]:
    from studio.data.readers import arrow  # pyarrow takes a tenth of a second to load

    yield from (arrow.read_parquet if opened.format == "parquet" else arrow.read_arrow)(opened)


FORMATS = {
    "jsonl": FileFormat(read_jsonl, (".jsonl", ".ndjson")),
    "json": FileFormat(read_json, (".json", ".kiln")),
    "csv": FileFormat(read_delimited, (".csv",), notes=header_notes),
    "tsv": FileFormat(read_delimited, (".tsv", ".tab"), notes=header_notes),
    "parquet": FileFormat(_read_arrow, (".parquet", ".pq"), magic=(b"PAR1",)),
    "arrow": FileFormat(
        _read_arrow, (".arrow", ".feather"), magic=(b"ARROW1", b"\xff\xff\xff\xff")
    ),
    "xlsx": FileFormat(read_workbook, (".xlsx", ".xlsm"), magic=(ZIP,), notes=workbook_notes),
    "txt": FileFormat(read_plain, (".txt", ".text"), plain=True),
    "md": FileFormat(read_plain, (".md", ".markdown"), plain=True),
}
ENDINGS = {ending: name for name, format in FORMATS.items() for ending in format.endings}
_SUFFIX = re.compile(
    rf"({'|'.join(map(re.escape, ENDINGS))})({'|'.join(map(re.escape, COMPRESSED))})*$", re.I
)
KNOWN = f"{', '.join(FORMATS)}, and gzip or zstd of these"
_ADVICE = f"Save the rows as one of {', '.join(FORMATS)}."


def read(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows of a file and what is wrong with it, line by line.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    return FORMATS[opened.format].read(opened)


def data_suffix(name: str) -> str:
    """Return the suffix of a data file, such as `.jsonl` or `.csv.gz`; "" for other files."""
    found = _SUFFIX.search(name)
    return found[0].lower() if found else ""


def look(path: Path) -> Opened:
    """Look at the first bytes of a file.

    Raises:
        DataError: It is missing, empty, not a regular file or not a data file.
    """
    size = check_regular(path)
    compression, sample = read_sample(path)
    if kind := foreign_kind(sample):
        raise DataError(f"{path.name} is {kind}, not a data file. {_ADVICE}")
    is_office = sample.startswith((ZIP, OLE))
    if is_office and compression != "none":
        raise DataError(f"{path.name} is a packed zip archive or workbook: unpack it first.")
    if is_office and (kind := workbook_kind(path, sample)):
        raise DataError(f"{path.name} is {kind}. Known: {KNOWN}.")
    found = _SUFFIX.search(path.name)
    named = ENDINGS[found[1].lower()] if found else None
    for name, format in FORMATS.items():
        if format.magic and sample.startswith(format.magic):
            if compression != "none":
                raise DataError(f"{path.name} is a compressed {name} file: unpack it first.")
            return _noted(Opened(path, name, compression, "binary", size))
    if named and FORMATS[named].magic:
        raise DataError(f"{path.name} is not a {named} file, though its name says so. {_ADVICE}")
    encoding, notes = guess_encoding(sample)
    text = sample.decode(encoding, errors="replace").removeprefix("\ufeff")
    if not text.strip() and size <= len(sample):
        raise DataError(f"{path.name} is empty: it holds only white space.")
    return _noted(Opened(path, _text_format(path, named, text), compression, encoding, size, notes))


def read_alike(opened: Sequence[Opened]) -> list[Opened]:
    """Return the files of one dataset such that a column is of one kind in all of them."""
    tables = [one.path for one in opened if one.format in ("parquet", "arrow")]
    if not tables:
        return [*opened]
    from studio.data.readers.arrow import whole_columns

    whole = whole_columns(tables)
    return [dataclasses.replace(one, whole=whole) for one in opened]


def _noted(opened: Opened) -> Opened:
    more = tuple(FORMATS[opened.format].notes(opened))
    return dataclasses.replace(opened, notes=opened.notes + more) if more else opened


def _text_format(path: Path, named: str | None, text: str) -> str:
    # JSON files often hold JSON lines and the other way round: the content decides.
    start = text.lstrip()
    first, _, rest = start.partition("\n")
    if named in ("json", "jsonl") or (named is None and start[:1] in ("[", "{")):
        if start.startswith("["):  # `[1, 2]` on every line is JSON lines, else it is one array
            arrays = first.rstrip().endswith("]") and rest.lstrip().startswith("[")
            return "jsonl" if arrays else "json"
        if first.strip() == "{" or named == "jsonl":
            return "json" if first.strip() == "{" else "jsonl"
        # `{"data": [` goes on in the next line; what is broken otherwise is a broken line.
        goes_on = first.rstrip().endswith(("{", "[", ",", ":")) and not _is_object(first)
        return "json" if goes_on or (named == "json" and "\n{" not in start) else "jsonl"
    if named in ("csv", "tsv") and start.startswith("{") and _is_object(first):
        return "jsonl"
    if named:
        return named
    if "\x00" in text:
        raise DataError(f"{path.name} is neither text nor a known data file. {_ADVICE}")
    if path.suffix:
        raise DataError(
            f'{path.name}: files ending in "{path.suffix[:20]}" are not read. Known: {KNOWN}.'
        )
    return "txt"


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

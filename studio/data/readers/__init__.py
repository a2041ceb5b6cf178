"""One reader a format; each yields rows and problems, both with their line."""

from __future__ import annotations

from collections.abc import Iterator

from studio.data.files import Opened
from studio.data.readers.delimited import read_delimited
from studio.data.readers.json_document import read_json
from studio.data.readers.json_lines import read_jsonl, read_plain
from studio.data.readers.parquet import read_parquet
from studio.data.records import Problem, Row

_READERS = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_delimited,
    "tsv": read_delimited,
    "parquet": read_parquet,
    "txt": read_plain,
    "md": read_plain,
}


def read(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows of a file and what is wrong with it, line by line.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    return _READERS[opened.format](opened)

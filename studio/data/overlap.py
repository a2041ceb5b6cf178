"""Rows that two datasets share, such as training rows in an evaluation file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from studio.data.check import check_file
from studio.data.conversations import converter
from studio.data.duplicates import content_hash
from studio.data.mapping import Mapping
from studio.data.records import Problem, Row
from studio.data.snapshots import open_snapshot
from studio.data.sources import find
from studio.errors import DataError
from studio.home import Home
from studio.spec import DataSource


def overlap(home: Home, name: str, other: str | Path) -> int:
    """Return how many rows of `other` (a file or dataset) are in a dataset, word for word."""
    report = check_file(other, home=home)
    if report.error:
        raise DataError(report.error.text)
    mine = _hashes(
        open_snapshot(home, name).origin().rows(), open_snapshot(home, name).meta.mapping
    )
    theirs = _hashes(find(DataSource(path=str(other)), home).rows(), report.mapping)
    return len(mine & theirs)


def _hashes(items: Iterator[Row | Problem], mapping: Mapping) -> set[int]:
    convert = converter(mapping)
    made = (convert(item) for item in items if isinstance(item, Row))
    return {content_hash(row) for row in made if not isinstance(row, Problem)}

"""Export the rows of a dataset as jsonl or csv, in which no cell is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from studio.data.messages import json_text
from studio.data.readers.json_lines import dumps
from studio.data.snapshots import Snapshot
from studio.errors import DataError

_NUMBER = re.compile(r"-\d+(\.\d+)?(e[+-]?\d+)?", re.I)


def export_rows(snapshot: Snapshot, target: Path, *, part: str = "", replace: bool = False) -> int:
    """Write the rows as jsonl or csv (by the target's ending); return their number.

    Raises:
        DataError: The target ends otherwise, exists, or cannot be written.
    """
    if target.suffix not in (".jsonl", ".csv"):
        raise DataError(f'Export to a name ending in .jsonl or .csv, not "{target.name}".')
    try:
        with target.open("wb" if replace else "xb") as handle:
            for piece in rows_as(snapshot, target.suffix[1:], part=part):
                handle.write(piece)
    except FileExistsError:
        raise DataError(
            f"{target} exists already: give another name, or --force to replace it."
        ) from None
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}).") from None
    rows, held_out = snapshot.meta.rows, snapshot.meta.validation_rows
    return {"": rows, "train": rows - held_out, "validation": held_out}[part]


def rows_as(snapshot: Snapshot, form: str, *, part: str = "") -> Iterator[bytes]:
    """Yield the rows as lines of jsonl or csv.

    Cells of a csv that a spreadsheet would run as a formula get an apostrophe in front.
    """
    rows = (row for row in snapshot.rows() if not part or row.part == part)
    if form == "jsonl":
        for row in rows:
            yield dumps(row.values) + b"\n"
        return
    names: dict[str, None] = {}
    for row in snapshot.rows():
        names.update(dict.fromkeys(row.values))
    yield csv_text([names]).encode("utf-8", "replace")
    for row in rows:
        cells = [harmless(row.values.get(name)) for name in names]
        yield csv_text([cells]).encode("utf-8", "replace")


def harmless(value: Any) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else value if isinstance(value, str) else json_text(value)
    is_formula = text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(text)
    return "'" + text if is_formula else text


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV; numbers stay as they are, since their minus begins no formula."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(
        [harmless(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    return text.getvalue()

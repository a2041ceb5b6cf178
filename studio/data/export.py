"""Rows back to files, for other programs; a spreadsheet finds no formula in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson

from studio.data.snapshots import Snapshot
from studio.errors import DataError


def export_rows(snapshot: Snapshot, target: Path, *, part: str = "") -> int:
    """Write the rows as jsonl or csv (by the target's ending); returns how many.

    Cells of a csv that a spreadsheet would run as a formula get an apostrophe in front.

    Raises:
        DataError: The ending is another one, or the file cannot be written.
    """
    import csv

    rows = (row for row in snapshot.rows() if not part or row.part == part)
    count = 0
    try:
        if target.suffix == ".jsonl":
            with target.open("wb") as handle:
                for row in rows:
                    handle.write(orjson.dumps(row.values) + b"\n")
                    count += 1
        elif target.suffix == ".csv":
            names: dict[str, None] = {}
            for row in snapshot.rows():
                names.update(dict.fromkeys(row.values))
            with target.open("w", newline="", encoding="utf-8") as text:
                writer = csv.writer(text)
                writer.writerow([harmless(name) for name in names])
                for row in rows:
                    writer.writerow([harmless(row.values.get(name)) for name in names])
                    count += 1
        else:
            raise DataError(f'Export to a name ending in .jsonl or .csv, not "{target.name}".')
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}).") from None
    return count


def harmless(value: Any) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

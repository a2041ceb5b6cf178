"""Writes the rows of a snapshot as Parquet, in groups of bounded size, hashed on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import orjson

from studio.data.records import Row

GROUP_ROWS = 4096
GROUP_BYTES = 8 << 20
ROWS = "rows.parquet"
Part = Literal["train", "validation"]


class RowWriter:
    """Writes rows in groups of bounded size and hashes them on the way."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema(
            [("line", pa.int64()), ("part", pa.string()), ("row", pa.large_string())]
        )
        self._file = pq.ParquetWriter(
            folder / ROWS, self._schema, compression="zstd", use_dictionary=["part"]
        )
        self.hash = hashlib.sha256()
        self.count = self.num_held_out = self.size = self._waiting_bytes = 0
        self._lines: list[int] = []
        self._parts: list[str] = []
        self._rows: list[bytes] = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *failed: object) -> None:
        if failed[0] is None:
            self._flush()
        self._file.close()

    def add(self, row: Row, part: Part) -> None:
        """Append one row."""
        data = orjson.dumps(row.values, default=_plain, option=orjson.OPT_NON_STR_KEYS)
        self.hash.update(b"%d %s " % (len(data), part.encode()))
        self.hash.update(data)
        self.count += 1
        self.num_held_out += part == "validation"
        self.size += len(data)
        self._waiting_bytes += len(data)
        self._lines.append(row.line)
        self._parts.append(part)
        self._rows.append(data)
        if len(self._rows) >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        rows = pa.array(self._rows, pa.large_binary()).cast(pa.large_string())
        columns = [pa.array(self._lines, pa.int64()), pa.array(self._parts, pa.string()), rows]
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._lines, self._parts, self._rows, self._waiting_bytes = [], [], [], 0


def _plain(value: Any) -> Any:
    # Parquet holds more kinds of values than JSON.
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int):
        return float(value)
    return str(value)

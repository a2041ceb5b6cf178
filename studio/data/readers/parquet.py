"""Parquet through pyarrow, in small batches, counting what it unpacks to.

A few hundred bytes of Parquet can hold gigabytes of repeated text, and its metadata may lie about
it: text columns stay dictionary-encoded until a row is needed, and the total is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from studio.data.files import Opened
from studio.data.readers.delimited import MAX_COLUMNS, unique_names
from studio.data.records import Problem, Row
from studio.errors import DataError

BATCH_ROWS = 64
MAX_RATIO = 500
RATIO_FREE_BYTES = 1 << 28
MAX_BATCH_BYTES = 1 << 30


def read_parquet(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows of a Parquet file; `Row.line` counts rows from 1.

    Raises:
        DataError: The file is cut short, damaged, or unpacks to far more than it is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = opened.path.name
    try:
        file = pq.ParquetFile(opened.path)
        texts = [f.name for f in file.schema_arrow if pa.types.is_string(f.type)]
        if len(file.schema_arrow) > MAX_COLUMNS:
            raise DataError(
                f"{name} has {len(file.schema_arrow):,} columns: at most {MAX_COLUMNS:,}."
            )
        file.close()
        file = pq.ParquetFile(opened.path, read_dictionary=texts)
        columns = unique_names(list(file.schema_arrow.names))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(name, 0, error) from None
    row, unpacked = 0, 0
    with file:
        batches = file.iter_batches(batch_size=BATCH_ROWS)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                unpacked = _bounded(opened, batch, unpacked)
                rows = batch.rename_columns(columns).to_pylist()
            except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                raise _damaged(name, row, error) from None
            for values in rows:
                row += 1
                yield Row(row, values)


def _bounded(opened: Opened, batch: Any, unpacked: int) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    size = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices.cast("int64"))
            size += pc.sum(lengths).as_py() or 0
        else:
            size += column.nbytes
    unpacked += size
    if size > MAX_BATCH_BYTES or unpacked > max(RATIO_FREE_BYTES, MAX_RATIO * opened.size_bytes):
        raise DataError(
            f"{opened.path.name} unpacks to more than {MAX_RATIO} times its size, which no text "
            "does: refused."
        )
    return unpacked


def _damaged(name: str, row: int, error: Exception) -> DataError:
    reason = str(error).split("\n")[0][:160]
    where = f" after row {row:,}" if row else ""
    return DataError(f"{name} is a damaged Parquet file{where}: {reason}")

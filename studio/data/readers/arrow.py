"""Read Arrow tables: Parquet, Arrow files (`save_to_disk`, Feather) and the rows of hub datasets.

A few hundred bytes of Parquet can hold gigabytes of repeated text, and its metadata may lie about
it: text columns stay dictionary-encoded until a row is needed, and the total is bounded.

Arrow gives every struct of a column the same keys: those that were not in a row come back as null
and are taken out again, or a tool call would gain the arguments of all other tools. Integers of a
column with empty cells come back as floats (pandas writes them so) and are made whole again, in
all files of a dataset alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import Opened
from studio.data.readers.tables import MAX_COLUMNS, unique_names
from studio.errors import DataError

BATCH_ROWS = 64
MAX_RATIO = 500
RATIO_FREE_BYTES = 1 << 28
MAX_BATCH_BYTES = 1 << 30
LARGEST_EXACT = 2**53  # larger whole numbers are not exact as floats


def read_parquet(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows of a Parquet file; `Row.line` counts rows from 1.

    Raises:
        DataError: The file is cut short, damaged, or unpacks to far more than it is.
    """
    try:
        file = pq.ParquetFile(opened.path)
        schema = file.schema_arrow
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        file.close()
        file = pq.ParquetFile(opened.path, read_dictionary=texts)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(opened, 0, error) from None
    with file:
        yield from _rows(opened, schema, file.iter_batches(batch_size=BATCH_ROWS))


def read_arrow(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows of an Arrow file or stream, as `Dataset.save_to_disk` and Feather write them.

    Raises:
        DataError: The file is cut short, damaged, or unpacks to far more than it is.
    """
    try:
        with pa.memory_map(str(opened.path)) as source:
            schema, batches = _record_batches(source)
            yield from _rows(opened, schema, _sliced(batches))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(opened, 0, error) from None


class Floats(NamedTuple):
    """Names of the columns of floats with a fraction, with an empty cell, and with a number."""

    fractional: frozenset[str] = frozenset()
    empty: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()

    def whole(self) -> frozenset[str]:
        """Return the columns that hold whole numbers and empty cells: integers, once.

        A column without an empty cell keeps its floats: nothing says that it was anything else.
        """
        return (self.empty & self.filled) - self.fractional


def whole_columns(paths: Sequence[Path]) -> frozenset[str]:
    """Return the columns of floats that all files together say were integers, once."""
    return Floats(
        *(each[0].union(*each) for each in zip(*map(_floats, paths), strict=True))
    ).whole()


def floats_in(schema: Any, batches_of: Callable[[list[str]], Iterable[Any]]) -> Floats:
    """Return what the columns of floats hold; `batches_of` yields the batches of some columns."""
    named = list(schema.names)
    once = [field for field in schema if named.count(field.name) == 1]
    left = [field.name for field in once if pa.types.is_floating(field.type)]
    fractional, empty, filled = set[str](), set[str](), set[str]()
    for batch in batches_of(left) if left else ():
        for name in {*left} - fractional:
            values = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            present = values[~np.isnan(values)]
            if np.any(present != np.floor(present)) or np.any(abs(present) > LARGEST_EXACT):
                fractional.add(name)
            if len(present) < len(values):
                empty.add(name)
            if len(present):
                filled.add(name)
        if len(fractional) == len(left):
            break
    return Floats(frozenset(fractional), frozenset(empty), frozenset(filled))


def without_nulls(value: Any) -> Any:
    """Return a nested value without the keys that are null."""
    if type(value) is dict:
        return {
            key: without_nulls(inner) if type(inner) in (dict, list) else inner
            for key, inner in value.items()
            if inner is not None
        }
    if type(value) is list:
        return [without_nulls(item) for item in value]
    return value


def rows_of(
    schema: Any, columns: Sequence[str], whole: Collection[str] = ()
) -> Callable[[Any], list[dict[str, Any]]]:
    """Return the function that turns record batches of a schema into rows with these columns.

    Floats of the columns `whole` become integers.
    Cells are what JSON has a form for, so that rows read alike here and after an import: dates and
    decimals are text, classes (`ClassLabel`) have their names; bytes stay bytes, which are refused.
    """
    fields = [*zip(columns, schema, strict=True)]
    nested = [name for name, field in fields if _holds(field.type, pa.types.is_struct)]
    odd = [name for name, field in fields if _holds(field.type, _has_no_json)]
    classes = _class_names(schema, columns)
    floats = [n for n, field in fields if n in whole and pa.types.is_floating(field.type)]

    def rows(batch: Any) -> list[dict[str, Any]]:
        batch = batch.rename_columns(columns)
        with_nulls = [name for name in nested if _has_null_fields(batch.column(name))]
        found: list[dict[str, Any]] = batch.to_pylist()
        for values in found:
            for name in floats:
                values[name] = _whole(values[name])
            for name in odd:
                values[name] = _plain(values[name])
            for name in with_nulls:
                values[name] = without_nulls(values[name])
            for name, names in classes.items():
                values[name] = _named(values[name], names)
        return found

    return rows


def _holds(arrow_type: Any, test: Callable[[Any], bool]) -> bool:
    """Return True if a type or one inside it is of some kind."""
    if pa.types.is_dictionary(arrow_type):
        return _holds(arrow_type.value_type, test)
    inner = (arrow_type.field(i).type for i in range(arrow_type.num_fields))
    return test(arrow_type) or any(_holds(each, test) for each in inner)


def _has_no_json(arrow_type: Any) -> bool:
    is_json = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer,
        pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, pa.types.is_struct,
        pa.types.is_list, pa.types.is_large_list,
    )  # fmt: skip
    return not any(test(arrow_type) for test in is_json)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bytes | None) else str(value)


def _class_names(schema: Any, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the classes of columns, from what `datasets` writes beside a schema."""
    found = {}
    try:
        known = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        for column, name in zip(columns, schema.names, strict=True):
            feature = known.get(name)
            while isinstance(feature, dict) and "feature" in feature:  # a list of classes
                feature = feature["feature"]
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[column] = [str(one) for one in feature.get("names") or ()]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}  # of another program
    return {column: names for column, names in found.items() if names}


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class, or those of a list; None for -1, an unknown one."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    if not isinstance(value, int) or value >= len(names):
        return value
    return names[value] if value >= 0 else None


def _has_null_fields(column: Any) -> bool:
    """Return True if a field of a struct inside an Arrow column may be null."""
    if pa.types.is_struct(column.type):
        fields = [column.field(i) for i in range(column.type.num_fields)]
        return any(field.null_count or _has_null_fields(field) for field in fields)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _has_null_fields(column.values)
    return bool(pa.types.is_nested(column.type))


def _rows(opened: Opened, schema: Any, batches: Iterator[Any]) -> Iterator[Row]:
    if len(schema) > MAX_COLUMNS:
        raise DataError(
            f"{opened.path.name} has {len(schema):,} columns: at most {MAX_COLUMNS:,} are read."
        )
    whole = whole_columns([opened.path]) if opened.whole is None else opened.whole
    read = rows_of(schema, unique_names(list(schema.names)), whole)
    row = unpacked = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            unpacked = _bounded(opened, batch, unpacked)
            rows = read(batch)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _damaged(opened, row, error) from None
        for values in rows:
            row += 1
            yield Row(row, values)


def _whole(value: float | None) -> int | None:
    return None if value is None or math.isnan(value) else int(value)


def _record_batches(source: Any) -> tuple[Any, Iterable[Any]]:
    """Return the schema and the record batches of an Arrow file or stream."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if is_file:
        file = pa.ipc.open_file(source)
        return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
    stream = pa.ipc.open_stream(source)
    return stream.schema, stream


def _sliced(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)  # offsets of a damaged file would reach outside its memory
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _floats(path: Path) -> Floats:
    try:
        status = path.stat()
        return _floats_of(path, status.st_size, status.st_mtime_ns)
    except Exception:  # a damaged file is named by its reader, with the row
        return Floats()


@lru_cache(maxsize=1024)
def _floats_of(path: Path, _size: int, _changed: int) -> Floats:
    with path.open("rb") as handle:
        is_parquet = handle.read(4) == b"PAR1"
    if is_parquet:
        with pq.ParquetFile(path) as file:
            return floats_in(file.schema_arrow, lambda names: file.iter_batches(columns=names))
    with pa.memory_map(str(path)) as source:
        schema, batches = _record_batches(source)
        return floats_in(schema, lambda names: (batch.select(names) for batch in batches))


def _bounded(opened: Opened, batch: Any, unpacked: int) -> int:
    size = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
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


def _damaged(opened: Opened, row: int, error: Exception) -> DataError:
    reason = str(error).split("\n")[0][:160]
    where = f" after row {row:,}" if row else ""
    kind = {"parquet": "Parquet", "arrow": "Arrow"}[opened.format]
    return DataError(f"{opened.path.name} is a damaged {kind} file{where}: {reason}")

"""Imported datasets: immutable snapshots under the home folder, with hash and report; their export.

A snapshot is `datasets/<name>/` with `rows.parquet` (line, part, row as JSON), `dataset.json` and
`problems.jsonl`. It never changes; every change makes a new one that names its parent. Rows are
written as they are read, so any size needs the same memory, and pages are read by row group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from studio import trash
from studio.data.column_mapping import Mapping
from studio.data.conversation_records import Problem, Row
from studio.data.dataset_files import Origin, Sources
from studio.data.dataset_report import Frozen, Report
from studio.data.dataset_survey import Survey
from studio.data.messages import json_text
from studio.data.readers.json_files import dumps, loads
from studio.data.readers.tables import csv_text
from studio.data.recognise_format import Guess
from studio.errors import DataError, nearest
from studio.home import Home, publishing, slug, sweep

GROUP_ROWS, GROUP_BYTES = 4096, 8 << 20
Part = Literal["train", "validation"]
ROWS, META, PROBLEMS = "rows.parquet", "dataset.json", "problems.jsonl"
SOURCE = "source"  # the column of a mix that names the dataset of each row


class Original(Frozen):
    """The file a dataset was imported from."""

    name: str
    sha256: str
    size_bytes: int = 0
    container: str = ""
    encoding: str = ""


class Parent(Frozen):
    """The snapshot that a step was applied to."""

    name: str
    hash: str


class Meta(Frozen):
    """Everything about a snapshot that is not its rows."""

    name: str
    hash: str = ""
    created: str = ""
    rows: int = 0
    validation_rows: int = 0
    sources: tuple[str, ...] = ()
    plain: bool = False
    mapping: Mapping
    reason: str = ""
    original: Original
    parent: Parent | None = None
    step: dict[str, Any] | None = None
    findings: Report = Report()


class PageRow(NamedTuple):
    """One row of a page; `number` counts from 1."""

    number: int
    line: int
    part: Part
    values: dict[str, Any]

    @property
    def row(self) -> Row:
        """The record that converters take."""
        return Row(self.line, self.values, self.part == "validation")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An imported dataset on disk."""

    folder: Path
    meta: Meta

    def rows(self) -> Iterator[PageRow]:
        """Yield every row, streamed."""
        import pyarrow.parquet as pq

        number = 1
        with pq.ParquetFile(self.folder / ROWS) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from _page_rows(batch, number)
                number += batch.num_rows

    def page(self, offset: int, limit: int) -> list[PageRow]:
        """Return some rows, reading only the row groups that hold them."""
        import pyarrow.parquet as pq

        found: list[PageRow] = []
        with pq.ParquetFile(self.folder / ROWS) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                low, high = max(offset, start), min(offset + limit, stop)
                if low < high:
                    table = file.read_row_group(group).slice(low - start, high - low)
                    found += _page_rows(table, low + 1)
                start = stop
                if start >= offset + limit:
                    break
        return found

    def pick(self, numbers: list[int]) -> Iterator[tuple[int, Row]]:
        """Yield rows by number (from 1), reading only the row groups that hold them."""
        for number in numbers:
            for row in self.page(number - 1, 1) if number > 0 else []:
                yield number, row.row

    def held_out(self) -> NDArray[np.bool_] | None:
        """Return which rows are held out; None where no split is stored."""
        if not self.meta.validation_rows:
            return None
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / ROWS, columns=["part"])
        return np.array(table.column("part").to_numpy() == "validation")

    def sources(self) -> Sources | None:
        """Return the datasets of a mix, and which one each row is from; None of others."""
        if not self.meta.sources:
            return None
        places = {name: place for place, name in enumerate(self.meta.sources)}
        found = (places[row.values[SOURCE]] for row in self.rows())
        return Sources(self.meta.sources, np.fromiter(found, np.int64, self.meta.rows))

    def problems(self) -> Iterator[dict[str, Any]]:
        """Yield the problems that were found when it was made."""
        with (self.folder / PROBLEMS).open("rb") as handle:
            for line in handle:
                yield orjson.loads(line)

    def origin(self) -> Origin:
        """Return the snapshot as a source of rows."""
        return Origin(
            name=self.meta.name,
            files=(self.folder / ROWS,),
            plain=self.meta.plain,
            rows=lambda: (row.row for row in self.rows()),
            content_hash=lambda: self.meta.hash,
            container=self.meta.original.container,
            encoding=self.meta.original.encoding,
            guess=Guess(self.meta.mapping, self.meta.reason),
            held_out=self.held_out,
            sources=self.sources,
            pick=self.pick,
        )


def _page_rows(table: Any, number: int) -> Iterator[PageRow]:
    columns = zip(*(column.to_pylist() for column in table.columns), strict=True)
    for index, (line, part, row) in enumerate(columns):
        yield PageRow(number + index, line, part, loads(row.encode()))


def snapshots(home: Home) -> list[Snapshot]:
    """Return the snapshots of all imported datasets, the newest first."""
    found = [
        open_snapshot(home, folder.name)
        for folder in home.datasets.iterdir()
        if (folder / META).is_file() and not folder.name.startswith(".")
    ]
    return sorted(found, key=lambda s: s.meta.created, reverse=True)


def open_snapshot(home: Home, name: str) -> Snapshot:
    """Open a dataset by name.

    Raises:
        DataError: There is none of that name, or its description is broken.
    """
    folder = home.datasets / name
    if slug(name) != name or not (folder / META).is_file():
        names = [f.name for f in home.datasets.iterdir() if (f / META).is_file()]
        raise DataError(f'There is no imported dataset "{name[:80]}".{nearest(name, names)}')
    try:
        meta = Meta.model_validate_json((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f'The dataset "{name}" cannot be read ({str(error).splitlines()[0][:120]}). '
            "Delete and import it again."
        ) from None
    return Snapshot(folder, meta)


def delete_snapshot(home: Home, name: str) -> trash.Deleted:
    """Move a dataset to the trash; runs keep what they have trained on in their passports."""
    return trash.put(home, open_snapshot(home, name).folder, name)


def restore_snapshot(home: Home, token_or_name: str = "") -> Snapshot:
    """Restore the named dataset, or the one deleted last.

    Raises:
        DataError: There is nothing to restore, or its name is taken.
    """
    one = trash.find(trash.listed(home, home.datasets), token_or_name, error=DataError)
    trash.restore(home, one, error=DataError)
    return open_snapshot(home, one.name)


def free_name(home: Home, wanted: str) -> str:
    """Return a folder name that is not taken: `wanted`, else `wanted-2` and so on.

    One that another import writes just now is taken.
    """
    sweep(home.datasets)
    base = slug(wanted, fallback="dataset")
    name, count = base, 1
    while (home.datasets / name).exists() or any(home.datasets.glob(f".tmp-{name}-*")):
        count += 1
        name = f"{base[:56]}-{count}"
    return name


def write_snapshot(
    home: Home,
    meta: Meta,
    items: Iterator[tuple[Row | Problem, Part]],
    *,
    survey: Survey,
    progress: Callable[[int, int], None] | None = None,
) -> Snapshot:
    """Write rows, report and description in one pass, whole or not at all.

    Args:
        meta: The description; hash, counts and findings are filled in here.
        items: Rows with the part they belong to, and problems.
        survey: Sees every item and gives the findings.
        progress: Called with the rows and bytes written, now and then.
    """
    sweep(home.datasets)
    with publishing(home.datasets / meta.name) as folder:
        with _RowWriter(folder) as writer:
            for item, part in items:
                survey.see(item)
                if isinstance(item, Row):
                    writer.add(item, part)
                    if progress and writer.count % 1024 == 0:
                        progress(writer.count, writer.size)
            findings = survey.report()
        with (folder / PROBLEMS).open("wb") as handle:
            for problem in survey.counter.problems:
                handle.write(orjson.dumps(problem._asdict()) + b"\n")
        mapping = meta.mapping.model_dump_json().encode()
        done = meta.model_copy(
            update={
                "hash": hashlib.sha256(writer.hash.digest() + mapping).hexdigest(),
                "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "rows": writer.count,
                "validation_rows": writer.num_held_out,
                "findings": findings,
            }
        )
        (folder / META).write_text(done.model_dump_json(indent=1), encoding="utf-8")
        if (home.datasets / meta.name).exists():
            raise DataError(
                f'Another import has made the dataset "{meta.name}" meanwhile. Import again, under '
                "another name."
            )
    return open_snapshot(home, meta.name)


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


def rows_as(snapshot: Snapshot, form: str, *, part: str) -> Iterator[bytes]:
    """Yield the rows, of one part or all, as lines of jsonl or csv."""
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
        cells = (row.values.get(name) for name in names)
        texts = [cell if isinstance(cell, str | None) else json_text(cell) for cell in cells]
        yield csv_text([texts]).encode("utf-8", "replace")


class _RowWriter:
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
        self._waiting: list[tuple[int, Part, bytes]] = []

    def __enter__(self) -> _RowWriter:
        return self

    def __exit__(self, *failed: object) -> None:
        if failed[0] is None and self._waiting:
            self._flush()
        self._file.close()

    def add(self, row: Row, part: Part) -> None:
        data = dumps(row.values)
        self.hash.update(b"%d %s " % (len(data), part.encode()))
        self.hash.update(data)
        self.count += 1
        self.num_held_out += part == "validation"
        self.size += len(data)
        self._waiting_bytes += len(data)
        self._waiting.append((row.line, part, data))
        if len(self._waiting) >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        lines, parts, rows = zip(*self._waiting, strict=True)
        columns = [
            pa.array(lines, pa.int64()),
            pa.array(parts, pa.string()),
            pa.array(rows, pa.large_binary()).cast(pa.large_string()),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._waiting, self._waiting_bytes = [], 0

"""Import: any source becomes an immutable snapshot; the same file twice is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from studio.data.mapping import Mapping
from studio.data.origins import Origin, find, guess_origin
from studio.data.recognise import Guess
from studio.data.records import Problem, Row
from studio.data.snapshots import (
    Meta,
    Original,
    Part,
    Snapshot,
    free_name,
    snapshots,
    write_snapshot,
)
from studio.data.survey import Survey
from studio.home import Home
from studio.names import called_after
from studio.spec import DataSource


class Imported(NamedTuple):
    """The snapshot, and whether it was there already."""

    snapshot: Snapshot
    already: bool


def import_dataset(
    home: Home,
    source: DataSource,
    *,
    name: str = "",
    mapping: Mapping | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Imported:
    """Read a whole source and keep it as a snapshot.

    Args:
        home: Where it is kept.
        source: A file, folder, hub id or demo; `format` may fix what the rows are.
        name: What to call it; the source's name when empty.
        mapping: Which column plays which part; guessed when absent.
        progress: Told a share between 0 and 1 and a few words, now and then.

    Raises:
        DataError: It cannot be read, or not one row can be used.
        DiskFull: Nothing is left behind.
    """
    origin = find(source, home)
    guess = _settled(origin, source, mapping)
    if progress:
        progress(0.0, "hashing")
    content = origin.content_hash()
    for old in snapshots(home):
        same = old.meta.original.sha256 == content and old.meta.parent is None
        if same and old.meta.mapping == guess.mapping:
            return Imported(old, True)
    size = sum(file.stat().st_size for file in origin.files)
    meta = Meta(
        name=free_name(home, name or called_after(origin.name)),
        plain=origin.plain,
        mapping=guess.mapping,
        reason=guess.reason,
        original=Original(
            name=origin.name,
            sha256=content,
            size_bytes=size,
            container=origin.container,
            encoding=origin.encoding,
        ),
    )

    def told(count: int, written: int) -> None:
        if progress:
            progress(min(0.99, written / max(1, size)), f"{count:,} rows")

    made = write_snapshot(
        home, meta, _all_train(origin), survey=Survey(origin, guess), progress=told
    )
    if progress:
        progress(1.0, f"{made.meta.rows:,} rows")
    return Imported(made, False)


def _all_train(origin: Origin) -> Iterator[tuple[Row | Problem, Part]]:
    for item in origin.rows():
        yield item, "train"


def _settled(origin: Origin, source: DataSource, mapping: Mapping | None) -> Guess:
    if mapping:
        return Guess(mapping.checked(), "the mapping was given")
    if origin.guess and source.format in ("auto", origin.guess.mapping.format):
        return origin.guess
    return guess_origin(origin, source)

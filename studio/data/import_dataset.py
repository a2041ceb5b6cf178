"""Import a source as an immutable snapshot; the same file twice is recognised."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from studio.data.column_mapping import Mapping
from studio.data.conversation_records import Row
from studio.data.dataset_survey import Survey
from studio.data.find_dataset import find
from studio.data.mix_datasets import Pick, part_of
from studio.data.recognise_format import guess_origin
from studio.data.snapshots import Meta, Original, Snapshot, free_name, snapshots, write_snapshot
from studio.home import Home
from studio.names import called_after
from studio.spec import DataSource


class Imported(NamedTuple):
    """The snapshot; `already` is True if it was there before."""

    snapshot: Snapshot
    already: bool


def import_dataset(
    home: Home,
    source: DataSource,
    *,
    name: str = "",
    mapping: Mapping | None = None,
    num_rows: int = 0,
    pick: Pick = "first",
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Imported:
    """Read a whole source and store it as a snapshot.

    Args:
        home: Where it is stored.
        source: A file, folder, hub id or demo; `format` may fix what the rows are.
        name: The dataset's name; the source's name when empty.
        mapping: Which column plays which part; guessed when absent.
        num_rows: Take only this many rows; 0 takes all. The first rows of the hub are streamed.
        pick: The first rows, or drawn by `seed`.
        seed: Of the draw.
        progress: Called with a share between 0 and 1 and a few words, now and then.

    Raises:
        DataError: It cannot be read, or not one row can be used.
        DiskFull: Nothing is left behind.
    """
    report_progress = progress or (lambda _share, _words: None)
    origin = find(source, home, first=num_rows if pick == "first" else 0)
    origin = part_of(origin, num_rows, pick, seed) if num_rows else origin
    guess = guess_origin(origin, source, mapping)
    report_progress(0.0, "hashing")
    content = origin.content_hash()
    for old in snapshots(home):
        is_same = old.meta.original.sha256 == content and old.meta.parent is None
        if is_same and old.meta.mapping == guess.mapping:
            return Imported(old, True)
    size = sum(file.stat().st_size for file in origin.files)
    meta = Meta(
        name=free_name(home, name or called_after(origin.name if origin.files else source.path)),
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
        sources=sources.names if (sources := origin.sources()) else (),
        step={"kind": "part", "pick": pick, "rows": num_rows, "seed": seed} if num_rows else None,
    )
    made = write_snapshot(
        home,
        meta,
        (
            (item, "validation" if isinstance(item, Row) and item.held_out else "train")
            for item in origin.rows()
        ),
        survey=Survey(origin, guess),
        progress=lambda count, written: report_progress(
            min(0.99, written / max(1, size)), f"{count:,} rows"
        ),
    )
    report_progress(1.0, f"{made.meta.rows:,} rows")
    return Imported(made, False)

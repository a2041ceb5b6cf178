"""Read sources whole: check one, import one as a snapshot, mix several into one.

The same file twice is recognised. A source of a mix keeps its own mapping: its rows are converted
to one common form before they are mixed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from studio.data.column_mapping import Mapping
from studio.data.conversation_records import (
    AnyRecord,
    Conversation,
    Document,
    Judged,
    Message,
    Pair,
    Problem,
    Row,
    num_shared,
)
from studio.data.dataset_files import Origin
from studio.data.dataset_report import Frozen, Report
from studio.data.dataset_survey import NEAR_ROWS_IN_CHECK, Survey
from studio.data.find_dataset import find
from studio.data.recognise_format import guess_origin
from studio.data.row_converters import record_converter
from studio.data.snapshots import (
    SOURCE,
    Meta,
    Original,
    Snapshot,
    free_name,
    snapshots,
    write_snapshot,
)
from studio.errors import DataError, StudioError
from studio.home import Home
from studio.names import called_after
from studio.spec import DataSource

Pick = Literal["first", "random"]
MOST_SOURCES = 32


class Fault(Frozen):
    """Why a file was refused."""

    kind: str
    text: str


class FileReport(Report):
    """The report on one file, as `studio data check --json` prints it."""

    file: str
    ok: bool
    error: Fault | None = None


def check_file(path: str | Path, *, home: Home | None = None) -> FileReport:
    """Read a whole file (or folder, hub id, demo, imported dataset) and report on its rows.

    Never raises for what is in the file: a refusal is in `error`.
    """
    shown = _encodable(str(path)[:1000])
    source = DataSource(path=str(path))
    try:
        origin = find(source, home)
        guess = guess_origin(origin, source)
        survey = Survey(origin, guess, near_rows=NEAR_ROWS_IN_CHECK)
        for item in origin.rows():
            survey.see(item)
        return FileReport(file=shown, ok=True, **dict(survey.report()))
    except StudioError as error:
        fault = Fault(kind=error.kind, text=_encodable(error.text))
    except OSError as error:
        fault = Fault(kind=DataError.kind, text=f"{shown} cannot be read ({error.strerror}).")
    return FileReport(file=shown, ok=False, error=fault)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


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
        name: The dataset's name; the source's name when empty.
        mapping: Which column plays which part; guessed when absent.
        num_rows: Take only this many rows; 0 takes all. The first rows of the hub are streamed.
        pick: The first rows, or drawn by `seed`.
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


def part_of(origin: Origin, num_rows: int, pick: Pick, seed: int) -> Origin:
    """Return the first rows of an origin, or as many drawn by seed, in their order.

    The problems on the way are kept, so that they are counted.
    """

    def rows() -> Iterator[Row | Problem]:
        drawn, seen, chance = list[tuple[int, Row]](), 0, random.Random(seed)
        for item in origin.rows():
            if pick == "first":
                yield item
                seen += isinstance(item, Row)
                if seen == num_rows:
                    return
                continue
            if isinstance(item, Problem):
                yield item
                continue
            seen += 1
            if seen <= num_rows:
                drawn.append((seen, item))
            elif (at := chance.randrange(seen)) < num_rows:  # each row has the same chance
                drawn[at] = (seen, item)
        yield from (row for _, row in sorted(drawn, key=itemgetter(0)))  # files count lines anew

    def content_hash() -> str:
        words = f"{origin.content_hash()} {pick} {num_rows} {seed if pick == 'random' else ''}"
        return hashlib.sha256(words.encode()).hexdigest()

    return dataclasses.replace(origin, rows=rows, content_hash=content_hash, pick=None)


class Source(NamedTuple):
    """One dataset of a mix and its share, relative to the others."""

    name: str
    weight: float


def read_sources(texts: Sequence[str]) -> list[Source]:
    """Read `NAME` or `NAME:WEIGHT`, also between commas.

    Raises:
        DataError: A weight is not above zero, or there are too few or too many sources.
    """
    found = []
    for text in (part.strip() for one in texts for part in one.split(",")):
        name, colon, last = text.rpartition(":")
        if not colon or not last.replace(".", "", 1).isdecimal():
            name, last = text, "1"  # starter:pirate, C:\rows.csv
        if not name or float(last) <= 0:
            raise DataError(f'"{text}" is not a source of a mix: write NAME:WEIGHT, as in a:2,b:1.')
        found.append(Source(name, float(last)))
    if not 2 <= len(found) <= MOST_SOURCES:
        raise DataError(f"A mix has 2 to {MOST_SOURCES} datasets; {len(found)} given.")
    return found


def mix(
    home: Home, sources: Sequence[Source], *, name: str = "", num_rows: int = 0, seed: int = 0
) -> Snapshot:
    """Draw rows of each source by its share and publish them, shuffled, as one snapshot.

    `num_rows` are those in all; 0 takes as many as give every share without repeating a row.

    Raises:
        DataError: A source cannot be read, has too few rows, or is of another kind than the rest.
    """
    read = {one.name: _usable(home, one.name) for one in sources}
    kinds = {one.name: read[one.name].kind for one in sources}
    if len(set(kinds.values())) > 1:
        words = ", ".join(f"{source}: {kind}" for source, kind in kinds.items())
        raise DataError(f"A mix needs rows of one kind; these differ ({words}).")
    total = sum(one.weight for one in sources)
    most = min(len(read[one.name].rows) * total / one.weight for one in sources)
    wanted = num_rows or int(most + 1e-9)
    chance, drawn, counts = random.Random(seed), list[dict[str, Any]](), list[dict[str, Any]]()
    for one, count in zip(sources, _counts(wanted, [s.weight for s in sources]), strict=True):
        _, rows, dropped, _ = read[one.name]
        if not count:
            if num_rows:
                raise DataError(
                    f'The share of "{one.name}" in {wanted:,} rows is less than one row: take more '
                    "rows in all, or give it a larger weight."
                )
            raise DataError(
                f'The share of "{one.name}" in {wanted:,} rows is less than one row: give it a '
                "larger weight."
            )
        if count > len(rows):
            raise DataError(
                f'"{one.name}" has {len(rows):,} usable rows, and {wanted:,} rows in all need '
                f"{count:,} of it: at most {int(most):,} rows keep these shares."
            )
        drawn += [row | {SOURCE: one.name} for row in chance.sample(rows, count)]
        counts.append({"name": one.name, "weight": one.weight, "rows": count, "of": len(rows),
                       "dropped": dropped})  # fmt: skip
    chance.shuffle(drawn)
    title = name or " + ".join(one.name.rpartition(":")[2] for one in sources)
    items = [Row(number, row) for number, row in enumerate(drawn, 1)]
    content = hashlib.sha256(repr((seed, counts)).encode()).hexdigest()
    notes = [
        f'{one["dropped"]:,} rows of "{one["name"]}" cannot be used and are left out.'
        for one in counts if one["dropped"]
    ]  # fmt: skip
    notes += [
        f'{one.held_out:,} held-out rows of "{source}" are left out: name it in '
        "data.validation_path to evaluate on them."
        for source, one in read.items() if one.held_out
    ]  # fmt: skip
    origin = Origin(title, (), False, lambda: iter(items), lambda: content, tuple(notes))
    guess = guess_origin(origin, DataSource())
    if any("tools" in row for row in drawn):  # the rows that are guessed from may have none
        columns = guess.mapping.columns | {"tools": "tools"}
        guess = guess._replace(mapping=guess.mapping.model_copy(update={"columns": columns}))
    meta = Meta(
        name=free_name(home, title), plain=False, mapping=guess.mapping, reason="made by mixing",
        original=Original(name=title, sha256=content, size_bytes=0),
        step={"kind": "mix", "seed": seed, "sources": counts},
        sources=tuple(one.name for one in sources),
    )  # fmt: skip
    return write_snapshot(
        home, meta, ((item, "train") for item in items), survey=Survey(origin, guess)
    )


def _counts(wanted: int, weights: Sequence[float]) -> list[int]:
    """Return the rows of each source, `wanted` in all: shares rounded by the largest remainder."""
    shares = [wanted * weight / sum(weights) for weight in weights]
    counts = [int(share + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: wanted - sum(counts)]:
        counts[i] += 1
    return counts


class _Usable(NamedTuple):
    """The usable rows of a source in the common form, and how many are left out."""

    kind: str
    rows: list[dict[str, Any]]
    dropped: int
    held_out: int


def _usable(home: Home, name: str) -> _Usable:
    source = DataSource(path=name)
    origin = find(source, home)
    mapping = guess_origin(origin, source).mapping
    if origin.plain and mapping.format == "text":
        raise DataError(
            f'"{name}" is one long text, and a mix is made of rows: give its texts as rows with a '
            "column text, one JSON object per line."
        )
    convert, kind = record_converter(mapping), ""
    rows, dropped, num_held_out = list[dict[str, Any]](), 0, 0
    for item in origin.rows():
        if isinstance(item, Row) and item.held_out:
            num_held_out += 1
            continue
        made = convert(item) if isinstance(item, Row) else item
        if isinstance(made, Problem):
            dropped += 1
            continue
        for record in made:
            kind, row = _plain(record)
            rows.append(row)
    if not rows:
        raise DataError(f'"{name}" has no row that can be used.')
    return _Usable(kind, rows, dropped, num_held_out)


def _plain(record: AnyRecord) -> tuple[str, dict[str, Any]]:
    if isinstance(record, Document):
        return "text", {"text": record.text}
    if isinstance(record, Pair):
        shared = num_shared(record)
        chosen, rejected = (_marked(side)[shared:] for side in record)
        tools = {"tools": record.chosen.tools} if record.chosen.tools else {}
        asked = record.chosen.messages[:shared]
        return "pair", {"prompt": asked, "chosen": chosen, "rejected": rejected} | tools
    talk = record.conversation if isinstance(record, Judged) else record
    row: dict[str, Any] = {"messages": _marked(talk)}
    row |= {"tools": talk.tools} if talk.tools else {}
    if isinstance(record, Judged):
        return "judged", row | {"label": record.good}
    return "messages", row


def _marked(talk: Conversation) -> list[Message]:
    """Return the messages, with the loss weights of answers where they are not 1."""
    answers = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
    weights = [*dict.fromkeys(talk.muted, 0).items(), *talk.weights]
    marks = {answers[at]: {"weight": weight} for at, weight in weights}
    return [m | marks.get(i, {}) for i, m in enumerate(talk.messages)]

"""Curate datasets: filter, deduplicate, split, drop, remap into new snapshots; export rows.

The new one names its parent and the step, so the way back is always there and a dataset can say
how it came to be.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import Field

from studio.data.mapping import Mapping, at_path
from studio.data.quality import content_hash, near_duplicates
from studio.data.recognise import Guess
from studio.data.records import Conversation, Document, Problem, Row
from studio.data.rows import converter
from studio.data.snapshots import (
    Meta,
    PageRow,
    Parent,
    Part,
    Snapshot,
    free_name,
    open_snapshot,
    write_snapshot,
)
from studio.data.survey import Survey
from studio.errors import DataError, SpecError, nearest
from studio.fields import Record, validated
from studio.home import Home


def export_rows(snapshot: Snapshot, target: Path, *, part: str = "", replace: bool = False) -> int:
    """Write the rows as jsonl or csv (by the target's ending); returns how many.

    Raises:
        DataError: The ending is another one, a file is there, or it cannot be written.
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
    meta = snapshot.meta
    held_out = meta.validation_rows
    return {"": meta.rows, "train": meta.rows - held_out, "validation": held_out}[part]


def rows_as(snapshot: Snapshot, form: str, *, part: str = "") -> Iterator[bytes]:
    """Yield the rows as lines of jsonl or csv.

    Cells of a csv that a spreadsheet would run as a formula get an apostrophe in front.
    """
    rows = (row for row in snapshot.rows() if not part or row.part == part)
    if form == "jsonl":
        for row in rows:
            yield orjson.dumps(row.values) + b"\n"
        return
    names: dict[str, None] = {}
    for row in snapshot.rows():
        names.update(dict.fromkeys(row.values))
    yield _csv_line([harmless(name) for name in names])
    for row in rows:
        yield _csv_line([harmless(row.values.get(name)) for name in names])


def _csv_line(cells: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def harmless(value: Any) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


Keep = Callable[[PageRow], Part | None]
Operator = Literal[
    "equals", "not_equals", "contains", "not_contains", "greater", "less", "present", "absent"
]


class Filter(Record):
    """Keep rows whose text length lies within bounds, or whose column meets a condition."""

    kind: Literal["filter"] = "filter"
    min_characters: int = 0
    max_characters: int = 0
    column: str = ""
    operator: Operator = "present"
    value: str = ""


class Deduplicate(Record):
    """Keep the first of equal rows, or of nearly equal ones."""

    kind: Literal["dedupe"] = "dedupe"
    near: bool = False


class Split(Record):
    """Hold rows out: a fraction, a count, or whole groups of a column (never split apart)."""

    kind: Literal["split"] = "split"
    fraction: float = Field(0.0, ge=0, lt=1)
    count: int = Field(0, ge=0)
    group_by: str = ""
    seed: int = 0


class Drop(Record):
    """Drop rows by number (from 1), or keep only them."""

    kind: Literal["drop"] = "drop"
    rows: tuple[int, ...] = ()
    keep: bool = False


class Remap(Record):
    """Read the columns differently."""

    kind: Literal["remap"] = "remap"
    mapping: Mapping


Step = Annotated[Filter | Deduplicate | Split | Drop | Remap, Field(discriminator="kind")]
_STEPS: dict[str, type[Filter | Deduplicate | Split | Drop | Remap]] = {
    "filter": Filter, "dedupe": Deduplicate, "split": Split, "drop": Drop, "remap": Remap,
}  # fmt: skip


def parse_step(values: dict[str, Any]) -> Filter | Deduplicate | Split | Drop | Remap:
    """Validate a step given as plain values.

    Raises:
        DataError: Names the wrong field.
    """
    kind = str(values.get("kind", ""))
    if kind not in _STEPS:
        raise DataError(f'There is no step "{kind}".{nearest(kind, _STEPS)}')
    try:
        return validated(_STEPS[kind], values)
    except SpecError as error:
        raise DataError(error.text) from None


def apply_step(
    home: Home,
    name: str,
    step: Filter | Deduplicate | Split | Drop | Remap,
    *,
    new_name: str = "",
    progress: Callable[[float, str], None] | None = None,
) -> Snapshot:
    """Apply a step to a dataset and return the new snapshot; itself where no row would go.

    `progress` is told a share between 0 and 1 and a few words, now and then.

    Raises:
        DataError: The dataset or column is not there, or no row would stay.
    """
    parent = open_snapshot(home, name)
    mapping = step.mapping.checked() if isinstance(step, Remap) else parent.meta.mapping
    keep = _keeper(parent, step)
    guess = Guess(mapping, parent.meta.reason if mapping == parent.meta.mapping else "by hand")
    meta = Meta(
        name=free_name(home, new_name or parent.meta.name),
        plain=parent.meta.plain and mapping.format == "text",
        mapping=mapping,
        reason=guess.reason,
        original=parent.meta.original,
        parent=Parent(name=parent.meta.name, hash=parent.meta.hash),
        step=step.model_dump(mode="json"),
    )

    def items() -> Iterator[tuple[Row | Problem, Part]]:
        kept = 0
        for row in parent.rows():
            part = keep(row)
            if part:
                kept += 1
                yield Row(row.line, row.values), part
        if not kept:
            raise DataError(
                f'The {step.kind} keeps none of the {parent.meta.rows:,} rows of "{name}": '
                "nothing was made."
            )
        if kept == parent.meta.rows and isinstance(step, Filter | Deduplicate | Drop):
            raise _Unchanged  # what was written so far is forgotten

    def told(count: int, _: int) -> None:
        if progress:
            progress(min(0.99, count / max(1, parent.meta.rows)), f"{count:,} rows")

    survey = Survey(parent.origin(), guess)
    try:
        return write_snapshot(home, meta, items(), survey=survey, progress=told)
    except _Unchanged:
        return parent


class _Unchanged(Exception):
    """No row would go: a copy would say nothing new."""


def lineage(home: Home, name: str) -> list[Meta]:
    """Return a dataset and its ancestors that are still there, itself first."""
    found = [open_snapshot(home, name).meta]
    while (parent := found[-1].parent) is not None:
        try:
            meta = open_snapshot(home, parent.name).meta
        except DataError:
            break
        if meta.hash != parent.hash:
            break  # another dataset has taken the name since
        found.append(meta)
    return found


def _keeper(parent: Snapshot, step: Filter | Deduplicate | Split | Drop | Remap) -> Keep:
    if isinstance(step, Filter):
        return _filter(parent, step)
    if isinstance(step, Deduplicate):
        return _dedupe(parent, step)
    if isinstance(step, Split):
        return _split(parent, step)
    if isinstance(step, Drop):
        chosen = set(step.rows)
        wrong = [n for n in chosen if not 1 <= n <= parent.meta.rows]
        if wrong:
            raise DataError(f"There is no row {wrong[0]}: the dataset has {parent.meta.rows:,}.")
        return lambda row: _part(row) if (row.number in chosen) == step.keep else None
    return _part


def _part(row: PageRow) -> Part:
    return "validation" if row.part == "validation" else "train"


def _filter(parent: Snapshot, step: Filter) -> Keep:
    texts = _texts(parent)
    test = _condition(step) if step.column else None
    if test and not any(step.column.split(".")[0] in r.values or step.column in r.values
                        for r in parent.page(0, 200)):  # fmt: skip
        raise DataError(f'The dataset "{parent.meta.name}" has no column "{step.column}".')

    def keep(row: PageRow) -> Part | None:
        if step.min_characters or step.max_characters:
            length = len(texts(row))
            if length < step.min_characters or 0 < step.max_characters < length:
                return None
        return _part(row) if test is None or test(row.values) else None

    return keep


def _condition(step: Filter) -> Callable[[dict[str, Any]], bool]:
    def value_of(values: dict[str, Any]) -> Any:
        try:
            return at_path(values, step.column)
        except KeyError:
            return None

    def compared(values: dict[str, Any]) -> bool:
        found = value_of(values)
        if step.operator in ("present", "absent"):
            return (found is not None and str(found).strip() != "") == (step.operator == "present")
        if step.operator in ("greater", "less"):
            try:
                difference = float(found) - float(step.value)
            except (TypeError, ValueError):
                return False
            return difference > 0 if step.operator == "greater" else difference < 0
        text = "" if found is None else str(found)
        hit = text == step.value if "equals" in step.operator else step.value in text
        return hit != step.operator.startswith("not_")

    if step.operator in ("greater", "less") and not re.fullmatch(r"-?\d+(\.\d+)?", step.value):
        raise DataError(f'"{step.value}" is no number to compare "{step.column}" with.')
    return compared


def _texts(parent: Snapshot) -> Callable[[PageRow], str]:
    convert = converter(parent.meta.mapping)

    def text_of(row: PageRow) -> str:
        made: Conversation | Document | Problem = convert(Row(row.line, row.values))
        if isinstance(made, Problem):
            return ""
        if isinstance(made, Document):
            return made.text
        return "\n".join(message["content"] for message in made.messages)

    return text_of


def _dedupe(parent: Snapshot, step: Deduplicate) -> Keep:
    if step.near:
        texts = _texts(parent)
        repeats = {row for row, _ in near_duplicates(texts(row) for row in parent.rows())}
        return lambda row: None if row.number - 1 in repeats else _part(row)
    convert = converter(parent.meta.mapping)
    seen: set[int] = set()

    def keep(row: PageRow) -> Part | None:
        made = convert(Row(row.line, row.values))
        if isinstance(made, Problem):
            return _part(row)
        digest = content_hash(made)
        if digest in seen:
            return None
        seen.add(digest)
        return _part(row)

    return keep


def _split(parent: Snapshot, step: Split) -> Keep:
    total = parent.meta.rows
    wanted = step.count or round(step.fraction * total)
    if not 0 < wanted < total:
        raise DataError(
            f"Hold out between 1 and {total - 1:,} rows (a fraction or a count), not {wanted:,}."
        )
    convert = converter(parent.meta.mapping)
    groups: dict[Any, list[int]] = {}
    for row in parent.rows():
        key: Any
        if step.group_by:
            try:
                key = str(at_path(row.values, step.group_by))
            except KeyError:
                raise DataError(f'Row {row.number} has no column "{step.group_by}".') from None
        else:
            made = convert(Row(row.line, row.values))
            key = row.number if isinstance(made, Problem) else content_hash(made)
        groups.setdefault(key, []).append(row.number)
    members = list(groups.values())
    chosen: set[int] = set()
    for at in np.random.default_rng(step.seed).permutation(len(members)):
        if len(chosen) + len(members[at]) <= wanted:
            chosen.update(members[at])
    if not chosen:
        raise DataError(f'Every group of "{step.group_by}" is larger than {wanted:,} rows.')
    return lambda row: "validation" if row.number in chosen else "train"

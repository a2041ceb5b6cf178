"""Curate datasets: filter, deduplicate, split, drop, remap into new snapshots; count shared rows.

A new snapshot names its parent and the step, so the parent can always be found again and a dataset
shows how it was made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from studio.data.column_mapping import Mapping, Operator, at_path
from studio.data.conversation_records import (
    Problem,
    Row,
    compared_text,
    content_hash,
    messages_of,
    prompt_hash,
)
from studio.data.dataset_survey import Survey, near_duplicates
from studio.data.find_dataset import find
from studio.data.import_dataset import check_file
from studio.data.readers.json_files import dumps
from studio.data.recognise_format import Guess
from studio.data.row_converters import record_converter
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
from studio.errors import DataError, SpecError, nearest
from studio.fields import Record, validated
from studio.home import Home
from studio.spec import DataSource

Selector = Callable[[PageRow], Part | None]


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


AnyStep = Filter | Deduplicate | Split | Drop | Remap
_STEPS: dict[str, type[AnyStep]] = {
    "filter": Filter, "dedupe": Deduplicate, "split": Split, "drop": Drop, "remap": Remap,
}  # fmt: skip


def parse_step(values: dict[str, Any]) -> AnyStep:
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
    step: AnyStep,
    *,
    new_name: str = "",
    progress: Callable[[float, str], None] | None = None,
) -> Snapshot:
    """Apply a step to a dataset and return the new snapshot; itself if no row would go.

    `progress` is called with a share between 0 and 1 and a few words, now and then.

    Raises:
        DataError: The dataset or column is not there, or no row would stay.
    """
    parent = open_snapshot(home, name)
    mapping = step.mapping.checked() if isinstance(step, Remap) else parent.meta.mapping
    part_of = _selector(parent, step)
    guess = Guess(mapping, parent.meta.reason if mapping == parent.meta.mapping else "by hand")
    meta = Meta(
        name=free_name(home, new_name or parent.meta.name),
        plain=parent.meta.plain and mapping.format == "text",
        mapping=mapping,
        reason=guess.reason,
        sources=parent.meta.sources,
        original=parent.meta.original,
        parent=Parent(name=parent.meta.name, hash=parent.meta.hash),
        step=step.model_dump(mode="json"),
    )

    def items() -> Iterator[tuple[Row | Problem, Part]]:
        kept = 0
        for row in parent.rows():
            if part := part_of(row):
                kept += 1
                yield row.row, part
        if not kept:
            raise DataError(
                f'The {step.kind} keeps none of the {parent.meta.rows:,} rows of "{name}": '
                "nothing was made."
            )
        if kept == parent.meta.rows and isinstance(step, Filter | Deduplicate | Drop):
            raise _Unchanged  # a copy would be the same: what was written so far is dropped

    def report_progress(count: int, _: int) -> None:
        if progress:
            progress(min(0.99, count / max(1, parent.meta.rows)), f"{count:,} rows")

    survey = Survey(parent.origin(), guess)
    try:
        return write_snapshot(home, meta, items(), survey=survey, progress=report_progress)
    except _Unchanged:
        return parent


class _Unchanged(Exception):
    """The step would keep every row as it is."""


def overlap(home: Home, name: str, other: str | Path) -> int:
    """Return how many rows a curated dataset shares, word for word, with `other`."""
    report = check_file(other, home=home)
    if report.error:
        raise DataError(report.error.text)
    mine = open_snapshot(home, name)
    theirs = find(DataSource(path=str(other)), home)
    return len(
        _hashes(mine.origin().rows(), mine.meta.mapping) & _hashes(theirs.rows(), report.mapping)
    )


def _hashes(items: Iterator[Row | Problem], mapping: Mapping) -> set[int]:
    convert = record_converter(mapping)
    made = (convert(item) for item in items if isinstance(item, Row))
    return {content_hash(row[0]) for row in made if not isinstance(row, Problem)}


def _selector(parent: Snapshot, step: AnyStep) -> Selector:
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
        return lambda row: row.part if (row.number in chosen) == step.keep else None
    return lambda row: row.part


def _filter(parent: Snapshot, step: Filter) -> Selector:
    text_of = _text_of(parent)
    test = _condition(step) if step.column else None
    names = {step.column, step.column.split(".")[0]}
    if test and not any(names & set(row.values) for row in parent.rows()):
        raise DataError(f'The dataset "{parent.meta.name}" has no column "{step.column}".')

    def part_of(row: PageRow) -> Part | None:
        if step.min_characters or step.max_characters:
            length = len(text_of(row))
            if length < step.min_characters or 0 < step.max_characters < length:
                return None
        return row.part if test is None or test(row.values) else None

    return part_of


def _condition(step: Filter) -> Callable[[dict[str, Any]], bool]:
    if step.operator in ("greater", "less") and not re.fullmatch(r"-?\d+(\.\d+)?", step.value):
        raise DataError(f'"{step.value}" is not a number to compare "{step.column}" with.')

    def meets(values: dict[str, Any]) -> bool:
        found = at_path(values, step.column, None)
        if step.operator in ("present", "absent"):
            return (found is not None and str(found).strip() != "") == (step.operator == "present")
        if step.operator in ("greater", "less"):
            try:
                difference = float(found) - float(step.value)
            except (TypeError, ValueError, OverflowError):
                return False
            return difference > 0 if step.operator == "greater" else difference < 0
        text = found if isinstance(found, str) else "" if found is None else dumps(found).decode()
        is_equal = "equals" in step.operator
        hit = _equals(found, text, step.value) if is_equal else step.value in text
        return hit != step.operator.startswith("not_")

    return meets


def _equals(found: Any, text: str, value: str) -> bool:
    """Return True if a cell, written as `text`, is a value: numbers as numbers, True as true."""
    if isinstance(found, bool):
        return text == value.strip().lower()
    try:
        return text == value or (isinstance(found, int | float) and found == float(value))
    except ValueError:
        return False


def _text_of(parent: Snapshot) -> Callable[[PageRow], str]:
    convert = record_converter(parent.meta.mapping)

    def text_of(row: PageRow) -> str:
        made = convert(row.row)
        messages = [] if isinstance(made, Problem) else messages_of(made[0])
        return "\n".join([message["content"] for message in messages])

    return text_of


def _dedupe(parent: Snapshot, step: Deduplicate) -> Selector:
    convert = record_converter(parent.meta.mapping)
    if step.near:
        numbers: list[int] = []

        def texts() -> Iterator[str]:
            for row in parent.rows():
                if not isinstance(made := convert(row.row), Problem):
                    numbers.append(row.number)
                    yield compared_text(made[0])

        repeats = {numbers[place] for place in near_duplicates(texts())}
        return lambda row: None if row.number in repeats else row.part
    seen: set[int] = set()

    def part_of(row: PageRow) -> Part | None:
        made = convert(row.row)
        if isinstance(made, Problem):
            return row.part
        digest = content_hash(made[0])
        is_new = digest not in seen
        seen.add(digest)
        return row.part if is_new else None

    return part_of


def _split(parent: Snapshot, step: Split) -> Selector:
    total = parent.meta.rows
    wanted = step.count or round(step.fraction * total)
    if not 0 < wanted < total:
        raise DataError(
            f"Hold out between 1 and {total - 1:,} rows (a fraction or a count), not {wanted:,}."
        )
    convert = record_converter(parent.meta.mapping)
    groups: dict[str | int, list[int]] = {}
    for row in parent.rows():
        key: str | int
        if step.group_by:
            try:
                key = str(at_path(row.values, step.group_by))
            except KeyError:
                raise DataError(f'Row {row.number} has no column "{step.group_by}".') from None
        else:
            made = convert(row.row)
            key = row.number if isinstance(made, Problem) else prompt_hash(made[0])
        groups.setdefault(key, []).append(row.number)
    members = list(groups.values())
    chosen: set[int] = set()
    for at in np.random.default_rng(step.seed).permutation(len(members)):
        if len(chosen) + len(members[at]) <= wanted:
            chosen.update(members[at])
    if not chosen:
        raise DataError(f'Every group of "{step.group_by}" is larger than {wanted:,} rows.')
    return lambda row: "validation" if row.number in chosen else "train"

"""Preview a mapping: columns, a guess that can be corrected, the first rows rendered.

Only the first rows of a source are read, so every answer is quick for any size.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from studio.data.column_mapping import PARTS, Mapping, at_path, fields
from studio.data.conversation_records import (
    AnyRecord,
    Document,
    Judged,
    Pair,
    Problem,
    Row,
    num_shared,
)
from studio.data.dataset_files import Origin
from studio.data.find_dataset import find
from studio.data.recognise_format import SAMPLE_ROWS, Guess, guess_origin, shown
from studio.data.row_converters import record_converter
from studio.errors import DataError, nearest
from studio.home import Home
from studio.spec import DataSource

MAX_SHOWN = 4000
_ABSENT = object()
MAX_ITEMS = 200
COLUMN_ROWS = 50
MAX_ROWS_READ = 100_000
KINDS = ("columns", "templates", "constants")


def guess(source: DataSource, home: Home | None = None) -> Guess:
    """Guess how a source is read, or return what was settled at its import.

    Raises:
        DataError: It cannot be read, or nothing fits.
    """
    return guess_origin(find(source, home, first=SAMPLE_ROWS), source)


def columns(source: DataSource, home: Home | None = None) -> dict[str, str]:
    """Return the columns of a source (dotted where objects lie inside) with an example each."""
    found: dict[str, str] = {}
    for row in _first(source, home, COLUMN_ROWS):
        _collect(row.values, "", found)
    return found


def corrected(
    source: DataSource, format: str, changes: dict[str, dict[str, str]], home: Home | None = None
) -> Mapping:
    """Return the guessed mapping with the user's changes; a new format starts from its own guess.

    Without a format it is the guessed one, or else the only one that the named parts make.

    Raises:
        DataError: The format, a part or a column is not known, or a needed part has no source.
    """
    _check_format(format)
    named = {part for kind in KINDS for part in changes[kind]}
    known = {part for name in PARTS for part in _parts(name)}
    if unknown := sorted(named - known):
        raise DataError(f'"{unknown[0]}" is not a part. The parts: {", ".join(sorted(known))}.')
    origin = find(source, home, first=SAMPLE_ROWS)
    try:
        wanted = source.model_copy(update={"format": format or "auto"})
        base = guess_origin(origin, wanted).mapping
    except DataError:
        if not format and not named:
            raise
        if not format:
            return corrected(source, _only_format(named), changes, home)
        base = blank(format)
    if not format and not named <= _parts(base.format):
        return corrected(source, _only_format(named), changes, home)
    values: dict[str, Any] = base.model_dump()
    for kind in KINDS:
        kept = {part: given for part, given in values[kind].items() if part not in named}
        values[kind] = kept | changes[kind]
    values["roles"] |= changes["roles"]
    _refuse_missing(origin, changes)
    return Mapping.model_validate(values).checked()


def blank(format: str) -> Mapping:
    """Return a mapping without any column, for the user to fill in.

    Raises:
        DataError: The format is not known.
    """
    _check_format(format)
    return Mapping.model_validate({"format": format or "prompt_completion"})


def _check_format(format: str) -> None:
    if format and format not in PARTS:
        raise DataError(f'"{format}" is not a format.{nearest(format, PARTS)}')


def _parts(format: str) -> set[str]:
    return {part for group in PARTS[format] for part in group}


def _only_format(named: set[str]) -> str:
    """Return the one format that these parts make."""
    fitting = [name for name in PARTS if {*PARTS[name][0]} <= named <= _parts(name)]
    if len(fitting) == 1:
        return fitting[0]
    words = " and ".join(f'"{part}"' for part in sorted(named))
    which = f"fit {' and '.join(fitting)}" if fitting else "make no whole format"
    known = "; ".join(
        f"{name} ({', '.join(needed)}{''.join(f', [{part}]' for part in more)})"
        for name, (needed, more) in PARTS.items()
    )
    raise DataError(f"The parts given ({words}) {which}: choose one with --format. Known: {known}.")


def _refuse_missing(origin: Origin, changes: dict[str, dict[str, str]]) -> None:
    """Refuse a column that no row has; usually one of the first has it."""
    wanted = [*changes["columns"].values()]
    wanted += [name for template in changes["templates"].values() for name in fields(template)]
    seen: dict[str, str] = {}
    for looked_at, item in enumerate(origin.rows()):
        if isinstance(item, Row):
            wanted = [path for path in wanted if at_path(item.values, path, _ABSENT) is _ABSENT]
            if looked_at < SAMPLE_ROWS:
                _collect(item.values, "", seen)
        if not wanted or looked_at >= MAX_ROWS_READ:
            break
    if wanted:
        raise DataError(f'No row has a column "{wanted[0][:60]}". The columns: {shown([*seen])}.')


def preview(
    source: DataSource, mapping: Mapping | None, *, count: int = 5, home: Home | None = None
) -> list[dict[str, Any]]:
    """Return the first rows as they are and, with a mapping, as what they become."""
    convert = record_converter(mapping) if mapping else None
    shown: list[dict[str, Any]] = []
    for row in _first(source, home, count):
        entry: dict[str, Any] = {"line": row.line, "row": row.values}
        if convert:
            entry |= as_read(convert(row))
        shown.append(shortened(entry))
    return shown


def as_read(made: list[AnyRecord] | Problem) -> dict[str, Any]:
    """Return what a row became: a problem, a text, messages, a pair's answers or a verdict."""
    if isinstance(made, Problem):
        return {"problem": made.text}
    row = made[0]
    if isinstance(row, Document):
        return {"text": row.text}
    if isinstance(row, Pair):
        shared = num_shared(row)
        answers = {"chosen": row.chosen, "rejected": row.rejected}
        sides = {name: side.messages[shared:] for name, side in answers.items()}
        return {"messages": row.chosen.messages[:shared], "tools": row.chosen.tools} | sides
    talk, verdict = (row.conversation, {"good": row.good}) if isinstance(row, Judged) else (row, {})
    return {"messages": talk.messages, "tools": talk.tools} | verdict


def shortened(value: Any, limit: int = MAX_SHOWN) -> Any:
    """Return plain values with long texts and lists cut, so that a page stays small."""
    if isinstance(value, str):
        shown = value[:limit].encode("utf-8", "replace").decode()  # half a character is none
        return shown if len(value) <= limit else f"{shown} … ({len(value):,} characters)"
    if isinstance(value, dict):
        kept = list(value.items())[:MAX_ITEMS]
        return {shortened(str(key)[:200]): shortened(inner, limit) for key, inner in kept}
    if isinstance(value, list | tuple):
        return [shortened(inner, limit) for inner in value[:MAX_ITEMS]]
    return value if isinstance(value, int | float | bool | None) else str(value)[:limit]


def _first(source: DataSource, home: Home | None, count: int) -> list[Row]:
    first = max(count, SAMPLE_ROWS)
    items = islice(find(source, home, first=first).rows(), MAX_ROWS_READ)
    return list(islice((item for item in items if isinstance(item, Row)), count))


def _collect(values: dict[str, Any], prefix: str, found: dict[str, str], depth: int = 0) -> None:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and depth < 3:
            _collect(value, f"{path}.", found, depth + 1)
        elif len(found) < 500 and (path not in found or not found[path]):
            found[path] = "" if value is None else str(value)[:120]

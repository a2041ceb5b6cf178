"""Mapping: which column plays which part, and how a part is read from a row.

A part takes its value from a column (a dotted path reaches into objects), from a template such as
`{title}: {body}`, or from a constant. It knows the row's columns, not what a template makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from studio.data.conversation_records import Dropped
from studio.errors import DataError
from studio.fields import Record, knob

RowFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer",
    "preference", "judged", "scored", "labelled", "text",
]  # fmt: skip

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("system", "tools")),
    "sharegpt": (("messages",), ("system", "tools")),
    "alpaca": (("instruction", "output"), ("input", "system", "history")),
    "prompt_completion": (("prompt", "completion"), ("system",)),
    "question_answer": (("question", "answer"), ("context", "system")),
    "preference": (
        ("chosen",),
        ("rejected", "prompt", "input", "system", "tools", "chosen_score", "rejected_score"),
    ),
    "judged": (("answer", "label"), ("message", "prompt", "input", "system", "tools")),
    "scored": (("answers",), ("scores", "prompt", "input", "system", "tools")),
    "labelled": (("text", "label"), ("system",)),
    "text": (("text",), ()),
}
"""The parts each format needs, and those it can take."""

Operator = Literal[
    "equals", "not_equals", "contains", "not_contains", "greater", "less", "present", "absent"
]
OPERATORS = {
    "present": "is filled", "absent": "is empty", "equals": "equals", "not_equals": "differs from",
    "contains": "contains", "not_contains": "does not contain", "greater": "is greater than",
    "less": "is less than",
}  # fmt: skip
"""Conditions on a column, and their words in dialogs."""

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
Getter = Callable[[dict[str, Any]], Any]
_RAISE = object()


class Mapping(Record):
    """The format of rows and the column that plays each part."""

    format: RowFormat = knob("messages", "Format of the rows.", title="Format")
    columns: dict[str, str] = knob({}, "Part to column, or dotted path.", title="Columns")
    templates: dict[str, str] = knob({}, "Part to text with {column} in it.", title="Templates")
    constants: dict[str, str] = knob({}, "Part to fixed text.", title="Constants")
    roles: dict[str, str] = knob({}, "Role names of the file to ours.", title="Roles")

    def checked(self) -> Mapping:
        """Return itself when every needed part has a source and no unknown part is named.

        Raises:
            DataError: Names the part and the format.
        """
        needed, optional = PARTS[self.format]
        given = {*self.columns, *self.templates, *self.constants}
        if missing := [part for part in needed if part not in given]:
            raise DataError(
                f'The format "{self.format}" needs the part "{missing[0]}": give it a column, a '
                "template or a constant."
            )
        if unknown := sorted(given - {*needed, *optional}):
            raise DataError(
                f'The format "{self.format}" has no part "{unknown[0]}". '
                f"Its parts: {', '.join([*needed, *optional])}."
            )
        wrong = [r for r in self.roles.values() if r not in ("system", "user", "assistant", "tool")]
        if wrong:
            raise DataError(f'"{wrong[0]}" is not a role: use system, user, assistant or tool.')
        return self


def columns_read(mapping: Mapping) -> frozenset[str]:
    """Return the columns of a row that a mapping reads; of a dotted path also its first part."""
    paths = [*mapping.columns.values()]
    paths += [name for template in mapping.templates.values() for name in fields(template)]
    return frozenset([*paths, *(path.partition(".")[0] for path in paths)])


def getter(mapping: Mapping, part: str) -> Getter | None:
    """Return the function that fetches a part from a row; None when the part has no source."""
    if part in mapping.constants:
        constant = mapping.constants[part]
        return lambda _: constant
    if part in mapping.templates:
        return _template(mapping.templates[part])
    if part in mapping.columns:
        return _column(mapping.columns[part])
    return None


def fields(template: str) -> list[str]:
    """Return the columns that a template names."""
    return [match[1].strip() for match in _FIELD.finditer(template) if match[1]]


def at_path(values: dict[str, Any], path: str, default: Any = _RAISE) -> Any:
    """Follow a dotted path (`meta.answers.0.text`); a column of that very name comes first.

    Raises:
        KeyError: Nothing is there, and no default is given.
    """
    if path in values:
        return values[path]
    found: Any = values
    for step in path.split("."):
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif default is _RAISE:
            raise KeyError(path)
        else:
            return default
    return found


def _column(path: str) -> Getter:
    def get(values: dict[str, Any]) -> Any:
        try:
            return at_path(values, path)
        except KeyError:
            raise Dropped("missing", f'The row has no "{path}".') from None

    return get


def _template(text: str) -> Getter:
    # Only {column} is filled in: no format specs, attributes or code from a saved mapping.
    parts: list[str | Getter] = []
    end = 0
    for match in _FIELD.finditer(text):
        parts.append(text[end : match.start()])
        parts.append(_column(match[1].strip()) if match[1] else match[0][0])
        end = match.end()
    parts.append(text[end:])

    def fill(values: dict[str, Any]) -> str:
        return "".join(
            part if isinstance(part, str) else as_text(part(values), "the template")
            for part in parts
        )

    return fill


def as_text(value: Any, what: str) -> str:
    """Return a cell as text; null and NaN are empty.

    Raises:
        Dropped: It is a list or an object, or holds what no text holds.
    """
    if type(value) is str:
        if "\x00" in value:
            raise Dropped("control", f'"{what}" holds NUL characters.')
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Dropped("encoding", f'"{what}" holds half a character.') from None
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return as_text(value[0], what)
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise Dropped("type", f'"{what}" holds {kind}, not text.')
    if isinstance(value, bytes):
        raise Dropped("type", f'"{what}" holds bytes, not text.')
    return str(value)

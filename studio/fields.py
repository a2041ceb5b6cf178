"""Fields of records: declare them once, validate values, read assignments and YAML.

The form, `--help`, the docs tables and validation are generated from the fields.

pydantic's faults are for programmers; here they become the field, the value got, what was wished
for, and the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from studio.errors import SpecError, StudioError, nearest


class Record(BaseModel):
    """Frozen, validated record; unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Any) -> Self:
        """Return the record of plain values.

        Raises:
            SpecError: Names every wrong field, the value got and the nearest known key.
        """
        return validated(cls, values)


def knob(
    default: Any,
    help: str,
    *,
    title: str | None = None,
    unit: str = "",
    advanced: bool | str = False,
    step: float | None = None,
    several: bool = False,
    flag: str = "",
    positional: bool = False,
    metavar: str = "",
    inner: Sequence[str] = ("path",),
    of: str = "",
    labels: Mapping[str, str] | None = None,
    lines: int = 0,
    when: Mapping[str, Sequence[str]] | None = None,
    words: Mapping[str, Any] | None = None,
    **bounds: Any,
) -> Any:
    """Declare a field with everything that the form and the docs show.

    Args:
        default: The default; lists and dicts are copied.
        help: Meaning, unit and effect in one sentence.
        title: Label; the field's name in words by default.
        unit: Shown behind the number.
        advanced: Show in the form's Advanced section only; a text is its heading there.
        step: By how much the arrows of its control change it.
        several: The text is a comma-separated list of choices.
        flag: Option of the command line; `--` and the field's name by default, "-" for none.
        positional: An argument of the command line instead of an option.
        metavar: Placeholder of the value in `--help`.
        inner: Fields of a nested record that are asked for; the first goes by this field's name.
        of: What the text names (`adapter`, `model`, `dataset`, `job`), for pickers.
        labels: Words for the choices of a dialog.
        lines: Height of the text area in a dialog; a list then has one item per line.
        when: Values of other fields for which a form shows this one.
        words: Values that forms show as a word, such as `{"never": -1}`; "auto" is an empty field.
        bounds: `ge`, `gt`, `le`, `lt`, `max_length` as in pydantic.
    """
    extra: dict[str, Any] = {
        "unit": unit, "advanced": advanced, "step": step, "several": several, "flag": flag,
        "positional": positional, "metavar": metavar, "inner": tuple(inner), "of": of,
        "labels": dict(labels or {}), "lines": lines, "when": dict(when or {}),
        "words": dict(words or {}),
    }  # fmt: skip
    if isinstance(default, list | dict):
        bounds["default_factory"] = lambda: type(default)(default)
    else:
        bounds["default"] = default
    return Field(title=title, description=help, json_schema_extra=extra, **bounds)


Kind = Literal["switch", "choice", "number", "text", "open_choice", "several", "list", "stack"]
AS_DECLARED = ("unit", "positional", "metavar", "of", "labels", "lines", "when", "words")
BOUNDS = {"Ge": "ge", "Gt": "gt", "Le": "le", "Lt": "lt", "MaxLen": "max_length"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One field as forms, commands and docs show it; `path` is dotted in a nested record."""

    path: str
    title: str
    help: str
    kind: Kind
    type: type
    default: Any
    required: bool
    bounds: dict[str, Any]
    choices: tuple[str, ...] = ()
    unit: str = ""
    heading: str = ""
    advanced: bool = False
    flag: str = ""
    positional: bool = False
    metavar: str = ""
    of: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    when: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)


def parameters(record: type[BaseModel]) -> list[Parameter]:
    """Return the fields of a record in its order, nested records by the fields they ask for."""
    found = []
    for name, info in record.model_fields.items():
        nested = _record_in(info.annotation)
        if nested is None:
            found.append(parameter(name, info))
            continue
        default = info.get_default(call_default_factory=True)
        own = _extra(info)
        inner = own.get("inner") or ("path",)
        for part in inner:
            one = parameter(f"{name}.{part}", nested.model_fields[part])
            first = part == inner[0]
            found.append(
                replace(
                    one,
                    default=getattr(default, part, "" if default is None else one.default),
                    title=(info.title or one.title) if first else one.title,
                    help=(info.description or one.help) if first else one.help,
                    flag=f"--{(name if first else part).replace('_', '-')}",
                    advanced=bool(own.get("advanced")) if first else one.advanced,
                    of=str(own.get("of") or one.of),
                )
            )
    return found


def parameter(path: str, info: FieldInfo) -> Parameter:
    """Return one field of a record as it is shown."""
    extra = _extra(info)
    kind, choices, plain = _kind(info.annotation)
    advanced = extra.get("advanced")
    bounds = {
        (bound := BOUNDS[type(one).__name__]): getattr(one, bound)
        for one in info.metadata if type(one).__name__ in BOUNDS
    }  # fmt: skip
    return Parameter(
        path=path,
        title=info.title or path.rpartition(".")[2].replace("_", " ").strip().capitalize(),
        help=info.description or "",
        kind="several" if extra.get("several") else kind,
        type=plain,
        default=None if info.is_required() else info.get_default(call_default_factory=True),
        required=info.is_required(),
        bounds=bounds,
        choices=() if extra.get("several") else choices,
        heading=advanced if isinstance(advanced, str) else "",
        advanced=bool(advanced),
        flag=str(extra.get("flag") or f"--{path.replace('_', '-')}"),
        **{name: extra[name] for name in AS_DECLARED if name in extra},
    )


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _record_in(annotation: Any) -> type[Record] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, Record):
            return part if get_origin(annotation) is not tuple else None
    return None


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...], type]:
    """Return how a field is shown, its choices, and the type of one value."""
    if annotation in (bool, int, float):
        return "switch" if annotation is bool else "number", (), annotation
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return "choice", tuple(str(value) for value in parts), str
    if origin in (tuple, list):
        if isinstance(parts[0], type) and issubclass(parts[0], Record):
            return "stack", (), str
        return "list", (), _kind(parts[0])[2]
    if origin in (Union, UnionType):
        others = [part for part in parts if part is not type(None)]
        words = [str(v) for p in others if get_origin(p) is Literal for v in get_args(p)]
        if len(others) == 1:
            return _kind(others[0])
        if words and (len(words) > 1 or any(get_origin(part) is tuple for part in others)):
            return "open_choice", tuple(words), str
    return "text", (), str


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        SpecError: The file cannot be read or is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"There is no spec file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "").lower() if isinstance(error, OSError) else "it is not text"
        why = "it is a folder" if path.is_dir() else why
        raise SpecError(f"The spec file {path} cannot be read: {why}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise SpecError(f"The spec file {path} is not valid YAML{where}.") from None
    if not isinstance(values, dict):
        raise SpecError(f"The spec file {path} must hold a mapping such as `method: {{r: 16}}`.")
    return values


METHOD = ("method", "method.name")


def merge_values(values: dict[str, Any], assignments: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with dotted keys replaced, in any order.

    A new method name resets the fields of the method before those given beside it are set.
    """
    merged = {key: dict(v) if isinstance(v, dict) else v for key, v in values.items()}
    methods_first = sorted(assignments.items(), key=lambda one: one[0] not in METHOD)
    for dotted, value in methods_first:
        *path, last = dotted.split(".")
        target = merged
        for part in path:
            child = target.get(part)
            if isinstance(child, str) and part == "method":
                child = {"name": child}
            if child is not None and not isinstance(child, dict):
                raise SpecError(f'"{dotted}" is not a field: "{part}" has no parts.', field=dotted)
            target[part] = dict(child or {})
            target = target[part]
        if dotted == "method.name" and target.get("name") != value:
            target.clear()
        target[last] = value
    return merged


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return the field and the YAML value of an assignment such as `method.r=16`.

    Text needs no quotes: of what YAML would cut or read as a date, a time or a mapping, nothing is
    lost (`a #1`, `1:30`, `What is this: a?`).

    Raises:
        SpecError: It has no field or no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(f'"{text}" is not an assignment: write it as method.r=16.')
    written = value.strip()
    try:
        read = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return key.strip(), value
    if written.startswith(("'", '"')):
        return key.strip(), read
    if isinstance(read, bool | int | float):
        kept = ":" not in written
    else:
        kept = written.startswith(("[", "{")) or written in ("", "~", "null")
    return key.strip(), _as_number(read if kept else written)


def _as_number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 as text; 0,001 is a number where a comma is the decimal sign.
    if isinstance(value, str):
        value = re.sub(r"^(-?0),(\d+)$", r"\1.\2", value)
        try:
            return float(value) if value.lower() not in {"nan", "inf", "-inf"} else value
        except ValueError:
            return value
    return value


T = TypeVar("T", bound=BaseModel)
SHOWN = 60  # characters of an invalid value to show


def validated(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """Build a record from plain values.

    Raises:
        SpecError: Names every wrong field, the value got and the nearest known key.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        sentences, expected, field = [], dict[str, list[str]](), ""
        titles = dict[str, str]()
        for fault in (faults := error.errors()):
            loc = fault["loc"]
            if fault["type"] == "too_short" and any(loc == one["loc"][:-1] for one in faults):
                continue  # it is not too short: a part of it is wrong
            inner = fault.get("ctx", {}).get("error")
            if isinstance(inner, StudioError):
                sentences.append(inner.text)
                continue
            if isinstance(inner, ValueError):  # of a record's own validator
                sentences.append(f"{inner}.")
                continue
            path = [p for p in fault["loc"] if isinstance(p, str) and p in _known_parts(cls)]
            if fault["type"] == "extra_forbidden":
                path = [str(p) for p in fault["loc"]]
            dotted = ".".join([prefix, *path] if prefix else path)
            field = field or dotted
            if fault["type"] == "extra_forbidden":
                sentences.append(_unknown(cls, fault, dotted))
            else:  # a field with several types has one fault per type
                got = f"{dotted or 'This'} is {_shown(fault.get('input'))}"
                expected.setdefault(got, []).append(_expected(fault, cls))
                if title := _title(cls, path):
                    titles[dotted] = title
        sentences += [f"{got}: input should be {' or '.join(w)}." for got, w in expected.items()]
        text = " ".join(dict.fromkeys(sentences))
        raise SpecError(text, field=field, titles=titles) from None


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    words = repr(value)
    size = len(value) if isinstance(value, str) else len(words)
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}… ({size} characters)"


def _known_parts(cls: type[BaseModel]) -> set[str]:
    names = set(cls.model_fields)
    for info in cls.model_fields.values():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names |= _known_parts(info.annotation)
    return names


def _unknown(cls: type[BaseModel], fault: Any, dotted: str) -> str:
    *path, last = fault["loc"]
    return f'"{dotted}" is not a field.{nearest(str(last), _owner(cls, path).model_fields)}'


def _title(cls: type[BaseModel], path: Sequence[str]) -> str:
    """Return the title of a field; empty if it is not in a record of one type."""
    info = _owner(cls, path[:-1]).model_fields.get(path[-1]) if path else None
    return parameter(path[-1], info).title if info else ""


def _owner(cls: type[BaseModel], path: Sequence[Any]) -> type[BaseModel]:
    """Return the record at a location, as far as records of one type lead there."""
    for part in path:
        info = cls.model_fields.get(str(part))
        if info and isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            cls = info.annotation
    return cls


def _expected(fault: Any, cls: type[BaseModel]) -> str:
    if fault["type"] == "model_type":
        owner = _owner(cls, fault["loc"])
        names = [*owner.model_fields] if owner is not cls else []
        return "fields of its own" + "".join(f", such as {name}" for name in names[:1])
    if fault["type"] in PLAIN:
        return PLAIN[fault["type"]]
    if fault["type"] == "too_short":
        return f"a list of {fault['ctx']['min_length']} or more"
    text = str(fault["msg"]).removeprefix("Input should be ").partition(", unable to ")[0]
    text = text.replace("String should have ", "text of ")
    return text.replace("a valid tuple", "a list such as [q_proj, v_proj]")


# Plain words for pydantic's error types.
PLAIN = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number with fewer digits",
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text (in quotes where it looks like something else)",
    "dict_type": "a mapping such as {part: column}",
    "invalid_key": "fields with names that are text",
}

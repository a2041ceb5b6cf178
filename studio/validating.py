"""Plain values become a record, or one sentence that names every wrong field.

pydantic's faults are for programmers; here they become the field, the value got, what was wished
for, and the nearest known key.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from studio.errors import SpecError, StudioError, nearest

T = TypeVar("T", bound=BaseModel)
SHOWN = 60  # characters of a wrong value that are worth repeating


def validated(cls: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """Build a record from plain values.

    Raises:
        SpecError: Names every wrong field, the value got and the nearest known key.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        sentences, wishes, field = [], dict[str, list[str]](), ""
        for fault in error.errors():
            inner = fault.get("ctx", {}).get("error")
            if isinstance(inner, StudioError):
                sentences.append(inner.text)
                continue
            if isinstance(inner, ValueError):  # of a record's own validator: it is a sentence
                sentences.append(f"{inner}.")
                continue
            path = [p for p in fault["loc"] if isinstance(p, str) and p in _known_parts(cls)]
            if fault["type"] == "extra_forbidden":
                path = [str(p) for p in fault["loc"]]
            dotted = ".".join([prefix, *path] if prefix else path)
            field = field or dotted
            if fault["type"] == "extra_forbidden":
                sentences.append(_unknown(cls, fault, dotted))
            else:  # a field of several types has a fault for each
                got = f"{dotted or 'This'} is {_shown(fault.get('input'))}"
                wishes.setdefault(got, []).append(_wish(fault, cls))
        sentences += [f"{got}: input should be {' or '.join(w)}." for got, w in wishes.items()]
        raise SpecError(" ".join(dict.fromkeys(sentences)), field=field) from None


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
    owner: type[BaseModel] = cls
    for part in fault["loc"][:-1]:
        info = owner.model_fields.get(str(part))
        if info and isinstance(info.annotation, type):
            owner = info.annotation
    return f'"{dotted}" is not a field.{nearest(str(fault["loc"][-1]), owner.model_fields)}'


def _wish(fault: Any, cls: type[BaseModel]) -> str:
    if fault["type"] == "model_type":
        owner = _owner(cls, fault["loc"])
        return "fields of its own" + "".join(f", such as {name}" for name in owner[:1])
    if fault["type"] in _PLAIN:
        return _PLAIN[fault["type"]]
    wish = str(fault["msg"]).removeprefix("Input should be ").partition(", unable to ")[0]
    wish = wish.replace("String should have ", "text of ")
    return wish.replace("a valid tuple", "a list such as [q_proj, v_proj]")


def _owner(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the fields of the record that was wished for at a place."""
    for part in loc:
        info = cls.model_fields.get(str(part))
        if info is None or not isinstance(info.annotation, type):
            return []
        cls = info.annotation
    return list(cls.model_fields)


# What pydantic says for programmers, by its own names of faults.
_PLAIN = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number that is not so long",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text (in quotes where it looks like something else)",
    "dict_type": "a mapping such as {part: column}",
    "invalid_key": "fields with names that are text",
}

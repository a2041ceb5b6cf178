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
                wishes.setdefault(f"{dotted} is {_shown(fault.get('input'))}", []).append(
                    _wish(fault)
                )
        sentences += [f"{got}: input should be {' or '.join(w)}." for got, w in wishes.items()]
        raise SpecError(" ".join(dict.fromkeys(sentences)), field=field) from None


def _shown(value: Any) -> str:
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


def _wish(fault: Any) -> str:
    wish = str(fault["msg"]).removeprefix("Input should be ").partition(", unable to parse")[0]
    wish = wish.replace("String should have ", "text of ")
    return wish.replace("a valid tuple", "a list such as [q_proj, v_proj]")

"""Stacks of weighted adapters: the record, its limits, and its text forms.

`NAME[:WEIGHT]` is one adapter; `MODEL~NAME:WEIGHT+NAME:WEIGHT` is a lane, as in a page's address,
where names are percent-encoded. A note may follow: settings that other lanes of the comparison do
not have, as in `starter · temperature 0.7`. Loads no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, unquote

from pydantic import BeforeValidator, Field

from studio.errors import AdapterError
from studio.fields import Record, knob

MAX_ADAPTERS = 32
MAX_LANES = 16
MAX_WEIGHT = 10
NOTE = " · "
_STACKED = re.compile(r"(.*)~([^~]+:-?[\d.]+(?:e-?\d+)?)", re.DOTALL)


class StackItem(Record):
    """One adapter of a stack."""

    name: str = knob(
        "", "Name, folder, or RUN@STEP of a checkpoint.", title="Adapter", min_length=1,
        max_length=4096,
    )  # fmt: skip
    weight: float = knob(
        1.0, "1 as trained, 0 off, negative reverses it.", title="Weight", ge=-MAX_WEIGHT,
        le=MAX_WEIGHT,
    )  # fmt: skip

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `NAME[:WEIGHT]`; a colon inside an existing path belongs to the path.

        Raises:
            AdapterError: The name is empty or the weight invalid.
        """
        name, colon, last = text.rpartition(":")
        if not colon or not name or Path(text).exists():
            name, last = text, "1"
        try:
            weight = float(last)
        except ValueError:
            weight = float("nan")
        if not name or not abs(weight) <= MAX_WEIGHT:
            wrong = f'"{last}" is not a weight between -{MAX_WEIGHT} and {MAX_WEIGHT}'
            wrong = wrong if name else "The name of the adapter is empty"
            raise AdapterError(f"{wrong}; write NAME or NAME:0.5.")
        return cls(name=name, weight=weight)

    def __str__(self) -> str:
        """Return `NAME`, or `NAME × WEIGHT` for another weight than 1, as people read it."""
        return self.name if self.weight == 1 else f"{self.name} × {self.weight:g}"


def read_stack(value: Any) -> Any:
    """Accept `NAME:WEIGHT` texts among the items of a stack; leave the rest to validation."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(StackItem.read(item) if isinstance(item, str) else item for item in value)
    return value


Stack = Annotated[
    tuple[StackItem, ...], BeforeValidator(read_stack), Field(max_length=MAX_ADAPTERS)
]


def read_lane(text: str) -> dict[str, Any]:
    """Read `MODEL` or `MODEL~NAME:WEIGHT+…` as `{"model", "stack"}`, without its note.

    Raises:
        AdapterError: A name is empty or a weight invalid.
    """
    plain = text.partition(NOTE)[0]
    found = _STACKED.fullmatch(plain)  # weights after the last tilde: paths have some, too
    model, tilde, rest = (found[1], "~", found[2]) if found else plain.partition("~")
    if not found and os.path.exists(os.path.expanduser(plain)):
        model, tilde = plain, ""
    items = [StackItem.read(unquote(part)) for part in rest.split("+")] if tilde else []
    return {"model": model or "starter", "stack": [item.model_dump() for item in items]}


def write_lane(model: str, stack: Sequence[StackItem]) -> str:
    """Return what `read_lane` reads."""
    parts = "+".join(f"{quote(item.name, safe='')}:{item.weight:g}" for item in stack)
    return f"{model}~{parts}" if parts else model


def lane_note(text: str) -> str:
    """Return the note of a lane with what separates it; empty if it has none."""
    return "".join(text.partition(NOTE)[1:])

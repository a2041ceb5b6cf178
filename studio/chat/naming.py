"""Read `NAME_OR_DIR[:WEIGHT]`, the way stacks are written on the command line and over HTTP."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from studio.chat.lanes import Part
from studio.errors import ChatError


def parse_part(text: str) -> Part:
    """Split an adapter from its weight; a folder whose own name ends in `:0.5` is a folder.

    Raises:
        ChatError: The name is empty, or the weight is out of bounds.
    """
    name, colon, last = text.rpartition(":")
    weight = _number(last)
    if not colon or weight is None or Path(text).is_dir():
        name, weight = text, 1.0
    try:
        return Part(name=name, weight=weight)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ChatError(
            f'"{text}" is no adapter: {fault["loc"][0]} is {fault["input"]!r}; write it as '
            "NAME or NAME:0.5."
        ) from None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

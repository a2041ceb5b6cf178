"""Keys of adapter files made on a wrapper's text class, or on the wrapper of a text class.

A vision-language model holds its decoder as `model.language_model.layers`, its text class as
`model.layers`, and older libraries as `language_model.model.layers`. An adapter made on one class
has no effect on another unless its keys are renamed; here each key gets the name that the loaded
model has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
PREFIX, TOWER = "base_model.model.", "language_model."


def plain(path: str) -> str:
    """Return a module path without the part that names the text tower of a wrapper."""
    return path.replace(TOWER, "")


def own_keys(tensors: Mapping[str, T], modules: Iterable[str]) -> dict[str, T]:
    """Return the tensors under the keys that this model's modules have.

    Args:
        tensors: Tensors by PEFT's key.
        modules: Paths of the model's modules.
    """
    known = set(modules)
    by_plain = {plain(path): path for path in known}
    return {_own_key(key, known, by_plain): tensor for key, tensor in tensors.items()}


def _own_key(key: str, known: set[str], by_plain: Mapping[str, str]) -> str:
    if not key.startswith(PREFIX):
        return key
    rest = key.removeprefix(PREFIX)
    path = rest
    parts: list[str] = []
    while path:
        if path in known:
            return key
        if plain(path) in by_plain:
            return ".".join([f"{PREFIX}{by_plain[plain(path)]}", *reversed(parts)])
        path, _, part = path.rpartition(".")
        parts.append(part)
    return key

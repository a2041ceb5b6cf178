"""Lineage: the adapters that an adapter was trained from, and those a stack needs below it.

A fresh adapter stacked on a frozen one answers as it was trained only with that one below it, so
what answers, merges, measures or exports a stack completes it first. The passport lists the line,
the oldest adapter first; a folder in the same home is relative to the adapter's own, so that a home
can be moved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from studio.adapter_stack import Stack, StackItem
from studio.adapters import library
from studio.adapters.library import StoredAdapter
from studio.errors import AdapterError, StudioError
from studio.home import Home
from studio.models.find_model import ModelFacts, facts, origin_of
from studio.spec import ModelSource, RunSpec

OTHER_BASE = "{adapter} was trained on another base than {model}: its answers may be poor."

WHOLE = '"{name}" is a model of its own (full fine-tuning): give it as the model, not in a stack.'


class Needs(NamedTuple):
    """The folder of a stack's item, and the adapters that it was trained on top of."""

    folder: Path
    below: list[StoredAdapter]


def lineage(parent: StoredAdapter, *, stacked: bool, folder: Path) -> list[dict[str, Any]]:
    """Return the line of an adapter that will be published in a folder.

    It was trained from `parent`, which it needs below it if `stacked`. The folder is
    `runs/<id>/adapter` of a home, or any other place.
    """
    line = [
        one | {"path": _written(parent.path / one["path"], folder)}
        for one in parent.passport.get("lineage") or []
    ]
    own = {
        "name": parent.name, "path": _written(parent.path, folder), "method": parent.method,
        "data": parent.section("data").get("path", ""), "frozen": stacked,
    }  # fmt: skip
    return [*line, own]


def frozen_below(adapter: StoredAdapter) -> list[StoredAdapter]:
    """Return the adapters that an adapter was trained on top of, the lowest first.

    Raises:
        AdapterError: One of them is missing.
    """
    found = []
    for one in adapter.passport.get("lineage") or []:
        if one.get("frozen"):
            try:
                found.append(library.describe(_folder(adapter, one)))
            except AdapterError:
                raise AdapterError(
                    f'"{adapter.name}" was trained on top of "{one.get("name")}", which is missing '
                    f"from {_folder(adapter, one)}: restore it (studio adapters undo)."
                ) from None
    return found


def below_run(spec: RunSpec) -> list[StoredAdapter]:
    """Return the adapters that are frozen below the one that a run trains, the lowest first."""
    if not spec.train.init_adapter:
        return []
    parent = library.describe(Path(spec.train.init_adapter))
    return [*frozen_below(parent), *([parent] if spec.train.init_mode == "stack" else [])]


def built_on(home: Home, folder: Path) -> list[StoredAdapter]:
    """Return the adapters of a home that were trained on top of the one in a folder."""
    return [
        other for other in library.adapters(home)
        if any(_folder(other, one) == folder
               for one in other.passport.get("lineage") or [] if one.get("frozen"))
    ]  # fmt: skip


def completed(
    stack: Stack, needs: Callable[[str], Needs], name: Callable[[StoredAdapter], str]
) -> Stack:
    """Return a stack with what its adapters were trained on top of, at weight 1, where it lacks it.

    `needs` looks up an item by name; `name` returns the name of an adapter that is added.
    """
    found = [needs(item.name) for item in stack]
    listed, made = {one.folder for one in found}, list[StackItem]()
    for item, own in zip(stack, found, strict=True):
        for one in (below for below in own.below if below.path not in listed):
            listed.add(one.path)
            made.append(StackItem(name=name(one)))
        made.append(item)
    return tuple(made)


def resolve_stack(home: Home, stack: Stack, *, or_model: bool = False) -> Stack:
    """Return a stack, completed, with its adapters' folders as names.

    With `or_model` a fully fine-tuned model may stand in it, alone and at weight 1.

    Raises:
        AdapterError: An adapter does not exist, or is a model.
    """
    named = tuple(
        item.model_copy(update={"name": str(library.resolve(home, item.name))}) for item in stack
    )
    found = [library.describe(Path(item.name)) for item in named]
    if not (or_model and [item.weight for item in named] == [1]):
        for one in (one for one in found if one.is_model):
            raise AdapterError(WHOLE.format(name=one.name))
    return completed(
        named, lambda name: Needs(Path(name), frozen_below(library.describe(Path(name)))),
        lambda adapter: str(adapter.path),
    )  # fmt: skip


def base_of(model: ModelSource, stack: Stack) -> ModelSource:
    """Return the base of a stack whose items are folders: by default that of its first adapter.

    Raises:
        AdapterError: No base was chosen, and that of the adapter is unknown.
    """
    if model.path or not stack:
        return model if model.path else ModelSource()
    adapter = library.describe(Path(stack[0].name))
    if not adapter.base:
        raise AdapterError(f'The base of "{adapter.name}" is unknown: choose one.')
    return model.model_copy(update={"path": adapter.base, "revision": adapter.base_revision})


def base_fingerprint(adapter: StoredAdapter) -> str:
    """Return the fingerprint of an adapter's base; empty if unknown and the base is not here."""
    known, base = adapter.base_fingerprint, adapter.base
    if known or not base or origin_of(base).kind not in ("embedded", "folder"):
        return known
    try:
        return facts(ModelSource(path=base)).fingerprint
    except StudioError:
        return ""


def of_other_bases(folders: Iterable[Path], model: str, known: ModelFacts) -> list[str]:
    """Return a warning for each adapter that was trained on another base than a model."""
    found = map(library.describe, folders)
    return [
        OTHER_BASE.format(adapter=one.name, model=model)
        for one in found if base_fingerprint(one) not in ("", known.fingerprint)
    ]  # fmt: skip


def _folder(adapter: StoredAdapter, one: dict[str, Any]) -> Path:
    """Return the folder of an entry of an adapter's line; relative ones are to its own folder."""
    return Path(os.path.normpath(adapter.path / str(one.get("path"))))


def _written(path: Path, folder: Path) -> str:
    """Return the path of an adapter as the passport in a folder states it."""
    path, folder = Path(os.path.normpath(path)), folder.absolute()
    home = folder.parents[2] if folder.name == "adapter" else folder.parents[1]
    if not path.is_relative_to(home):
        return str(path)
    return Path(os.path.relpath(path, folder)).as_posix()

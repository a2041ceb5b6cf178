"""Keeping the library in order: names, tags, and a trash from which everything comes back.

A name and tags are a person's own and live in a label beside the adapter, whose published files
stay as their manifest says. Deleting moves the folder into the home's trash in one rename; undo
moves it back to where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.adapters.library import LABEL, Adapter, adapters, describe, resolve
from studio.errors import AdapterError, nearest
from studio.home import Home, slug
from studio.names import fault

ORIGIN, KEPT = "origin.json", "adapter"
KEEP_SECONDS = 30 * 86_400
MOST_TAGS, LONGEST_TAG = 20, 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Trashed:
    """A deleted adapter: `token` names it for undo, `path` is where it was."""

    token: str
    name: str
    path: Path
    deleted: float


def find(home: Home, name: str) -> Adapter:
    """Return an adapter that lies in this home, by its id, name or number.

    Raises:
        AdapterError: There is none, or it lies elsewhere.
    """
    known = adapters(home)
    for adapter in known:
        if name == adapter.id:
            return adapter
    path = resolve(home, name)
    for adapter in known:
        if adapter.path == path:
            return adapter
    raise AdapterError(f"{path} is not in this home; import it first.")


def rename(home: Home, name: str, new: str) -> Adapter:
    """Give an adapter another name; one of the library also gets its folder renamed.

    Raises:
        AdapterError: The name is empty, taken, or could be read as something else.
    """
    adapter = find(home, name)
    new = _checked_name(new)
    taken = {other.name.casefold() for other in adapters(home) if other.path != adapter.path}
    target = adapter.path.with_name(slug(new)) if adapter.source == "library" else adapter.path
    if new.casefold() in taken or (target != adapter.path and target.exists()):
        raise AdapterError(f'There is already an adapter "{new}"; choose another name.')
    _write_label(adapter, name=new)
    if target != adapter.path:
        os.rename(adapter.path, target)
    return describe(target, source=adapter.source)


def tag(home: Home, name: str, tags: Sequence[str]) -> Adapter:
    """Set an adapter's tags; none takes them all away.

    Raises:
        AdapterError: There are too many, or one is too long.
    """
    adapter = find(home, name)
    words = list(dict.fromkeys(" ".join(word.split()) for word in tags if word.strip()))
    if len(words) > MOST_TAGS:
        raise AdapterError(f"An adapter can have {MOST_TAGS} tags, not {len(words)}.")
    for word in words:
        if len(word) > LONGEST_TAG or "," in word or not word.isprintable():
            raise AdapterError(
                f'"{word[:LONGEST_TAG]}" is no tag: at most {LONGEST_TAG} characters, no commas.'
            )
    _write_label(adapter, tags=words)
    return describe(adapter.path, source=adapter.source)


def delete(home: Home, name: str) -> Trashed:
    """Move an adapter to the trash; what lies there for a month goes for good.

    Raises:
        AdapterError: There is no such adapter in this home.
    """
    adapter = find(home, name)
    _empty_old(home)
    moment = time.time()
    token = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(moment))}-{slug(adapter.name)}"
    place, number = home.trash / token, 1
    while place.exists():
        number += 1
        place = home.trash / f"{token}-{number}"
    place.mkdir(parents=True, mode=0o700)
    relative = adapter.path.relative_to(home.path).as_posix()
    origin = {"name": adapter.name, "path": relative, "deleted": moment}
    (place / ORIGIN).write_text(json.dumps(origin, ensure_ascii=False), encoding="utf-8")
    os.rename(adapter.path, place / KEPT)
    return Trashed(token=place.name, name=adapter.name, path=adapter.path, deleted=moment)


def trash(home: Home) -> list[Trashed]:
    """Return what can be restored, newest first."""
    if not home.trash.is_dir():
        return []
    found = [_trashed(home, place) for place in home.trash.iterdir() if (place / KEPT).is_dir()]
    return sorted((one for one in found if one), key=lambda one: one.deleted, reverse=True)


def undo(home: Home, token_or_name: str = "") -> Adapter:
    """Restore what was deleted last, or the named one.

    Raises:
        AdapterError: There is nothing to restore, or its place was taken meanwhile.
    """
    waiting = trash(home)
    if not waiting:
        raise AdapterError("Nothing was deleted: there is nothing to restore.")
    wanted = [one for one in waiting if token_or_name in ("", one.token, one.name)]
    if not wanted:
        raise AdapterError(
            f'No deleted adapter is called "{token_or_name}".'
            f"{nearest(token_or_name, [one.name for one in waiting])}"
        )
    one = wanted[0]
    taken = {adapter.name.casefold() for adapter in adapters(home)}
    if one.path.exists() or one.name.casefold() in taken:
        raise AdapterError(
            f'"{one.name}" cannot come back: there is another adapter of that name now. '
            "Rename that one first."
        )
    one.path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(home.trash / one.token / KEPT, one.path)
    shutil.rmtree(home.trash / one.token, ignore_errors=True)
    in_run = one.path.parent.parent == home.runs
    return describe(one.path, source="run" if in_run else "library")


def _checked_name(name: str) -> str:
    name = name.strip()
    if why := fault(name):
        raise AdapterError(why)
    return " ".join(name.split())


def _write_label(adapter: Adapter, **changes: Any) -> None:
    """Write name and tags in one rename; the adapter's own files stay as they are."""
    passport_name = str(adapter.passport.get("name") or "")
    label: dict[str, Any] = {"tags": list(adapter.tags)}
    if adapter.name != passport_name:
        label["name"] = adapter.name
    temporary = adapter.path / f".{LABEL}-{os.getpid()}"
    temporary.write_text(json.dumps(label | changes, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, adapter.path / LABEL)


def _trashed(home: Home, place: Path) -> Trashed | None:
    try:
        origin = json.loads((place / ORIGIN).read_text(encoding="utf-8"))
        path = home.path / str(origin["path"])
        if not path.resolve().is_relative_to(home.path.resolve()):
            return None
        return Trashed(
            token=place.name, name=str(origin["name"]), path=path,
            deleted=float(origin["deleted"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _empty_old(home: Home) -> None:
    for one in trash(home):
        if time.time() - one.deleted > KEEP_SECONDS:
            shutil.rmtree(home.trash / one.token, ignore_errors=True)

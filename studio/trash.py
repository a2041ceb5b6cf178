"""The trash of a home: deleted adapters and datasets, until they are restored or 30 days old.

A folder moves to `trash/<token>/` in one rename, with a note of its name and place beside it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from studio import atomic
from studio.errors import StudioError, nearest
from studio.home import Home, slug

ORIGIN, CONTENT = "origin.json", "adapter"  # of a folder in the trash
SECONDS = 30 * 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Deleted:
    """A folder in the trash: `token` identifies it, `path` is where it was."""

    token: str
    name: str
    path: Path
    deleted: float


def put(home: Home, folder: Path, name: str) -> Deleted:
    """Move a folder of the home to the trash, and remove what has been there for 30 days."""
    now = time.time()
    for old in listed(home, home.path):
        if now - old.deleted > SECONDS:
            shutil.rmtree(home.trash / old.token, ignore_errors=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{slug(name)}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    place = next(home.trash / name for name in names if not (home.trash / name).exists())
    place.mkdir(parents=True, mode=0o700)
    origin = {"name": name, "path": folder.relative_to(home.path).as_posix(), "deleted": now}
    (place / ORIGIN).write_text(json.dumps(origin, ensure_ascii=False), encoding="utf-8")
    atomic.replace(folder, place / CONTENT)
    return Deleted(token=place.name, name=name, path=folder, deleted=now)


def listed(home: Home, *within: Path) -> list[Deleted]:
    """Return what was deleted from folders of the home (e.g. `home.datasets`), newest first."""
    found = []
    for place in home.trash.iterdir() if home.trash.is_dir() else ():
        with suppress(OSError, ValueError, KeyError, TypeError):
            origin = json.loads((place / ORIGIN).read_text(encoding="utf-8"))
            path, deleted = home.path / str(origin["path"]), float(origin["deleted"])
            inside = any(path.resolve().is_relative_to(one.resolve()) for one in within)
            if inside and (place / CONTENT).is_dir():
                found.append(Deleted(
                    token=place.name, name=str(origin["name"]), path=path, deleted=deleted
                ))  # fmt: skip
    return sorted(found, key=lambda one: one.deleted, reverse=True)


def find(deleted: list[Deleted], token_or_name: str, *, error: type[StudioError]) -> Deleted:
    """Return the named one, or the one deleted last.

    Raises:
        StudioError: There is none; it is an `error`.
    """
    if not deleted:
        raise error("The trash is empty: there is nothing to restore.")
    for one in deleted:
        if token_or_name in ("", one.token, one.name):
            return one
    near = nearest(token_or_name, [one.name for one in deleted])
    raise error(f'There is no "{token_or_name}" in the trash.{near}')


def restore(home: Home, one: Deleted, *, taken: bool = False, error: type[StudioError]) -> None:
    """Move a folder back to its place.

    Raises:
        StudioError: Its place, or its name (`taken`), is another's now; it is an `error`.
    """
    if taken or one.path.exists():
        raise error(
            f'"{one.name}" cannot be restored: another one has that name now. Rename or delete '
            "that one first."
        )
    one.path.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(home.trash / one.token / CONTENT, one.path)
    shutil.rmtree(home.trash / one.token, ignore_errors=True)

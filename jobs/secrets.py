"""The few secrets of a home, each in a file of its own that only its owner can read.

They are never in a spec, a log, an answer of a route or the database; a page and a command see
only whether one is there. The hub's token stays where the hub's own library keeps it.
"""

import os
from pathlib import Path
from typing import Literal

from studio.home import Home

Name = Literal["webhook", "token"]


def keep(home: Home, name: Name, value: str) -> None:
    """Store a secret in one rename; nobody else can ever read it, not even for a moment."""
    place = _place(home, name)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = place.with_name(f".tmp-{name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, place)


def read(home: Home, name: Name) -> str:
    """Return a secret; empty when there is none."""
    try:
        return _place(home, name).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def forget(home: Home, name: Name) -> bool:
    """Remove a secret; whether there was one."""
    there = _place(home, name).exists()
    _place(home, name).unlink(missing_ok=True)
    return there


def _place(home: Home, name: Name) -> Path:
    return home.state / "secrets" / name

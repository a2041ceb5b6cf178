"""Secrets of a home: in the system's keyring if there is one, else each in a private file.

They are never in a spec, a log, a response or the database; pages and commands see only if one is
set. The package `keyring` is used if it is installed and has a real backend; a mark in the home
records that a secret is in it. A locked keyring that prompts the user is given a few seconds. The
hub's token stays with the hub's own library.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from studio import atomic
from studio.home import Home

logger = logging.getLogger(__name__)

Name = Literal["webhook", "token"]
SERVICE = "adapter-studio"
TIMEOUT_SECONDS = 5.0


def keep(home: Home, name: Name, value: str) -> None:
    """Store a secret so that no other account can read it at any time."""
    place = _place(home, name)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    ring = _keyring()
    if ring is not None and _ask(lambda: ring.set_password(SERVICE, _user(home, name), value))[0]:
        atomic.write(_mark(home, name), "", durable=True, private=True)
        place.unlink(missing_ok=True)
    else:
        atomic.write(place, value, durable=True, private=True)
        _forget_in_keyring(home, name)


def read(home: Home, name: Name) -> str:
    """Return a secret, or an empty string."""
    if _mark(home, name).exists():
        ring = _keyring()
        done, found = False, None
        if ring is not None:
            done, found = _ask(lambda: ring.get_password(SERVICE, _user(home, name)))
        if not done:
            logger.warning("the system's keyring did not answer for the %s", name)
        return str(found or "").strip()
    try:
        return _place(home, name).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def where(home: Home, name: Name) -> Literal["keyring", "file", ""]:
    """Return where a secret is stored, without reading it; empty if it is not set."""
    if _mark(home, name).exists():
        return "keyring"
    return "file" if _place(home, name).exists() else ""


def forget(home: Home, name: Name) -> bool:
    """Remove a secret; return True if it was set."""
    there = where(home, name) != ""
    _place(home, name).unlink(missing_ok=True)
    _forget_in_keyring(home, name)
    return there


def _forget_in_keyring(home: Home, name: Name) -> None:
    mark = _mark(home, name)
    ring = _keyring() if mark.exists() else None
    if ring is not None:
        _ask(lambda: ring.delete_password(SERVICE, _user(home, name)))
    mark.unlink(missing_ok=True)


def _keyring() -> Any:
    """Return the package if it has a backend that stores."""
    try:
        import keyring

        return keyring if keyring.get_keyring().priority >= 1 else None
    except Exception:  # without a desktop a backend may fail in any way
        return None


def _ask(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Call the keyring with a time limit; return whether it answered, and its answer."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(call())
        except Exception as error:  # its text may hold the secret
            logger.warning("the system's keyring refused: %s", type(error).__name__)

    thread = threading.Thread(target=ask, name="keyring", daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return bool(answer), answer[0] if answer else None


def _user(home: Home, name: Name) -> str:
    return f"{name} of {home.path}"


def _place(home: Home, name: Name) -> Path:
    return home.state / "secrets" / name


def _mark(home: Home, name: Name) -> Path:
    return home.state / "secrets" / f"{name}.keyring"

"""The offline switch of a home: with it, no process of the studio asks the hub for anything.

It sets what the hub's library itself obeys (`HF_HUB_OFFLINE`), in this process and its children.
"""

import os
import sys
from pathlib import Path

from studio.home import Home

VARIABLE = "HF_HUB_OFFLINE"
_SWITCHED = "STUDIO_OFFLINE_BY_SWITCH"  # a parent set the variable, no person: it may be undone
_GIVEN = "" if os.environ.get(_SWITCHED) else os.environ.get(VARIABLE, "")

_applied: bool | None = None


def is_offline(home: Home) -> bool:
    """Return True if the switch is on, or the environment of the studio says so."""
    return _place(home).exists() or _is_given()


def switch(home: Home, on: bool) -> None:
    """Turn the switch on or off."""
    if on:
        _place(home).touch()
    else:
        _place(home).unlink(missing_ok=True)
    apply(home)


def apply(home: Home) -> None:
    """Let the hub's library in this process obey the switch; quick if nothing has changed."""
    global _applied
    on = is_offline(home)
    if on == _applied:
        return  # a thread may look only at what is downloaded just now
    _applied = on
    os.environ.pop(_SWITCHED, None)
    if on:
        os.environ |= {VARIABLE: "1"} | ({} if _is_given() else {_SWITCHED: "1"})
    elif os.environ.get(VARIABLE):
        os.environ[VARIABLE] = "0"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            setattr(sys.modules[module], VARIABLE, on)


def _is_given() -> bool:
    return _GIVEN.upper() in ("1", "TRUE", "YES", "ON")


def _place(home: Home) -> Path:
    return home.state / "offline"

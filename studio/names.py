"""Names and paths that users type; sizes, counts and texts as they read them.

A name is typed where a path, a number, an option or `NAME:WEIGHT` could stand, and printed on a
terminal: what could be read as one of these is no name. A path of a model, dataset or adapter is
the file or folder of that name if there is one, else the id of a repository on the hub if it is
written like one; nothing is read or downloaded. `studio.data.find_dataset.origin_of` adds the demos
and the imported datasets, `studio.models.find_model.origin_of` the starter. A text that leaves the
machine or enters a log is stripped of secrets and of the user's own folder.
"""

import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from studio.data.readers import data_suffix

LONGEST = 120
SHOWN = 60  # characters of a wrong name that are worth repeating
_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)
_JOINERS = "\u200c\u200d"  # between letters of Persian, and in the middle of emoji


def fault(name: str) -> str:
    """Return in a sentence why a name cannot be one; empty when it can."""
    if not name or len(name) > LONGEST:
        given = f', not "{shown(name)}" ({len(name):,})' if name else ""
        return f"A name has between 1 and {LONGEST} characters{given}."
    if shown(name, len(name)) != name:
        return f'"{shown(name)}" cannot be a name: it holds line breaks or control characters.'
    why = _read_as(name)
    return f'"{shown(name)}" could be read as {why}: take a plain name.' if why else ""


def cleaned(name: str) -> str:
    """Return a name that was made up of parts without what a person's name could not hold."""
    plain = re.sub(r"[/\\:]+", "-", " ".join(shown(name[:LONGEST], LONGEST).split())).strip(" -~.")
    return plain if not fault(plain) else f"job {plain[:100]}".strip()


def called_after(path: str) -> str:
    """Return what a path or id calls its model or dataset: no folders, no data file's ending."""
    name = path.removeprefix("starter:").rstrip("/").split("/")[-1]
    while suffix := data_suffix(name):
        name = name[: -len(suffix)]
    return name


def _read_as(name: str) -> str:
    if "/" in name or "\\" in name or name.startswith("~") or name in (".", ".."):
        return "a path"
    if name.startswith("-"):
        return "an option"
    if name.isdecimal():
        return "a run's number"
    if _WINDOWS_DEVICE.fullmatch(name):  # a home may be copied to Windows
        return "a device of Windows"
    head, colon, last = name.rpartition(":")
    return "a name with a weight" if colon and (not head or _is_weight(last)) else ""


def _is_weight(text: str) -> bool:
    try:
        float(text or "1")
    except ValueError:
        return bool(re.fullmatch(r"-?[\d.]*", text))
    return True


def shown(name: str, most: int = SHOWN) -> str:
    """Return the beginning of a name without what would repaint a terminal."""
    kept = "".join(
        "?" if unicodedata.category(c) in _CONTROL and c not in _JOINERS else c for c in name[:most]
    )
    return kept + ("…" if len(name) > most else "")


# -- paths -----------------------------------------------------------------------------------------


_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


class Location(NamedTuple):
    """What a path stands for; `path` is the file or folder to read, if it is on this machine."""

    kind: Literal["embedded", "dataset", "file", "folder", "hub", "missing"]
    path: Path

    @property
    def is_local(self) -> bool:
        """True if nothing has to be downloaded."""
        return self.kind not in ("hub", "missing")


def locate(path: str, *, file_endings: Collection[str] = ()) -> Location:
    """Return the kind and place of a path; a name with one of `file_endings` is never a hub id."""
    try:
        place = Path(path).expanduser()
    except RuntimeError:  # `~name` of an unknown account
        return Location("missing", Path(path))
    if path and os.path.isdir(place):
        return Location("folder", place)
    if path and os.path.lexists(place):  # a broken link too: opening it says what is wrong
        return Location("file", place)
    is_id = _HUB_ID.fullmatch(path) and place.suffix.lower() not in file_endings
    return Location("hub" if is_id else "missing", place)


# -- sizes and counts ------------------------------------------------------------------------------


UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def readable(count: float) -> str:
    """Return bytes with three digits and a unit: 43.5 MiB."""
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:#.3g}".rstrip(".") + f" {UNITS[unit]}" if unit else f"{size:.0f} B"


def compact(count: float) -> str:
    """Return a number of parameters with three digits and a unit: 270 M, 1.24 B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(round(count) or "–")


# -- secrets ---------------------------------------------------------------------------------------


_SECRET_VARIABLES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$")
_SECRET_SHAPES = (
    (re.compile(r"(\w+://)[^/\s@]+@"), r"\1…@"),  # user and password of an address
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[bap]-)[\w-]{8,}"), r"\1…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.+/=-]{8,}"), r"\1 …"),
    (re.compile(r"(?i)([?&](?:token|key|api_key|secret|password|signature)=)[^&\s]+"), r"\1…"),
)  # fmt: skip
_SHORTEST_SECRET = 6  # a shorter value would blot out words that only look alike


def redacted(text: str) -> str:
    """Return a text without passwords, tokens, and the values of secret environment variables."""
    for name, value in os.environ.items():
        if _SECRET_VARIABLES.search(name.upper()) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "…")
    for shape, instead in _SECRET_SHAPES:
        text = shape.sub(instead, text)
    return tilde(text)


def tilde(text: str) -> str:
    """Return a text in which the user's own folder is `~`, for what leaves the machine."""
    own = Path.home()
    for path in {str(own), own.as_posix()} - {"/", "."}:
        text = re.sub(re.escape(path) + r"(?![\w-])", "~", text)
    return text

"""Names of runs and adapters, sizes in bytes and counts, as users read them.

A name is typed where a path, a number, an option or `NAME:WEIGHT` could stand, and printed on a
terminal: what could be read as one of these is no name.
"""

import re
import unicodedata

from studio.data.readers import data_suffix

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
    if name.isdigit():
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

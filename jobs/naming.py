"""Names of jobs: unique, and made up from the parts of the spec when a person gives none."""

from typing import Any

from jobs.tables import Tables
from studio.errors import QueueError
from studio.home import slug
from studio.names import called_after, cleaned, fault


def holder(db: Tables, name: str) -> int | None:
    """Return the number of the job of that name."""
    row = db.conn.execute("SELECT id FROM jobs WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def checked(name: Any, *, made_up: bool = False) -> str:
    """Return the name that was asked for, empty where none was; a made up one is cleaned.

    Raises:
        QueueError: It could be read as something else.
    """
    asked = str(name or "").strip()
    if made_up:
        return cleaned(asked) if asked else ""
    if asked and (why := fault(asked)):
        raise QueueError(why)
    return asked


def free(db: Tables, base: str) -> str:
    """Return `base`, or one of `base-2`, `base-3` … that is free; quick among thousands."""
    if holder(db, base) is None:
        return base
    number = 2 + int(db.conn.execute(_COUNT, {"base": base}).fetchone()[0])
    while holder(db, f"{base}-{number}") is not None:
        number += 1
    return f"{base}-{number}"


def first_free(base: str, taken: dict[str, int]) -> str:
    """Return `base`, or the first of `base-2`, `base-3` … that is free."""
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def made_up(values: dict[str, Any], kind: str) -> str:
    """Return `<model>-<method>-<data>` for a run, led by the kind for other jobs."""
    words = [] if kind == "train" else [kind]
    for part in (values.get(field) for field in ("model", "method", "data", "repo")):
        text = part.get("path") or part.get("name") if isinstance(part, dict) else part
        if isinstance(text, str):
            words.append(slug(called_after(text), fallback=""))
    return "-".join(word for word in words if word)[:100] or kind


def escaped(text: str) -> str:
    """Quote what LIKE would read as a wildcard."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


# What lies between `base-` and `base.` begins with `base-`: a range of the index of names.
_COUNT = "SELECT count(*) FROM jobs WHERE name > :base || '-' AND name < :base || '.'"

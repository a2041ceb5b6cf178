"""Names of jobs: unique, and made up from the parts of the spec when a person gives none."""

from pathlib import Path
from typing import Any

from jobs.tables import Tables
from studio.home import slug


def taken(db: Tables, name: str) -> dict[str, int]:
    """Return the jobs called `name` or `name-…`, as name: id."""
    return dict(db.conn.execute(_NAMES, (name, escaped(name) + "-%")).fetchall())


def first_free(base: str, taken: dict[str, int]) -> str:
    """Return `base`, or the first of `base-2`, `base-3` … that is free."""
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def made_up(values: dict[str, Any], kind: str) -> str:
    """Return `<model>-<method>-<data>` for a run, led by the kind for other jobs."""
    words = [] if kind == "train" else [kind]
    for part in (values.get("model"), values.get("method"), values.get("data")):
        if isinstance(part, dict):
            text = str(part.get("path") or part.get("name") or "")
            words.append(slug(Path(text.removeprefix("starter:")).stem, fallback=""))
    return "-".join(word for word in words if word)[:100] or kind


def escaped(text: str) -> str:
    """Quote what LIKE would read as a wildcard."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


_NAMES = "SELECT name, id FROM jobs WHERE name = ? OR name LIKE ? ESCAPE '\\'"

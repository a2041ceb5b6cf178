"""Names of jobs: checked, generated from model, method and data, and made free."""

from __future__ import annotations

from typing import Any

from jobs.database_schema import Tables
from studio.errors import QueueError
from studio.home import slug
from studio.names import called_after, cleaned, fault

# What lies between `base-` and `base.` begins with `base-`: a range of the index of names.
_COUNT = "SELECT count(*) FROM jobs WHERE name > :base || '-' AND name < :base || '.'"

_RENAME = "UPDATE jobs SET name = ?, spec = json_set(spec, '$.name', ?) WHERE id = ?"
_FORMER = """
INSERT INTO settings(name, value)
SELECT 'former_names', json_object(jobs.name, jobs.id) FROM jobs WHERE jobs.id = :id
ON CONFLICT(name) DO UPDATE SET value = json_patch(value, excluded.value)
"""
_WAS_CALLED = """
SELECT 1 FROM settings, json_each(settings.value) AS former
WHERE settings.name = 'former_names' AND former.key = ?
"""


def name_holder(db: Tables, name: str) -> int | None:
    """Return the number of the job of that name."""
    row = db.conn.execute("SELECT id FROM jobs WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def checked_name(name: Any, *, generated: bool = False) -> str:
    """Return a requested name, or an empty string; a generated name is cleaned.

    Raises:
        QueueError: It could be read as something else, e.g. a number or a path.
    """
    asked = str(name or "").strip()
    if generated:
        return cleaned(asked) if asked else ""
    if asked and (why := fault(asked)):
        raise QueueError(why)
    return asked


def free_name(db: Tables, base: str) -> str:
    """Return `base`, or one of `base-2`, `base-3` … that is free; fast among thousands.

    The name of a job that was renamed is not free: lanes and votes of its adapter hold it.
    """
    if not _was_taken(db, base):
        return base
    number = 2 + int(db.conn.execute(_COUNT, {"base": base}).fetchone()[0])
    while _was_taken(db, f"{base}-{number}"):
        number += 1
    return f"{base}-{number}"


def rename(db: Tables, job: int, name: str) -> None:
    """Rename a job and keep its earlier name from being given to another."""
    db.conn.execute(_FORMER, {"id": job})
    db.conn.execute(_RENAME, (name, name, job))


def _was_taken(db: Tables, name: str) -> bool:
    held = name_holder(db, name) is not None
    return held or db.conn.execute(_WAS_CALLED, (name,)).fetchone() is not None


def generated_name(values: dict[str, Any], kind: str) -> str:
    """Return `<model>-<method>-<data>` for a run, led by the kind for other jobs."""
    words = [] if kind == "train" else [kind]
    for part in (values.get(field) for field in ("model", "method", "data", "repo")):
        text = part.get("path") or part.get("name") if isinstance(part, dict) else part
        if isinstance(text, str):
            words.append(slug(called_after(text), fallback=""))
    return "-".join(word for word in words if word)[:100] or kind


def escaped_like(text: str) -> str:
    """Return the text with the wildcards of LIKE escaped."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")

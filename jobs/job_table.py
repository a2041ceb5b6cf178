"""The table of jobs: find, read and insert jobs; check names, generate them and make them free."""

import json
from collections.abc import Iterable
from typing import Any

from jobs.database import finite, now
from jobs.database_schema import Tables
from jobs.job_kinds import LIGHT_KINDS
from jobs.job_record import Job, job_of
from studio import device_setting
from studio.errors import QueueError
from studio.home import slug
from studio.names import called_after, cleaned, fault, shown
from studio.spec import RunSpec

LONGEST_NUMBER = 19  # digits of the largest job number

PLAN: dict[str, Any] = {
    "kind": "train", "parent": None, "sweep": None, "on_error": "continue", "retries": 0,
    "memory": 0,
}  # fmt: skip


def find_job(db: Tables, job_id: int | str) -> Job:
    """Return a job by number or name.

    Raises:
        QueueError: It does not exist.
    """
    if isinstance(job_id, int) or (job_id.isdecimal() and len(job_id) < LONGEST_NUMBER):
        found = read_jobs(db, "SELECT * FROM jobs WHERE id = ?", (int(job_id),))
        label = f"number {job_id}"
    else:
        found = read_jobs(db, "SELECT * FROM jobs WHERE name = ?", (job_id,))
        label = f'called "{shown(str(job_id))}"'
    if not found:
        raise QueueError(f"There is no job {label}. `studio runs` lists them.")
    return found[0]


def read_jobs(db: Tables, query: str, values: Any = ()) -> list[Job]:
    """Return the jobs that a query of whole rows of the table `jobs` selects."""
    rows = list(db.query(query, values))
    needs: dict[int, list[int]] = {row["id"]: [] for row in rows}
    for job, needed in db.conn.execute(_NEEDS, (json.dumps(list(needs)),)):
        needs[job].append(needed)
    return [job_of(row, needs[row["id"]]) for row in rows]


_NEEDS = """
SELECT job, needs FROM dependencies WHERE job IN (SELECT value FROM json_each(?)) ORDER BY 1, 2
"""


def insert(
    db: Tables, spec: RunSpec | dict[str, Any], plan: dict[str, Any], needs: Iterable[int] = ()
) -> int:
    """Insert a job at the end of the queue in the caller's transaction; return its number.

    Args:
        plan: Columns of `jobs` that differ from `PLAN`.
        needs: Jobs that must have succeeded before it starts.

    Raises:
        QueueError: The name is taken or invalid.
    """
    plan = PLAN | plan
    values = spec.model_dump(mode="json") if isinstance(spec, RunSpec) else dict(spec)
    generated = plan["kind"] == "promote" or bool(plan.get("sweep"))
    asked = checked_name(values.get("name"), generated=generated)
    checked_name(plan.get("sweep"))
    if generated and asked != str(values.get("name") or "").strip():
        asked = free_name(db, asked[:110])  # cleaning may have made two names equal
    holder = name_holder(db, asked) if asked else None
    if holder is not None:
        raise QueueError(
            f'There is already a job called "{asked}" (number {holder}). Choose another name.'
        )
    values["name"] = asked or free_name(db, generated_name(values, plan["kind"]))
    train = values.get("train") or {}
    wanted = str(train.get("device") or values.get("device") or "auto")
    width = device_setting.num_devices(wanted, int(train.get("num_processes") or 1))
    if plan["kind"] == "preflight":  # one process measures for all
        wanted, width = device_setting.first_device(wanted), 1
    row = plan | {
        "name": values["name"], "spec": json.dumps(finite(values)), "now": now(),
        "device": LIGHT_KINDS.get(plan["kind"], wanted), "width": width,
    }  # fmt: skip
    job_id = int(db.conn.execute(_SUBMIT, row).fetchall()[0][0])
    for needed in needs:
        db.conn.execute(NEED, (job_id, find_job(db, needed).id))
    return job_id


_SUBMIT = """
INSERT INTO jobs(kind, name, spec, device_wanted, parent, created, sweep, on_error, retries_left,
                 width, memory_bytes, position, why)
VALUES (:kind, :name, :spec, :device, :parent, :now, :sweep, :on_error, :retries, :width, :memory,
        (SELECT COALESCE(MAX(position), 0) + 1 FROM jobs), 'submitted')
RETURNING id
"""
NEED = "INSERT OR IGNORE INTO dependencies(job, needs) VALUES (?, ?)"


def name_holder(db: Tables, name: str) -> int | None:
    """Return the number of the job that has a name, in the table of jobs."""
    row = db.conn.execute("SELECT id FROM jobs WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def checked_name(name: Any, *, generated: bool = False) -> str:
    """Check a job's requested name and return it, or ""; a generated name is cleaned.

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
    """Return a job name that is free: `base`, or one of `base-2`, `base-3` …

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
    """Generate a job's name: `<model>-<method>-<data>` for a run, the kind first for others."""
    words = [] if kind == "train" else [kind]
    for part in (values.get(field) for field in ("model", "method", "data", "repo")):
        text = part.get("path") or part.get("name") if isinstance(part, dict) else part
        if isinstance(text, str):
            words.append(slug(called_after(text), fallback=""))
    return "-".join(word for word in words if word)[:100] or kind


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

"""The jobs table: names, look-up, submission, the JSON summary."""

import json
from collections.abc import Iterable
from typing import Any

from jobs import curves
from jobs.database import now
from jobs.job import Job, job_of
from jobs.kinds import LIGHT_KINDS
from jobs.schema import Tables
from studio import devices
from studio.errors import QueueError
from studio.home import slug
from studio.names import called_after, cleaned, fault, shown
from studio.spec import RunSpec


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
    """Return `base`, or one of `base-2`, `base-3` … that is free; fast among thousands."""
    if name_holder(db, base) is None:
        return base
    number = 2 + int(db.conn.execute(_COUNT, {"base": base}).fetchone()[0])
    while name_holder(db, f"{base}-{number}") is not None:
        number += 1
    return f"{base}-{number}"


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


# What lies between `base-` and `base.` begins with `base-`: a range of the index of names.
_COUNT = "SELECT count(*) FROM jobs WHERE name > :base || '-' AND name < :base || '.'"


LONGEST_NUMBER = 19  # digits of the largest job number


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
    """Return the jobs that a query of whole rows of `jobs` selects."""
    rows = list(db.query(query, values))
    needs: dict[int, list[int]] = {row["id"]: [] for row in rows}
    for job, needed in db.conn.execute(_NEEDS, (json.dumps(list(needs)),)):
        needs[job].append(needed)
    return [job_of(row, needs[row["id"]]) for row in rows]


_NEEDS = """
SELECT job, needs FROM dependencies WHERE job IN (SELECT value FROM json_each(?)) ORDER BY 1, 2
"""


PLAN: dict[str, Any] = {
    "kind": "train", "parent": None, "sweep": None, "on_error": "continue", "retries": 0,
    "memory": 0,
}  # fmt: skip


def insert(
    db: Tables, spec: RunSpec | dict[str, Any], plan: dict[str, Any], needs: Iterable[int] = ()
) -> int:
    """Write a job at the end of the queue inside the caller's transaction; return its number.

    Args:
        db: A connection that writes.
        spec: The job.
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
            f'There is already a job called "{asked}" (number {holder}). '
            "Choose another name, or leave it empty for a generated one."
        )
    values["name"] = asked or free_name(db, generated_name(values, plan["kind"]))
    train = values.get("train") or {}
    wanted = str(train.get("device") or values.get("device") or "auto")
    width = devices.num_devices(wanted, int(train.get("num_processes") or 1))
    if plan["kind"] == "preflight":  # one process measures for all
        wanted, width = devices.first_device(wanted), 1
    row = plan | {
        "name": values["name"], "spec": json.dumps(curves.finite(values)), "now": now(),
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


def summary(job: Job) -> dict[str, Any]:
    """Return the job as JSON values; what is not known yet is None."""
    result = job.result
    rows = result.get("rows") or {}
    failed = job.error_kind is not None or job.error_text is not None
    return {
        "id": job.id,
        "name": job.name,
        "kind": job.kind,
        "state": job.state,
        "step": job.step,
        "total_steps": job.total_steps,
        "first_loss": result.get("first_loss"),
        "last_loss": result.get("last_loss"),
        "eval_loss": result.get("eval_loss"),
        "forgetting": (result.get("forgetting") or {}).get("forgetting"),
        "seconds": result.get("seconds"),
        "seconds_left": seconds_left(job),
        "adapter": result.get("adapter"),
        "rows": {key: rows.get(key) for key in ("read", "kept", "dropped")},
        "position": job.position,
        "parent": job.parent,
        "needs": job.needs,
        "sweep": job.sweep,
        "on_error": job.on_error,
        "retries_left": job.retries_left,
        "start_after": job.start_after,
        "start_when": job.start_when,
        "memory_bytes": job.memory_bytes or None,
        "waits": job.waits if job.state == "queued" else "",
        "notes": job.notes,
        "tags": job.tags,
        "error": {"kind": job.error_kind or "run", "text": job.error_text} if failed else None,
    }


def seconds_left(job: Job) -> float | None:
    """Return the remaining seconds of a running job, from its pace so far."""
    begun = job.result.get("training_since")
    first = job.result.get("training_from_step", 0)
    done = job.step - first
    if job.state != "running" or not begun or not job.total_steps or done < 2:
        return None
    pace = max(0.0, now() - begun) / done  # the clock may have been set back meanwhile
    return round(pace * (job.total_steps - job.step), 1)

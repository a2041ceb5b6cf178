"""The jobs table: names, look-up, order, submission, stop requests, the JSON summary."""

import json
from collections.abc import Iterable
from typing import Any

from jobs import curves
from jobs.claims import leave
from jobs.database import now
from jobs.job import ACTIVE, COLUMNS, ENDED, Job, State, job_of
from jobs.kinds import FILE_KINDS, FILES
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


def first_free(base: str, taken: dict[str, int]) -> str:
    """Return `base`, or the first of `base-2`, `base-3` … that is free."""
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


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
    by_id = isinstance(job_id, int) or (job_id.isdecimal() and len(job_id) < LONGEST_NUMBER)
    rows = list(db.query(_BY_ID if by_id else _BY_NAME, (int(job_id) if by_id else job_id,)))
    if not rows:
        label = f"number {job_id}" if by_id else f'called "{shown(str(job_id))}"'
        raise QueueError(f"There is no job {label}. `studio runs` lists them.")
    return job_of(rows[0])


def list_jobs(
    db: Tables, states: Iterable[State] | None, *, limit: int | None, offset: int, search: str
) -> list[Job]:
    """Return jobs, newest first; see `JobStore.list`."""
    values = {
        "all": states is None, "states": json.dumps(sorted(states or ())),
        "limit": -1 if limit is None else limit, "offset": offset,
        "pattern": "%" + escaped_like(search.strip()) + "%",
    }  # fmt: skip
    return [job_of(row) for row in db.query(_LIST, values)]


def queued_jobs(db: Tables, *, limit: int | None) -> list[Job]:
    """Return running and queued jobs in the order in which they run."""
    active = [job_of(row) for row in db.query(_ACTIVE)]
    left = -1 if limit is None else max(0, limit - len(active))
    return [*active, *(job_of(row) for row in db.query(_WAITING, (left,)))][:limit]


_BY_ID = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"
_BY_NAME = f"SELECT {COLUMNS} FROM jobs WHERE name = ?"
_LIST = f"""
SELECT {COLUMNS} FROM jobs
WHERE (:all OR state IN (SELECT value FROM json_each(:states)))
  AND name LIKE :pattern ESCAPE '\\'
ORDER BY id DESC LIMIT :limit OFFSET :offset
"""
_ACTIVE = f"""
SELECT {COLUMNS} FROM jobs WHERE state IN ('starting', 'running', 'stopping')
ORDER BY position, id
"""
# Alone, so that the index gives the first of ten thousand without sorting them.
_WAITING = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY position, id LIMIT ?"


def to_the_end(db: Tables, job: int) -> None:
    """Move a job behind all others."""
    db.conn.execute(_TO_THE_END, (job,))


def place_before(db: Tables, job: int, other: int) -> None:
    """Move a job right before another one; renumber all if the numbers get too close."""
    below, above = db.conn.execute(_NEIGHBOURS, {"other": other, "job": job}).fetchone()
    position = above - 1 if below is None else (below + above) / 2
    if below is not None and not below < position < above:
        db.conn.execute(_RENUMBER)
        place_before(db, job, other)
        return
    db.conn.execute("UPDATE jobs SET position = ? WHERE id = ?", (position, job))


def first_waiting(db: Tables) -> int | None:
    """Return the job that would run next."""
    row = db.conn.execute(_FIRST_WAITING).fetchone()
    return row[0] if row else None


_TO_THE_END = """
UPDATE jobs SET position = (SELECT MAX(position) + 1 FROM jobs) WHERE id = ?
"""
_FIRST_WAITING = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY position, id LIMIT 1"
_NEIGHBOURS = """
SELECT (SELECT MAX(position) FROM jobs
        WHERE position < (SELECT position FROM jobs WHERE id = :other) AND id <> :job),
       (SELECT position FROM jobs WHERE id = :other)
"""
_RENUMBER = """
UPDATE jobs SET position = ranked.place
FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY position, id) AS place FROM jobs) AS ranked
WHERE jobs.id = ranked.id
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
    wanted = str(train.get("device") or "auto")
    width = devices.num_devices(wanted, int(train.get("num_processes") or 1))
    if plan["kind"] == "preflight":  # one process measures for all
        wanted, width = devices.first_device(wanted), 1
    row = plan | {
        "name": values["name"], "spec": json.dumps(curves.finite(values)), "now": now(),
        "device": FILES if plan["kind"] in FILE_KINDS else wanted, "width": width,
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


def stop(db: Tables, job_id: int | str, intent: str, ended: State, *, drop: bool = False) -> int:
    """End a queued job, or request the stop of an active one; return its number.

    Args:
        db: A connection that writes.
        job_id: Number or name.
        intent: `cancel` or `pause`, for its process.
        ended: The state it ends in.
        drop: Delete its checkpoints once it has ended.

    Raises:
        QueueError: It is being stopped already, or its state does not allow it.
    """
    job = find_job(db, job_id)
    if drop:
        db.conn.execute("UPDATE jobs SET drop_checkpoints = 1 WHERE id = ?", (job.id,))
    if job.state in ACTIVE:
        if job.intent == "cancel":
            raise QueueError(f'"{job.name}" is already being cancelled.')
        if job.intent == intent:
            raise QueueError(f'"{job.name}" is already being stopped.')
        db.conn.execute(_ASK, {"id": job.id, "intent": intent, "now": now()})
    elif (job.state, ended) in (
        ("queued", "paused"), ("queued", "cancelled"), ("paused", "cancelled"),
        ("interrupted", "cancelled"),
    ):  # fmt: skip
        leave(db, job.id, ended, actor="person", why="asked for")
    else:
        raise QueueError(cannot(job, intent))
    return job.id


def queue_again(db: Tables, job: Job, *, step: int, restart: bool) -> None:
    """Queue a stopped job again from a step; an ended one goes behind all others.

    Raises:
        QueueError: Its state has changed since the caller read it.
    """
    state = find_job(db, job.id).state
    if state != job.state:
        raise QueueError(f'"{job.name}" has just become {state}. Nothing was changed.')
    if restart:
        for statement in _FORGET:
            db.conn.execute(statement, (job.id,))
    if job.state in ENDED:
        to_the_end(db, job.id)
    db.conn.execute(_FRESH_TRIES, (step, job.id))
    why = f"goes on from step {step}" if step else "starts from the beginning"
    leave(db, job.id, "queued", actor="person", why=why)


def cannot(job: Job, action: str) -> str:
    """Return why a job in its state does not allow an action, and what to do instead."""
    text = f'"{job.name}" is {job.state} and cannot be {action.rstrip("e")}ed.'
    text = text.replace("canceled", "cancelled")
    if job.state == "succeeded" and action == "resume":
        more = f"`studio extend {job.id}` trains it longer, as a new run."
        return f"{text} {more if job.kind == 'train' else 'Start a new one instead.'}"
    return text


_ASK = """
UPDATE jobs SET state = 'stopping', stop_requested = :intent, stop_requested_at = :now,
  changed_by = 'person', why = :intent || ' asked for'
WHERE id = :id
"""
_FRESH_TRIES = "UPDATE jobs SET no_progress = 0, resume_step = ? WHERE id = ?"
_FORGET = (
    "DELETE FROM metrics WHERE job = ?",
    "DELETE FROM samples WHERE job = ?",
    "DELETE FROM checkpoints WHERE job = ?",
    """UPDATE jobs SET step = 0, total_steps = NULL, result = '{}', drop_checkpoints = 0
       WHERE id = ?""",
)


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

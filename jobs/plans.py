"""What a person plans beyond one run: sweeps, copies, schedules, dependencies, notes.

Each function changes the queue in one step or raises a sentence and changes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jobs import sweeps
from jobs.claims import leave
from jobs.database import now
from jobs.record import Job
from jobs.store import JobStore
from studio.errors import QueueError
from studio.spec import RunSpec

StartWhen = Literal["", "idle", "night"]
TRANSIENT = ("start", "out_of_memory", "network")
BACKOFF_SECONDS = 30.0


def submit_sweep(
    store: JobStore,
    spec: RunSpec,
    fields: Mapping[str, Sequence[Any]],
    *,
    name: str,
    mode: Literal["grid", "random"] = "grid",
    count: int = 0,
    on_error: Literal["continue", "stop"] = "continue",
) -> list[Job]:
    """Queue one run for each point of a sweep, as a group called `name`."""
    if not name.strip():
        raise QueueError("A sweep needs a name: its runs are called after it.")
    chosen = sweeps.points(fields, mode=mode, count=count, seed=spec.seed)
    specs = sweeps.expand(spec, chosen, name=name.strip())
    with store.database.reading() as db:
        if db.conn.execute("SELECT 1 FROM jobs WHERE sweep = ?", (name.strip(),)).fetchone():
            raise QueueError(f'There is already a sweep "{name.strip()}". Choose another name.')
    return store.submit_many(specs, sweep=name.strip(), on_error=on_error)


def duplicate(store: JobStore, job_id: int | str, assignments: Mapping[str, Any]) -> Job:
    """Queue a copy of a job with some fields changed."""
    job = store.get(job_id)
    if job.kind != "train":
        return store.submit({**job.spec, **assignments, "name": ""}, kind=job.kind, parent=job.id)
    spec = RunSpec.parse({**job.spec, "name": ""}).with_values(dict(assignments))
    return store.submit(spec, parent=job.id)


def schedule(
    store: JobStore, job_id: int | str, *, after: float | None = None, when: StartWhen = ""
) -> Job:
    """Let a waiting job start only after a moment, when the machine is idle, or at night."""
    job = store.get(job_id)
    if job.state not in ("queued", "paused"):
        raise QueueError(f'"{job.name}" is {job.state}; only waiting jobs can be scheduled.')
    if after is not None and after < now():
        raise QueueError("That moment is over. Choose one in the future, or start it now.")
    with store.database.writing() as db:
        db.conn.execute(
            "UPDATE jobs SET start_after = ?, start_when = ? WHERE id = ?", (after, when, job.id)
        )
    return store.get(job.id)


def save_now(store: JobStore, job_id: int | str) -> None:
    """Ask a running job for a checkpoint at its next step."""
    job = store.get(job_id)
    if job.state != "running":
        raise QueueError(f'"{job.name}" is {job.state}; only a running job can save.')
    with store.database.writing() as db:
        db.conn.execute("UPDATE jobs SET save_requested = 1 WHERE id = ?", (job.id,))


def annotate(
    store: JobStore,
    job_id: int | str,
    *,
    notes: str | None = None,
    tags: Sequence[str] | None = None,
) -> Job:
    """Change a job's notes or tags."""
    job = store.get(job_id)
    words = None if tags is None else json.dumps(sorted({tag.strip() for tag in tags} - {""}))
    with store.database.writing() as db:
        db.conn.execute(
            "UPDATE jobs SET notes = COALESCE(?, notes), tags = COALESCE(?, tags) WHERE id = ?",
            (notes, words, job.id),
        )
    return store.get(job.id)


def settle(store: JobStore) -> None:
    """What follows from ends: hold back what cannot start any more, retry what may pass."""
    with store.database.reading() as db:
        blocked = db.conn.execute(_BLOCKED).fetchall()
        retried = db.conn.execute(_RETRIED, (json.dumps(TRANSIENT),)).fetchall()
    if not blocked and not retried:
        return
    with store.database.writing() as db:
        for job, why in db.conn.execute(_BLOCKED).fetchall():
            leave(db, job, "paused", actor="supervisor", why=why)
        for job, done in db.conn.execute(_RETRIED, (json.dumps(TRANSIENT),)).fetchall():
            wait = BACKOFF_SECONDS * 2**done
            leave(db, job, "queued", actor="supervisor", why=f"tries again in {wait:.0f} s")
            db.conn.execute(_COUNT_RETRY, (now() + wait, job))


_BLOCKED = """
SELECT jobs.id, 'it needs "' || other.name || '", which is ' || other.state
FROM jobs JOIN dependencies ON dependencies.job = jobs.id
          JOIN jobs AS other ON other.id = dependencies.needs
WHERE jobs.state = 'queued' AND other.state IN ('failed', 'cancelled')
  AND other.retries_left = 0
UNION
SELECT jobs.id, 'its sweep stops at an error, and "' || other.name || '" failed'
FROM jobs JOIN jobs AS other ON other.sweep = jobs.sweep
WHERE jobs.state = 'queued' AND jobs.on_error = 'stop' AND other.state = 'failed'
  AND other.retries_left = 0
"""
_RETRIED = """
SELECT id, retries_done FROM jobs
WHERE state = 'failed' AND retries_left > 0
  AND error_kind IN (SELECT value FROM json_each(?))
"""
_COUNT_RETRY = """
UPDATE jobs SET retries_left = retries_left - 1, retries_done = retries_done + 1, start_after = ?
WHERE id = ?
"""

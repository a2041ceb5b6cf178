"""What a person plans beyond one run: sweeps, copies, schedules, dependencies, notes.

Each function changes the queue in one step or raises a sentence and changes nothing.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jobs import settings, submission, sweeps
from jobs.database import now
from jobs.endings import TRIED_AGAIN, leave
from jobs.memory import needed_by_each, needed_bytes
from jobs.record import Job
from jobs.states import ENDED
from jobs.store import JobStore
from studio.errors import QueueError
from studio.spec import RunSpec

StartWhen = Literal["", "idle", "night"]
BACKOFF_SECONDS = 30.0
MOST_RETRIES = 10  # the last after 4 hours


def submit_sweep(
    store: JobStore,
    spec: RunSpec,
    fields: Mapping[str, Sequence[Any]],
    *,
    name: str,
    mode: Literal["grid", "random"] = "grid",
    count: int = 0,
    on_error: Literal["continue", "stop"] = "continue",
    retries: int = 0,
) -> list[Job]:
    """Queue one run for each point of a sweep, as a group called `name`."""
    if not name.strip():
        raise QueueError("A sweep needs a name: its runs are called after it.")
    chosen = sweeps.points(fields, mode=mode, count=count, seed=spec.seed)
    specs = sweeps.expand(spec, chosen, name=name.strip())
    with store.database.reading() as db:
        if db.conn.execute("SELECT 1 FROM jobs WHERE sweep = ?", (name.strip(),)).fetchone():
            raise QueueError(f'There is already a sweep "{name.strip()}". Choose another name.')
    return store.submit_many(
        specs, sweep=name.strip(), on_error=on_error, retries=allowed(retries),
        memory_bytes=needed_by_each(specs, store.home),
    )  # fmt: skip


def duplicate(store: JobStore, job_id: int | str, assignments: Mapping[str, Any]) -> Job:
    """Queue a copy of a job with some fields changed."""
    job = store.get(job_id)
    if job.kind != "train":
        return store.submit({**job.spec, **assignments, "name": ""}, kind=job.kind, parent=job.id)
    spec = RunSpec.parse({**job.spec, "name": ""}).with_values(dict(assignments))
    return store.submit(spec, parent=job.id, memory_bytes=needed_bytes(spec, store.home))


class Start(NamedTuple):
    """When a job may start: after a moment, and only when the machine is idle or at night."""

    after: float | None = None
    when: StartWhen = ""


def schedule(
    store: JobStore,
    job_id: int | str,
    start: Start | None = None,
    *,
    needs: Sequence[int | str] | None = None,
    retries: int | None = None,
) -> Job:
    """Choose when a job may start, after which others, how often again; None leaves it as it is.

    Raises:
        QueueError: The job does not wait any more (or has ended, for `retries`), the moment is
            over, or it would wait for a job that cannot succeed before it.
    """
    job = store.get(job_id)
    if job.state not in ("queued", "paused") and (start or needs is not None):
        raise QueueError(f'"{job.name}" is {job.state}; only waiting jobs can be scheduled.')
    if job.state in ENDED:
        raise QueueError(f'"{job.name}" is {job.state}; resume it instead.')
    if start and start.after is not None and start.after < now():
        raise QueueError("That moment is over. Choose one in the future, or start it now.")
    needed = [_awaited(job, store.get(other)) for other in needs or ()]
    again = None if retries is None else allowed(retries)
    with store.database.writing() as db:
        if start:
            db.conn.execute(_START, (*start, job.id))
        if again is not None:
            db.conn.execute(_AGAIN, (again, job.id))
        if needs is not None:
            db.conn.execute("DELETE FROM dependencies WHERE job = ?", (job.id,))
            db.conn.executemany(submission.NEED, [(job.id, other) for other in needed])
    return store.get(job.id)


def _awaited(job: Job, other: Job) -> int:
    if other.id >= job.id:
        raise QueueError(
            f'"{job.name}" can only wait for jobs older than itself, and "{other.name}" is '
            "not: submit it again after that one."
        )
    if other.state in ("failed", "cancelled"):
        raise QueueError(f'"{other.name}" is {other.state}: it would wait for ever.')
    return other.id


def allowed(retries: int) -> int:
    """Return how often a failed job is tried again.

    Raises:
        QueueError: Less than never, or more than `MOST_RETRIES`.
    """
    if not 0 <= retries <= MOST_RETRIES:
        raise QueueError(f"A failed job can be tried again 0 to {MOST_RETRIES} times.")
    return retries


def start_anyway(store: JobStore, job_id: int | str) -> Job:
    """Let a waiting job start without room for the memory it was estimated to need.

    Raises:
        QueueError: It does not wait for memory.
    """
    job = store.get(job_id)
    if job.state != "queued" or not job.waits or not job.memory_bytes:
        raise QueueError(f'"{job.name}" does not wait for memory: it is {job.state}.')
    with store.database.writing() as db:
        db.conn.execute("UPDATE jobs SET memory_bytes = 0, waits = '' WHERE id = ?", (job.id,))
    return store.get(job.id)


def shift(store: JobStore, job_id: int | str, places: int) -> Job:
    """Move a waiting job some places towards the front (negative) or the end."""
    job = store.get(job_id)
    if job.state not in ("queued", "paused"):
        raise QueueError(f'"{job.name}" is {job.state}; only waiting jobs can be ordered.')
    with store.database.reading() as db:
        waiting = [row[0] for row in db.conn.execute(_WAITING).fetchall()]
    place = waiting.index(job.id)
    others = [other for other in waiting if other != job.id]
    target = min(max(0, place + places), len(others))
    return store.move(job.id, before=others[target] if target < len(others) else None)


def for_sweep(store: JobStore, sweep: str, action: Literal["hold", "release", "cancel"]) -> int:
    """Hold, release or cancel every run of a sweep that can be; return how many were.

    Raises:
        QueueError: There is no such sweep, or none of its runs can do that.
    """
    with store.database.reading() as db:
        rows = db.conn.execute("SELECT id, state FROM jobs WHERE sweep = ?", (sweep,)).fetchall()
    if not rows:
        raise QueueError(f'There is no sweep called "{sweep}".')
    able, act = {
        "hold": ({"queued", "running", "starting"}, store.pause),
        "release": ({"paused"}, store.resume),
        "cancel": ({"queued", "running", "starting", "paused", "interrupted"}, store.cancel),
    }[action]
    chosen = [job for job, state in rows if state in able]
    if not chosen:
        raise QueueError(f'No run of "{sweep}" is in a state to {action}.')
    for job in chosen:
        act(job)
    return len(chosen)


def save_now(store: JobStore, job_id: int | str) -> None:
    """Ask a running job for a checkpoint at its next step."""
    _wish(store, job_id, "save")


def sample_now(store: JobStore, job_id: int | str) -> None:
    """Ask a running job to answer its fixed prompts at its next step."""
    _wish(store, job_id, "sample")


def _wish(store: JobStore, job_id: int | str, wish: Literal["save", "sample"]) -> None:
    job = store.get(job_id)
    if job.state != "running" or job.kind != "train":
        raise QueueError(f'"{job.name}" is {job.state}; only a running training can {wish}.')
    with store.database.writing() as db:
        db.conn.execute(f"UPDATE jobs SET {wish}_requested = 1 WHERE id = ?", (job.id,))


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
    """What follows from ends: hold back what cannot start any more, retry what may pass, and
    forget the checkpoints that a cancel was to drop."""
    settings.hold_after_error(store)
    _drop_checkpoints(store)
    with store.database.reading() as db:
        blocked = db.conn.execute(_BLOCKED).fetchall()
        retried = db.conn.execute(_RETRIED).fetchall()
    if not blocked and not retried:
        return
    with store.database.writing() as db:
        for job, why in db.conn.execute(_BLOCKED).fetchall():
            leave(db, job, "paused", actor="supervisor", why=why)
        for job, done in db.conn.execute(_RETRIED).fetchall():
            wait = BACKOFF_SECONDS * 2**done
            leave(db, job, "queued", actor="supervisor", why=f"tries again in {wait:.0f} s")
            db.conn.execute(_COUNT_RETRY, (now() + wait, job))


def _drop_checkpoints(store: JobStore) -> None:
    with store.database.reading() as db:
        dropped = [row[0] for row in db.conn.execute(_DROPPED).fetchall()]
    for job in dropped:  # the flag goes last: killed in between, it is done again
        shutil.rmtree(store.home.run(job) / "checkpoints", ignore_errors=True)
        with store.database.writing() as db:
            db.conn.execute("DELETE FROM checkpoints WHERE job = ?", (job,))
            db.conn.execute("UPDATE jobs SET drop_checkpoints = 0 WHERE id = ?", (job,))


_WAITING = "SELECT id FROM jobs WHERE state IN ('queued', 'paused') ORDER BY position, id"
_DROPPED = "SELECT id FROM jobs WHERE state = 'cancelled' AND drop_checkpoints = 1"
_BLOCKED = f"""
SELECT jobs.id, 'it needs "' || other.name || '", which is ' || other.state
FROM jobs JOIN dependencies ON dependencies.job = jobs.id
          JOIN jobs AS other ON other.id = dependencies.needs
WHERE jobs.state = 'queued' AND other.state IN ('failed', 'cancelled')
  AND other.id NOT IN ({TRIED_AGAIN})
UNION
SELECT jobs.id, 'its sweep stops at an error, and "' || other.name || '" failed'
FROM jobs JOIN jobs AS other ON other.sweep = jobs.sweep
WHERE jobs.state = 'queued' AND jobs.on_error = 'stop' AND other.state = 'failed'
  AND other.id NOT IN ({TRIED_AGAIN})
"""
_START = "UPDATE jobs SET start_after = ?, start_when = ? WHERE id = ?"
_AGAIN = "UPDATE jobs SET retries_left = ?, retries_done = 0 WHERE id = ?"
_RETRIED = f"SELECT id, retries_done FROM jobs WHERE id IN ({TRIED_AGAIN})"
_COUNT_RETRY = """
UPDATE jobs SET retries_left = retries_left - 1, retries_done = retries_done + 1, start_after = ?
WHERE id = ?
"""

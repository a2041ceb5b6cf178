"""What a person asks of one job: to stop, and to go on. Inside the caller's transaction."""

from jobs import lookup, order
from jobs.database import now
from jobs.endings import leave
from jobs.record import Job
from jobs.states import ACTIVE, ENDED, State
from jobs.tables import Tables
from studio.errors import QueueError


def stop(db: Tables, job_id: int | str, intent: str, ended: State, *, drop: bool = False) -> int:
    """End a waiting job, or ask the process of an active one to; return its number.

    Args:
        db: A connection that writes.
        job_id: Number or name.
        intent: `cancel` or `pause`, for its process.
        ended: The state it ends in.
        drop: Forget its checkpoints once it has ended.

    Raises:
        QueueError: It is being stopped already, or its state allows no such end.
    """
    job = lookup.one(db, job_id)
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
    """Queue a stopped job again, from a step on; an ended one goes behind all others.

    Raises:
        QueueError: It has changed since the caller looked.
    """
    state = lookup.one(db, job.id).state
    if state != job.state:
        raise QueueError(f'"{job.name}" has just become {state}. Nothing was changed.')
    if restart:
        for statement in _FORGET:
            db.conn.execute(statement, (job.id,))
    if job.state in ENDED:
        order.to_the_end(db, job.id)
    db.conn.execute(_FRESH_TRIES, (step, job.id))
    why = f"goes on from step {step}" if step else "starts from the beginning"
    leave(db, job.id, "queued", actor="person", why=why)


def cannot(job: Job, action: str) -> str:
    """Say that a job in its state allows no such action, and what does."""
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

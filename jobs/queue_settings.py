"""Settings of the queue in the database (held, error policy, retention); when a job may start.

A setting is one row with a JSON value. A job starts after a time, on an idle machine or at night,
after the jobs that it needs, and again after a transient failure while it has retries left.
"""

import datetime
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from jobs import job_table
from jobs.claims import retried
from jobs.database import now
from jobs.job_queue import JobStore
from jobs.job_record import ENDED, Job
from studio.errors import QueueError

DEFAULTS: dict[str, Any] = {
    "home_id": None,  # random, made when first needed
    "held": None,  # a sentence while nothing may start
    "on_error": "continue",  # or "stop": a failed run holds the queue
    "errors_seen": 0,  # the last event that was checked for failures
    "ends_told": 0,  # the last event that was sent to the webhook
    "welcomed": False,  # the first start was seen
    "cluster": None,  # or {"address", "storage"} of a Ray cluster
    "keep_checkpoints": 1,  # of an ended run; 0 keeps none
    "keep_days": 0,  # after which checkpoints of ended runs are removed; 0 keeps them
}

StartWhen = Literal["", "idle", "night"]
UNITS = {"m": 60, "h": 3600, "d": 86_400}


def read(store: JobStore, name: str) -> Any:
    """Return a setting of the queue, or its default."""
    rows = store.database.rows("SELECT value FROM settings WHERE name = ?", (name,))
    return json.loads(rows[0]["value"]) if rows else DEFAULTS[name]


def write(store: JobStore, name: str, value: Any) -> None:
    """Store a setting of the queue."""
    assert name in DEFAULTS, name
    store.database.change(_WRITE, (name, json.dumps(value)))


def home_id(store: JobStore) -> str:
    """Return the setting with the random id that sets runs of this home apart from another's."""
    if (found := read(store, "home_id")) is None:
        values = ("home_id", json.dumps(secrets.token_hex(4)))
        store.database.change(_WRITE_FIRST, values)  # another process may be first
        found = read(store, "home_id")
    return str(found)


def hold_queue(store: JobStore) -> None:
    """Hold the queue: start no further jobs; running ones continue.

    Raises:
        QueueError: It is held already.
    """
    if read(store, "held"):
        raise QueueError("The queue is already held. `studio queue --release` lets it go on.")
    write(store, "held", "The queue is held.")


def release_queue(store: JobStore) -> None:
    """Release the queue: start queued jobs again, regardless of failures until now.

    Raises:
        QueueError: It is not held.
    """
    if not read(store, "held"):
        raise QueueError("The queue is not held; jobs start as soon as a device is free.")
    write(store, "errors_seen", last_event(store))
    write(store, "held", None)


def on_error(store: JobStore, policy: Literal["continue", "stop"]) -> None:
    """Set what happens to the queue after a failed job: `continue` or `stop`."""
    write(store, "errors_seen", last_event(store))
    write(store, "on_error", policy)


def hold_after_error(store: JobStore) -> None:
    """Hold the queue if a job failed since the last check and the policy is `stop`."""
    if read(store, "on_error") != "stop" or read(store, "held"):
        return
    with store.database.reading() as db:
        values = {"seen": read(store, "errors_seen"), "again": json.dumps(list(retried(db)))}
        row = db.conn.execute(_FAILED_SINCE, values).fetchone()
    if row:
        write(store, "held", f'"{row[0]}" failed, and the queue stops at an error.')


def last_event(store: JobStore) -> int:
    """Return the number of the queue's newest event, or 0."""
    (row,) = store.database.rows("SELECT COALESCE(MAX(id), 0) AS newest FROM events")
    return int(row["newest"])


def parse_time(text: str, *, now: float) -> float:
    """Return when a job may start in seconds since 1970; a time of day that passed is tomorrow.

    Raises:
        QueueError: The text is not a time.
    """
    words = text.strip()
    if match := re.fullmatch(r"\+(\d{1,6})([mhd])", words):
        return now + int(match[1]) * UNITS[match[2]]
    today = datetime.datetime.fromtimestamp(now)
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", words):
            hour, minute = map(int, words.split(":"))
            moment = today.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (moment + datetime.timedelta(days=moment <= today)).timestamp()
        return datetime.datetime.fromisoformat(words).timestamp()
    except (ValueError, OverflowError, OSError):
        raise QueueError(
            f'Cannot parse "{text}" as a time. Write 02:30, +2h, or 2027-01-31 02:30.'
        ) from None


class Start(NamedTuple):
    """Start conditions of a job: a time, and an idle machine or the night."""

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
    """Set the start conditions, dependencies and retries of a job; None leaves them.

    Raises:
        QueueError: The job is not queued (for `retries`: has ended), the time has passed, or it
            would wait for a job that cannot succeed before it.
    """
    job = store.get(job_id)
    if job.state not in ("queued", "paused") and (start or needs is not None):
        raise QueueError(f'"{job.name}" is {job.state}; only waiting jobs can be scheduled.')
    if job.state in ENDED:
        raise QueueError(f'"{job.name}" is {job.state}; resume it instead.')
    if start and start.after is not None and start.after < now():
        raise QueueError("That time is in the past. Give one in the future, or start the job now.")
    needed = [_awaited(job, store.get(other)) for other in needs or ()]
    with store.database.writing() as db:
        if start:
            db.conn.execute(_START, (*start, job.id))
        if retries is not None:
            db.conn.execute(_AGAIN, (retries, job.id))
        if needs is not None:
            db.conn.execute("DELETE FROM dependencies WHERE job = ?", (job.id,))
            db.conn.executemany(job_table.NEED, [(job.id, other) for other in needed])
    return store.get(job.id)


def _awaited(job: Job, other: Job) -> int:
    if other.id >= job.id:
        raise QueueError(
            f'"{job.name}" can only wait for jobs older than itself, and "{other.name}" is '
            "not: submit it again after that one."
        )
    if other.state in ("failed", "cancelled") and other.id not in job.needs:
        raise QueueError(f'"{other.name}" is {other.state}, so the job would never start.')
    return other.id


_WRITE = """
INSERT INTO settings(name, value) VALUES (?, ?)
ON CONFLICT(name) DO UPDATE SET value = excluded.value
"""
_WRITE_FIRST = "INSERT INTO settings(name, value) VALUES (?, ?) ON CONFLICT(name) DO NOTHING"
_FAILED_SINCE = """
SELECT jobs.name FROM events JOIN jobs ON jobs.id = events.job
WHERE events.id > :seen AND events.dst = 'failed' AND jobs.state = 'failed'
  AND jobs.id NOT IN (SELECT value FROM json_each(:again))
ORDER BY events.id LIMIT 1
"""

_START = "UPDATE jobs SET start_after = ?, start_when = ? WHERE id = ?"
_AGAIN = "UPDATE jobs SET retries_left = ?, retries_done = 0 WHERE id = ?"

"""Start conditions of a job: a time, an idle machine, jobs that it waits for, retries."""

import datetime
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jobs import job_table
from jobs.database import now
from jobs.job_queue import JobStore
from jobs.job_record import ENDED, Job
from studio.errors import QueueError

StartWhen = Literal["", "idle", "night"]
UNITS = {"m": 60, "h": 3600, "d": 86_400}


def parse_time(text: str, *, now: float) -> float:
    """Return seconds since 1970 in UTC; a time of day that has passed means tomorrow.

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


_START = "UPDATE jobs SET start_after = ?, start_when = ? WHERE id = ?"
_AGAIN = "UPDATE jobs SET retries_left = ?, retries_done = 0 WHERE id = ?"

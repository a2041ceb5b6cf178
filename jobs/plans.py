"""Plans beyond one run: sweeps, copies, schedules, dependencies, retries, notes.

Each function changes the queue in one transaction, or raises an error and changes nothing.
"""

import datetime
import itertools
import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jobs import jobs_table, settings
from jobs.claims import retried, set_state
from jobs.database import now
from jobs.job import ENDED, Job
from jobs.memory import needed_by_each, needed_bytes
from jobs.schema import Tables
from jobs.store import JobStore
from studio.errors import QueueError
from studio.spec import RunSpec

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


MOST_POINTS = 1000


def points(
    fields: Mapping[str, Sequence[Any]], *, count: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the assignments of each run, every one different.

    Args:
        fields: The values to try, by dotted field.
        count: Draw this number of combinations; 0 takes all.
        seed: Seed of the draw.

    Raises:
        QueueError: A field has no values or one twice, or there are too many points.
    """
    empty = [field for field, values in fields.items() if not values]
    if not fields or empty:
        raise QueueError(f"A sweep needs values to try{' for ' + empty[0] if empty else ''}.")
    total = math.prod(len(values) for values in fields.values())
    wanted = count or total
    if min(wanted, total) > MOST_POINTS:
        raise QueueError(
            f"This sweep has {wanted:,} points; {MOST_POINTS:,} is the most. "
            "Try fewer values, or draw some at random."
        )
    for field, values in fields.items():
        written = Counter(json.dumps(value, sort_keys=True, default=str) for value in values)
        value, times = written.most_common(1)[0]
        if times > 1:
            raise QueueError(f"{field} has {value} twice. Give each value once.")
    names, lists = list(fields), list(fields.values())
    if wanted >= total:
        chosen = list(itertools.product(*lists))
    else:
        numbers = random.Random(seed).sample(range(total), wanted)
        chosen = [_combination(lists, number) for number in sorted(numbers)]
    return [dict(zip(names, values, strict=True)) for values in chosen]


def _combination(lists: Sequence[Sequence[Any]], number: int) -> tuple[Any, ...]:
    picked = []
    for values in reversed(lists):
        number, index = divmod(number, len(values))
        picked.append(values[index])
    return tuple(reversed(picked))


def _label(point: Mapping[str, Any]) -> str:
    return " ".join(f"{field.rpartition('.')[2]}={value}" for field, value in point.items())


StartWhen = Literal["", "idle", "night"]
BACKOFF_SECONDS = 30.0
MOST_RETRIES = 10  # the last after 4 hours


def submit_sweep(
    store: JobStore,
    spec: RunSpec,
    fields: Mapping[str, Sequence[Any]],
    *,
    name: str,
    count: int = 0,
    on_error: Literal["continue", "stop"] = "continue",
    retries: int = 0,
) -> list[Job]:
    """Queue one run for each point of a sweep, as a group called `name`."""
    if not name.strip():
        raise QueueError("A sweep needs a name, which its runs begin with.")
    chosen = points(fields, count=count, seed=spec.seed)
    specs = [
        spec.with_values({**point, "name": f"{name.strip()} {_label(point)}"[:120]})
        for point in chosen
    ]
    with store.database.reading() as db:
        if db.conn.execute("SELECT 1 FROM jobs WHERE sweep = ?", (name.strip(),)).fetchone():
            raise QueueError(f'There is already a sweep "{name.strip()}". Choose another name.')
    return store.submit_many(
        specs, sweep=name.strip(), on_error=on_error, retries=retries,
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
            db.conn.executemany(jobs_table.NEED, [(job.id, other) for other in needed])
    return store.get(job.id)


def _awaited(job: Job, other: Job) -> int:
    if other.id >= job.id:
        raise QueueError(
            f'"{job.name}" can only wait for jobs older than itself, and "{other.name}" is '
            "not: submit it again after that one."
        )
    if other.state in ("failed", "cancelled"):
        raise QueueError(f'"{other.name}" is {other.state}, so the job would never start.')
    return other.id


def shift(store: JobStore, job_id: int | str, places: int) -> Job:
    """Move a queued job towards the front (negative places) or the end."""
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
    """Hold, release or cancel the runs of a sweep whose state allows it; return their number.

    Raises:
        QueueError: The sweep does not exist, or none of its runs is in such a state.
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


def settle(store: JobStore) -> None:
    """Apply what follows from ended jobs: hold blocked ones, retry transient failures, delete the
    checkpoints of jobs cancelled with `drop`."""
    settings.hold_after_error(store)
    _drop_checkpoints(store)
    with store.database.reading() as db:
        again = retried(db)
        if not again and not _blocked(db, again):
            return
    with store.database.writing() as db:
        again = retried(db)
        for job, why in _blocked(db, again):
            set_state(db, job, "paused", actor="supervisor", why=why)
        for job, done in again.items():
            wait = BACKOFF_SECONDS * 2**done
            set_state(db, job, "queued", actor="supervisor", why=f"tries again in {wait:.0f} s")
            db.conn.execute(_COUNT_RETRY, (now() + wait, job))


def _blocked(db: Tables, again: Iterable[int]) -> list[tuple[int, str]]:
    """Return the queued jobs that cannot start any more, each with the reason."""
    return db.conn.execute(_BLOCKED, {"again": json.dumps(list(again))}).fetchall()


def _drop_checkpoints(store: JobStore) -> None:
    with store.database.reading() as db:
        dropped = [row[0] for row in db.conn.execute(_DROPPED).fetchall()]
    for job in dropped:  # the flag last, so that it is repeated after a kill in between
        shutil.rmtree(store.home.run(job) / "checkpoints", ignore_errors=True)
        with store.database.writing() as db:
            db.conn.execute("DELETE FROM checkpoints WHERE job = ?", (job,))
            db.conn.execute("UPDATE jobs SET drop_checkpoints = 0 WHERE id = ?", (job,))


_WAITING = "SELECT id FROM jobs WHERE state IN ('queued', 'paused') ORDER BY position, id"
_DROPPED = "SELECT id FROM jobs WHERE state = 'cancelled' AND drop_checkpoints = 1"
_BLOCKED = """
SELECT jobs.id, 'it needs "' || other.name || '", which is ' || other.state
FROM jobs JOIN dependencies ON dependencies.job = jobs.id
          JOIN jobs AS other ON other.id = dependencies.needs
WHERE jobs.state = 'queued' AND other.state IN ('failed', 'cancelled')
  AND other.id NOT IN (SELECT value FROM json_each(:again))
UNION
SELECT jobs.id, 'its sweep stops at an error, and "' || other.name || '" failed'
FROM jobs JOIN jobs AS other ON other.sweep = jobs.sweep
WHERE jobs.state = 'queued' AND jobs.on_error = 'stop' AND other.state = 'failed'
  AND other.id NOT IN (SELECT value FROM json_each(:again))
"""
_START = "UPDATE jobs SET start_after = ?, start_when = ? WHERE id = ?"
_AGAIN = "UPDATE jobs SET retries_left = ?, retries_done = 0 WHERE id = ?"
_COUNT_RETRY = """
UPDATE jobs SET retries_left = retries_left - 1, retries_done = retries_done + 1, start_after = ?
WHERE id = ?
"""

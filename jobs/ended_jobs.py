"""Follow up ended jobs: retry transient failures, hold jobs that wait for failed ones, tidy up.

A job held for one that it needs is queued again as soon as that one is no longer failed.
"""

import contextlib
import json
from collections.abc import Iterable

from jobs import queue_settings
from jobs.claims import retried, set_state
from jobs.database import now
from jobs.database_schema import Tables
from jobs.job_queue import JobStore
from jobs.run_folder import CHECKPOINTS, discarding

BACKOFF_SECONDS = 30.0
MOST_RETRIES = 10  # the last after 4 hours


def follow_up(store: JobStore) -> None:
    """Apply what follows from ended jobs: hold blocked ones, retry transient failures, delete the
    checkpoints of jobs cancelled with `drop`."""
    queue_settings.hold_after_error(store)
    _drop_checkpoints(store)
    with store.database.reading() as db:
        again = retried(db)
        if not again and not _blocked(db, again) and not _freed(db):
            return
    with store.database.writing() as db:
        again = retried(db)
        for job, why in _blocked(db, again):
            set_state(db, job, "paused", actor="supervisor", why=why)
        for job in _freed(db):
            set_state(db, job, "queued", actor="supervisor", why="what it needs is queued again")
        for job, done in again.items():
            wait = BACKOFF_SECONDS * 2**done
            set_state(db, job, "queued", actor="supervisor", why=f"tries again in {wait:.0f} s")
            db.conn.execute(_COUNT_RETRY, (now() + wait, job))


def _blocked(db: Tables, again: Iterable[int]) -> list[tuple[int, str]]:
    """Return the queued jobs that cannot start any more, each with the reason."""
    found = []
    for job, name, state in db.conn.execute(_BLOCKED, {"again": json.dumps(list(again))}):
        why = f'its sweep stops at an error, and "{name}" failed'
        if state:
            why = f'it needs "{name}", which is {state}'
        found.append((job, why))
    return found


def _freed(db: Tables) -> list[int]:
    """Return the jobs that were held as blocked and can start again."""
    return [job for (job,) in db.conn.execute(_FREED)]


def _drop_checkpoints(store: JobStore) -> None:
    for row in store.database.rows(_DROPPED):
        job = row["id"]
        with contextlib.ExitStack() as committed, store.database.writing() as db:
            if db.conn.execute(_NO_DROP, (job,)).fetchall():  # unless it was resumed meanwhile
                db.conn.execute("DELETE FROM checkpoints WHERE job = ?", (job,))
                committed.enter_context(discarding(store.home.run(job) / CHECKPOINTS))


_DROPPED = "SELECT id FROM jobs WHERE state = 'cancelled' AND drop_checkpoints = 1"
_NO_DROP = """
UPDATE jobs SET drop_checkpoints = 0
WHERE id = ? AND state = 'cancelled' AND drop_checkpoints = 1 RETURNING id
"""
_BLOCKED = """
SELECT jobs.id, other.name, other.state
FROM jobs JOIN dependencies ON dependencies.job = jobs.id
          JOIN jobs AS other ON other.id = dependencies.needs
WHERE jobs.state = 'queued' AND other.state IN ('failed', 'cancelled')
  AND other.id NOT IN (SELECT value FROM json_each(:again))
UNION
SELECT jobs.id, other.name, ''
FROM jobs JOIN jobs AS other ON other.sweep = jobs.sweep
WHERE jobs.state = 'queued' AND jobs.on_error = 'stop' AND other.state = 'failed'
  AND other.id NOT IN (SELECT value FROM json_each(:again))
"""
_FREED = """
SELECT id FROM jobs
WHERE state = 'paused' AND changed_by = 'supervisor' AND why LIKE 'it needs "%'
  AND NOT EXISTS (SELECT 1 FROM dependencies JOIN jobs AS other ON other.id = dependencies.needs
                  WHERE dependencies.job = jobs.id AND other.state IN ('failed', 'cancelled'))
"""
_COUNT_RETRY = """
UPDATE jobs SET retries_left = retries_left - 1, retries_done = retries_done + 1, start_after = ?
WHERE id = ?
"""

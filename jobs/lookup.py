"""How jobs are found: by number or name, as a list, as a queue. Reads only."""

import json
from collections.abc import Iterable

from jobs import naming
from jobs.record import COLUMNS, Job, job_of
from jobs.states import State
from jobs.tables import Tables
from studio.errors import QueueError
from studio.names import shown

LONGEST_NUMBER = 19  # digits: more is no number of a job


def one(db: Tables, job_id: int | str) -> Job:
    """Return a job by number or name.

    Raises:
        QueueError: There is none.
    """
    by_id = isinstance(job_id, int) or (job_id.isdecimal() and len(job_id) < LONGEST_NUMBER)
    rows = list(db.query(_BY_ID if by_id else _BY_NAME, (int(job_id) if by_id else job_id,)))
    if not rows:
        label = f"number {job_id}" if by_id else f'called "{shown(str(job_id))}"'
        raise QueueError(f"There is no job {label}. `studio runs` lists them.")
    return job_of(rows[0])


def listed(
    db: Tables, states: Iterable[State] | None, *, limit: int | None, offset: int, search: str
) -> list[Job]:
    """Return jobs, newest first; see `JobStore.list`."""
    values = {
        "all": states is None, "states": json.dumps(sorted(states or ())),
        "limit": -1 if limit is None else limit, "offset": offset,
        "pattern": "%" + naming.escaped(search.strip()) + "%",
    }  # fmt: skip
    return [job_of(row) for row in db.query(_LIST, values)]


def queued(db: Tables, *, limit: int | None) -> list[Job]:
    """Return what runs and what waits, in the order it will run."""
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

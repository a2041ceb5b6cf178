"""The order of the queue: a real number per job, so that one always fits between two."""

from jobs.tables import Tables


def to_the_end(db: Tables, job: int) -> None:
    """Place a job behind all others."""
    db.conn.execute(_TO_THE_END, (job,))


def place_before(db: Tables, job: int, other: int) -> None:
    """Place a job right before another one; renumbers all when the numbers get too close."""
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

"""Settings of the queue in the database, with their defaults: held, error policy, retention.

One row per setting, JSON values.
"""

import json
import secrets
from typing import Any, Literal

from jobs.claims import retried
from jobs.job_queue import JobStore
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


def read(store: JobStore, name: str) -> Any:
    """Return a setting, or its default."""
    rows = store.database.rows("SELECT value FROM settings WHERE name = ?", (name,))
    return json.loads(rows[0]["value"]) if rows else DEFAULTS[name]


def write(store: JobStore, name: str, value: Any) -> None:
    """Store a setting."""
    assert name in DEFAULTS, name
    store.database.change(_WRITE, (name, json.dumps(value)))


def is_first_start(store: JobStore) -> bool:
    """Return True until the first start was put away or a job was asked for."""
    return not read(store, "welcomed") and not store.list(limit=1)


def home_id(store: JobStore) -> str:
    """Return the random id that sets the runs of this home apart from those of another."""
    if (found := read(store, "home_id")) is None:
        values = ("home_id", json.dumps(secrets.token_hex(4)))
        store.database.change(_WRITE_FIRST, values)  # another process may be first
        found = read(store, "home_id")
    return str(found)


def hold_queue(store: JobStore) -> None:
    """Start no further jobs; running ones continue.

    Raises:
        QueueError: It is held already.
    """
    if read(store, "held"):
        raise QueueError("The queue is already held. `studio queue --release` lets it go on.")
    write(store, "held", "The queue is held.")


def release_queue(store: JobStore) -> None:
    """Start queued jobs again, regardless of failures until now.

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
    """Return the number of the newest event, or 0."""
    (row,) = store.database.rows("SELECT COALESCE(MAX(id), 0) AS newest FROM events")
    return int(row["newest"])


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

"""How a job enters the queue: its name, its row, what it waits for."""

import json
from collections.abc import Iterable
from typing import Any

from jobs import lookup, metrics, naming
from jobs.database import now
from jobs.kinds import FILE_KINDS, FILES
from jobs.tables import Tables
from studio import devices
from studio.errors import QueueError
from studio.spec import RunSpec

PLAN: dict[str, Any] = {
    "kind": "train", "parent": None, "sweep": None, "on_error": "continue", "retries": 0,
    "memory": 0,
}  # fmt: skip


def insert(
    db: Tables, spec: RunSpec | dict[str, Any], plan: dict[str, Any], needs: Iterable[int] = ()
) -> int:
    """Write a job at the end of the queue inside the caller's transaction; return its number.

    Args:
        db: A connection that writes.
        spec: What to do.
        plan: The columns of `jobs` that say how, where they are not as `PLAN` has them.
        needs: Jobs that must have succeeded before it starts.

    Raises:
        QueueError: The name is taken, or could be read as something else.
    """
    plan = PLAN | plan
    values = spec.model_dump(mode="json") if isinstance(spec, RunSpec) else dict(spec)
    made_up = plan["kind"] == "promote" or bool(plan.get("sweep"))
    asked = naming.checked(values.get("name"), made_up=made_up)
    naming.checked(plan.get("sweep"))
    if made_up and asked != str(values.get("name") or "").strip():
        asked = naming.free(db, asked[:110])  # what made two of them different may be gone
    holder = naming.holder(db, asked) if asked else None
    if holder is not None:
        raise QueueError(
            f'There is already a job called "{asked}" (number {holder}). '
            "Choose another name, or leave it empty to get one made up."
        )
    values["name"] = asked or naming.free(db, naming.made_up(values, plan["kind"]))
    train = values.get("train") or {}
    wish = str(train.get("device") or "auto")
    width = devices.width(wish, int(train.get("num_processes") or 1))
    if plan["kind"] == "preflight":  # one process measures for all
        wish, width = devices.one_of(wish), 1
    row = plan | {
        "name": values["name"], "spec": json.dumps(metrics.finite(values)), "now": now(),
        "device": FILES if plan["kind"] in FILE_KINDS else wish, "width": width,
    }  # fmt: skip
    job_id = int(db.conn.execute(_SUBMIT, row).fetchall()[0][0])
    for needed in needs:
        db.conn.execute(NEED, (job_id, lookup.one(db, needed).id))
    return job_id


_SUBMIT = """
INSERT INTO jobs(kind, name, spec, device_wanted, parent, created, sweep, on_error, retries_left,
                 width, memory_bytes, position, why)
VALUES (:kind, :name, :spec, :device, :parent, :now, :sweep, :on_error, :retries, :width, :memory,
        (SELECT COALESCE(MAX(position), 0) + 1 FROM jobs), 'submitted')
RETURNING id
"""
NEED = "INSERT OR IGNORE INTO dependencies(job, needs) VALUES (?, ?)"

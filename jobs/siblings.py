"""Siblings: runs of one sweep that train in the same process, on one base model in memory.

Each has a place with a name of its own, `cpu#12` for job 12 on `cpu`, so that it holds a lease, has
an attempt and ends as any other job; the device is busy while one of its places is taken. Only
neighbours in the queue are grouped, so that a job between them is not overtaken.
"""

import json
import math
from collections.abc import Collection, Iterable
from typing import Any

from jobs.claims import MAY_START, Claim, start_parameters
from jobs.cluster import is_slot
from jobs.database import Database, now
from jobs.kinds import FILES
from jobs.processes import Identity
from jobs.schema import Tables
from studio.errors import SpecError
from studio.spec import RunSpec
from studio.training.grouping import sibling_key

MOST = 8
PLACE = "#"


def device_of(name: str) -> str:
    """Return the device of a lease: `cpu` for both `cpu` and `cpu#12`."""
    return name.partition(PLACE)[0]


def claim_siblings(
    database: Database,
    claim: Claim,
    *,
    owner: Identity,
    beside: Collection[str] = (),
    wanted: Iterable[str] | None = None,
    start_when: Iterable[str] = ("idle", "night"),
) -> list[Claim]:
    """Claim the next queued siblings of a run that was just claimed, to train in its process.

    Args:
        claim: The run.
        owner: The supervisor.
        beside: Other slots; those that are free get their share of the siblings.
        wanted: As for the claim.
        start_when: As for the claim.
    """
    if claim.device == FILES or is_slot(claim.device) or "," in claim.device:
        return []
    with database.writing() as db:
        (first,) = db.query(_FIRST, {"id": claim.job})
        key = _sibling_key(first)
        if key is None:
            return []
        siblings = _neighbours(db, first, key, start_parameters(wanted, start_when))
        held = {device_of(str(row["device"])) for row in db.query(_HELD)}
        free = sum(device not in held for device in beside)
        share = math.ceil((1 + len(siblings)) / (1 + free)) - 1
        return [
            Claim(*db.conn.execute(_CLAIM_SIBLING, {
                "id": job, "owner": str(owner), "now": now(), "leader": first["name"],
                "device": f"{claim.device}{PLACE}{job}",
            }).fetchone())
            for job in siblings[: min(share, MOST - 1)]
        ]  # fmt: skip


def _neighbours(db: Tables, first: dict[str, Any], key: str, values: dict[str, Any]) -> list[int]:
    found = []
    for row in db.query(_WAITING, values):
        if row["sweep"] != first["sweep"]:
            break
        if _sibling_key(row) == key:
            found.append(int(row["id"]))
    return found


def _sibling_key(row: dict[str, Any]) -> str | None:
    """Return the key that siblings share; None if the job must train alone.

    That is a job that lost its last process without progress, which would end its siblings too, and
    one whose failure ends the rest of its sweep.
    """
    if row["kind"] != "train" or not row["sweep"] or row["no_progress"]:
        return None
    if row["on_error"] == "stop":
        return None
    try:
        return sibling_key(RunSpec.parse(json.loads(row["spec"])))
    except SpecError:
        return None  # its own runner reports the error


_COLUMNS = "id, kind, name, sweep, spec, no_progress, on_error"
_FIRST = f"SELECT {_COLUMNS} FROM jobs WHERE id = :id"
_WAITING = f"SELECT {_COLUMNS} FROM jobs WHERE {MAY_START} ORDER BY position, id LIMIT 100"
_HELD = "SELECT device FROM leases WHERE holder = 'job'"
_CLAIM_SIBLING = """
UPDATE jobs SET state = 'starting', owner = :owner, attempt = attempt + 1,
  heartbeat = :now, started = COALESCE(started, :now), phase = 'Starting',
  error_kind = NULL, error_text = NULL, changed_by = 'supervisor', waits = '',
  why = 'together with "' || :leader || '"', device = :device
WHERE id = :id
RETURNING id, attempt, device
"""

"""Seats beside a run on its device: runs of its sweep that may train in the same process.

A seat is a device of its own name, `cpu#12` for job 12 on `cpu`, so that each job holds a lease,
has an attempt and ends as any other does; the device is busy as long as one of its seats is taken.
Only neighbours in the queue sit together: a job that waits between them keeps its turn.
"""

import json
import math
from collections.abc import Collection, Iterable
from typing import Any

from jobs.claims import MAY_START, Claim, conditions
from jobs.cluster import is_slot
from jobs.database import Database, now
from jobs.kinds import FILES
from jobs.processes import Identity
from jobs.schema import Tables
from studio.errors import SpecError
from studio.spec import RunSpec
from studio.training.grouping import sibling_key

MOST = 8
SEAT = "#"


def device_of(name: str) -> str:
    """Return the device of a lease, whether a seat or the device itself."""
    return name.partition(SEAT)[0]


def take_seats(
    database: Database,
    claim: Claim,
    *,
    owner: Identity,
    beside: Collection[str] = (),
    wanted: Iterable[str] | None = None,
    moods: Iterable[str] = ("idle", "night"),
) -> list[Claim]:
    """Claim the next queued siblings of a run that was just claimed, to train in its process.

    Args:
        claim: The run.
        owner: The supervisor.
        beside: Other slots; those that are free get their share of the siblings.
        wanted: As for the claim.
        moods: As for the claim.
    """
    if claim.device == FILES or is_slot(claim.device) or "," in claim.device:
        return []
    with database.writing() as db:
        (first,) = db.query(_FIRST, {"id": claim.job})
        kin = _kin(first)
        if kin is None:
            return []
        siblings = _neighbours(db, first, kin, conditions(wanted, moods))
        held = {device_of(str(row["device"])) for row in db.query(_HELD)}
        free = sum(device not in held for device in beside)
        share = math.ceil((1 + len(siblings)) / (1 + free)) - 1
        return [
            Claim(*db.conn.execute(_SEAT, {
                "id": job, "owner": str(owner), "now": now(), "leader": first["name"],
                "device": f"{claim.device}{SEAT}{job}",
            }).fetchone())
            for job in siblings[: min(share, MOST - 1)]
        ]  # fmt: skip


def _neighbours(db: Tables, first: dict[str, Any], kin: str, values: dict[str, Any]) -> list[int]:
    found = []
    for row in db.query(_WAITING, values):
        if row["sweep"] != first["sweep"]:
            break
        if _kin(row) == kin:
            found.append(int(row["id"]))
    return found


def _kin(row: dict[str, Any]) -> str | None:
    """What a job's siblings share; None where it must be alone.

    Alone is what lost its last process without progress, so that it takes nobody with it again, and
    what shall end the rest of its sweep when it fails.
    """
    if row["kind"] != "train" or not row["sweep"] or row["no_progress"]:
        return None
    if row["on_error"] == "stop":
        return None
    try:
        return sibling_key(RunSpec.parse(json.loads(row["spec"])))
    except SpecError:
        return None  # its own runner will say what is wrong


_COLUMNS = "id, kind, name, sweep, spec, no_progress, on_error"
_FIRST = f"SELECT {_COLUMNS} FROM jobs WHERE id = :id"
_WAITING = f"SELECT {_COLUMNS} FROM jobs WHERE {MAY_START} ORDER BY position, id LIMIT 100"
_HELD = "SELECT device FROM leases WHERE holder = 'job'"
_SEAT = """
UPDATE jobs SET state = 'starting', owner = :owner, attempt = attempt + 1,
  heartbeat = :now, started = COALESCE(started, :now), phase = 'Starting',
  error_kind = NULL, error_text = NULL, changed_by = 'supervisor', waits = '',
  why = 'together with "' || :leader || '"', device = :device
WHERE id = :id
RETURNING id, attempt, device
"""

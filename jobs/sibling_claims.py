"""Claim siblings: runs of one sweep that train in the same process, on one base model in memory.

Each has a place with a name of its own, `cpu#12` for job 12 on `cpu`, so that it holds a lease, has
an attempt and ends as any other job; the device is busy while one of its places is taken. Only
neighbours in the queue are grouped, so that a job between them is not overtaken.
"""

import json
import math
from collections.abc import Iterable
from itertools import islice, takewhile
from typing import Any

from jobs.claims import PLACE, Claim, Slot, leased_devices, start_attempt, startable
from jobs.database import Database
from jobs.job_kinds import BESIDE
from jobs.processes import Identity
from jobs.ray_cluster import is_slot
from studio.errors import SpecError
from studio.spec import RunSpec
from studio.training.sibling_key import sibling_key

MOST, MOST_CANDIDATES = 8, 100


def claim_siblings(
    database: Database,
    claim: Claim,
    *,
    owner: Identity,
    slot: Slot,
    start_when: Iterable[str] = ("idle", "night"),
) -> list[Claim]:
    """Claim the next queued siblings of a run that was just claimed, to train in its process.

    Args:
        database: The queue's database.
        claim: The run.
        owner: The supervisor.
        slot: Its slot; the devices beside it that are free get their share of the siblings.
        start_when: As for the claim.
    """
    if claim.device in BESIDE or is_slot(claim.device) or "," in claim.device:
        return []
    with database.writing() as db:
        (first,) = db.query(_FIRST, {"id": claim.job})
        key = _sibling_key(first)
        if key is None:
            return []
        queued = startable(db, wanted=slot.wanted, start_when=start_when)
        neighbours = takewhile(
            lambda job: job["sweep"] == first["sweep"], list(islice(queued, MOST_CANDIDATES))
        )
        siblings = [job["id"] for job in neighbours if _sibling_key(job) == key]
        free = set(slot.beside) - leased_devices(db)
        share = math.ceil((1 + len(siblings)) / (1 + len(free))) - 1
        why = f'together with "{first["name"]}"'
        return [
            start_attempt(db, job, f"{claim.device}{PLACE}{job}", owner=owner, why=why)
            for job in siblings[: min(share, MOST - 1)]
        ]


def _sibling_key(job: dict[str, Any]) -> str | None:
    """Return the key that siblings share; None if the job must train alone.

    That is a job that lost its last process without progress, which would end its siblings too, and
    one whose failure ends the rest of its sweep.
    """
    if job["kind"] != "train" or not job["sweep"] or job["no_progress"]:
        return None
    if job["on_error"] == "stop":
        return None
    try:
        return sibling_key(RunSpec.parse(json.loads(job["spec"])))
    except SpecError:
        return None  # its own runner reports the error


_FIRST = "SELECT kind, name, sweep, spec, no_progress, on_error FROM jobs WHERE id = :id"

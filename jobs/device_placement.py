"""Place jobs: free memory, chat models that free a device, siblings that share a process.

A job has a memory estimate, made at submission from the longest of its first rows; 0 is unknown and
fits everywhere. On a GPU the memory that is really free counts, on a CPU only that of chat, since
the system frees the rest. A job that needs nearly all of a device or more starts on an empty one.
Chat is requested to leave a GPU when a job could start there now and no other device takes it, and
any device that lacks memory; a chat host that stays is killed, since it loads its models again at
the next question.

Siblings are runs of one sweep that train in the same process, on one base model in memory. Each has
a place with a name of its own, `cpu#12` for job 12 on `cpu`, so that it holds a lease, has an
attempt and ends as any other job; the device is busy while one of its places is taken. Only
neighbours in the queue are grouped, so that a job between them is not overtaken.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

from jobs.claims import PLACE, Claim, Slot, device_of, leased_devices, start_attempt, startable
from jobs.database import Database
from jobs.job_kinds import BESIDE
from jobs.job_queue import JobStore
from jobs.processes import Identity, kill_session
from jobs.ray_cluster import is_slot
from studio import hardware
from studio.errors import SpecError, StudioError
from studio.home import Home
from studio.models import find_model
from studio.names import readable
from studio.spec import RunSpec

logger = logging.getLogger(__name__)
ENOUGH = 0.9
BESIDE_DISPLAY, DISPLAY_BYTES = 0.85, 3 << 29  # of a GPU, on which a display may take the rest
READ_SECONDS = 2.0
CHAT_SECONDS = 10.0
END_CHAT_SECONDS = 60.0
MOST_SIBLINGS, MOST_CANDIDATES = 8, 100
MOST_ESTIMATES = 40


class Placement:
    """The free memory of the slots, in bytes per slot in `left`, and that of chat in `chat`.

    A slot with nearly all of its memory free is absent from `left`.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        devices: Callable[[], list[hardware.Device]] = hardware.devices,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._devices, self._clock = store, devices, clock
        self._read_at, self._known = float("-inf"), dict[str, hardware.Device]()
        self._asked: dict[str, float] = {}
        self._short, self._start_when = set[str](), list[str]()
        self.left: dict[str, int] = {}
        self.chat: dict[str, int] = {}

    def look(
        self,
        slots: Sequence[Slot],
        *,
        start_when: Iterable[str],
        others: Mapping[int, str] | None = None,
    ) -> None:
        """Read the free memory of idle slots; record which first job needs more.

        Args:
            start_when: Values of `start_when` that hold now.
            others: What queued jobs of the cluster wait for.
        """
        leases = self._store.leases()
        chat = {str(r["device"]): int(r["memory_bytes"]) for r in leases if r["holder"] == "chat"}
        self.chat, self._start_when = chat, list(start_when)
        busy = {device_of(str(row["device"])) for row in leases if row["holder"] == "job"}
        wanted = {slot.device: slot.wanted for slot in slots}
        self.left = self._room([device for device in wanted if device not in busy], chat)
        held = {
            row["id"]: f'It waits for "{row["name"]}", which is paused.'
            for row in self._store.database.rows(_HELD_RUNS)
        }
        self._short, sentences = set(), self._absent(list(wanted)) | held | dict(others or {})
        for slot, room in self.left.items():
            found = self._store.claims.waiting_for_memory(
                room, wanted=wanted[slot], start_when=start_when
            )
            if found:
                self._short.add(slot)
                sentences.setdefault(found[0], _sentence(found[1], slot, room, chat.get(slot, 0)))
        self._write(sentences)

    def may_claim(self, slot: Slot) -> bool:
        """Return False while chat has time to leave a slot that a job waits for.

        After that time a job that fits beside chat starts; any other waits.
        """
        device = slot.device
        room = {other: left for other, left in self.left.items() if other not in self.chat}
        if device == "cpu":  # a CPU is shared
            asks = device in self._short
        else:
            asks = device in self.chat and self._store.claims.awaited(
                slot, room=room, start_when=self._start_when
            )
        if not asks or not self._store.ask_chat_to_leave(device):
            self._asked.pop(device, None)
            return True
        waited = self._clock() - self._asked.setdefault(device, self._clock())
        if device in self._short and waited > END_CHAT_SECONDS:
            self._end_chat(device)
        return device == "cpu" or waited > CHAT_SECONDS

    def _room(self, slots: Sequence[str], chat: dict[str, int]) -> dict[str, int]:
        if slots and self._clock() - self._read_at > READ_SECONDS:
            self._known = {device.name: device for device in self._devices()}
            self._read_at = self._clock()
        found = {}
        for slot in slots:
            device = self._known.get(slot)
            if device is None:
                continue
            room = device.total_bytes - chat.get(slot, 0)
            if slot != "cpu":
                room = min(room, device.free_bytes)
            enough = ENOUGH * device.total_bytes
            if hardware.is_card(slot):
                whole = device.total_bytes
                enough = min(BESIDE_DISPLAY * whole, max(whole / 2, whole - DISPLAY_BYTES))
            if room < enough:
                found[slot] = max(0, room)
        return found

    def _absent(self, slots: Sequence[str]) -> dict[int, str]:
        """Return a sentence for each job that names a GPU which this machine lacks."""
        named = self._store.database.rows(_NAMED)
        gpus = [slot for slot in slots if hardware.is_card(slot)]
        found = {}
        for job in named if gpus else ():  # without GPUs its runner reports it
            absent = [name for name in job["device_wanted"].split(",") if name not in gpus]
            if absent:
                why = f"wants {', '.join(absent)}; this machine has {', '.join(gpus)}"
                found[job["id"]] = why
        return found

    def _write(self, sentences: dict[int, str]) -> None:
        database = self._store.database
        known = database.rows("SELECT id, waits FROM jobs WHERE waits <> ''")
        if {job["id"]: job["waits"] for job in known} == sentences:
            return
        with database.writing(durable=False) as db:
            db.conn.execute("UPDATE jobs SET waits = '' WHERE waits <> ''")
            db.conn.executemany(_SET_WAITS, [(why, job) for job, why in sentences.items()])

    def _end_chat(self, slot: str) -> None:
        for row in self._store.leases():
            if row["holder"] == "chat" and row["device"] == slot:
                logger.warning("chat did not leave %s; ending process %d", slot, row["pid"])
                kill_session(Identity.recorded(row), hard=True)
        self._asked.pop(slot, None)


def needed_bytes(spec: RunSpec, home: Home) -> int:
    """Return the bytes that a run needs on its device, from its first rows; 0 if not known."""
    from studio.training.estimate_memory_and_time import estimate

    if not find_model.origin_of(spec.model.path, spec.model.revision).is_local:
        return 0
    try:
        return estimate(spec, home, from_first_rows=True).total_bytes
    except StudioError as error:
        logger.info("no estimate: %s", error.text)
        return 0


def needed_by_each(specs: Iterable[RunSpec], home: Home) -> list[int]:
    """Return the bytes that each run of a sweep needs; after `MOST_ESTIMATES`, their largest."""
    known: dict[RunSpec, int] = {}
    found = []
    for spec in specs:
        alike = spec.with_values({"name": "", "seed": 0, "train.learning_rate": "auto"})
        if alike not in known and len(known) < MOST_ESTIMATES:
            known[alike] = needed_bytes(spec, home)
        found.append(known.get(alike, max(known.values())))
    return found


def _sentence(need: int, slot: str, room: int, chat: int) -> str:
    why = (
        f"needs about {readable(need)} of {slot}, which has {readable(room)} left"
        f"{f'; chat holds {readable(chat)}' if chat else ''}"
    )
    return why


def claim_siblings(
    database: Database,
    claim: Claim,
    *,
    owner: Identity,
    slot: Slot,
    start_when: Iterable[str] = ("idle", "night"),
) -> list[Claim]:
    """Place the next queued siblings of a claimed run: claim them, to train in its process.

    Args:
        slot: Its slot; the devices beside it that are free get their share of the siblings.
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
            for job in siblings[: min(share, MOST_SIBLINGS - 1)]
        ]


def _sibling_key(job: dict[str, Any]) -> str | None:
    """Return the key that siblings share; None if the job must train alone.

    That is a job that lost its last process without progress, which would end its siblings too, one
    that is retried, e.g. after the memory did not hold all of them, and one whose failure ends the
    rest of its sweep.
    """
    if job["kind"] != "train" or not job["sweep"] or job["on_error"] == "stop":
        return None
    if job["no_progress"] or job["retries_done"]:
        return None
    from studio.training.starting_point import sibling_key  # loads much that a supervisor lacks

    try:
        return sibling_key(RunSpec.parse(json.loads(job["spec"])))
    except SpecError:
        return None  # its own runner reports the error


_SET_WAITS = "UPDATE jobs SET waits = ? WHERE id = ? AND state = 'queued'"
_NAMED = """
SELECT id, device_wanted FROM jobs
WHERE state = 'queued' AND (device_wanted LIKE 'cuda:%' OR device_wanted LIKE 'xpu:%')
"""
_HELD_RUNS = """
SELECT jobs.id, run.name
FROM jobs JOIN jobs AS run ON run.sweep = jobs.sweep
WHERE jobs.state = 'queued' AND jobs.kind = 'bakeoff' AND run.kind = 'train'
  AND run.state = 'paused'
"""

_FIRST = """
SELECT kind, name, sweep, spec, no_progress, retries_done, on_error FROM jobs WHERE id = :id
"""

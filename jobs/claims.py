"""Claim jobs for devices, record progress, end attempts: what supervisor and runners write.

A job that names its devices (`cuda:0,cuda:2`) starts when these are free, one that wants `all` when
every slot of the kind is free, any other on as many slots as it is wide.

Every write of a runner carries its attempt number. If that is no longer the job's, another attempt
has the job: `Fenced` is raised, nothing is changed, and the runner exits at once.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from jobs.database import Database, finite, now
from jobs.database_schema import Tables
from jobs.job_kinds import BESIDE
from jobs.job_record import Intent, Request, State
from jobs.processes import Identity
from jobs.run_curves import Progress, write_measurements
from studio.device_setting import CLUSTER

UNBOUNDED = 2**62
PLACE = "#"


def device_of(lease: str) -> str:
    """Return the device of a lease: `cpu` for both `cpu` and `cpu#12`, job 12's place on it."""
    return lease.partition(PLACE)[0]


@dataclass(frozen=True, slots=True)
class Slot:
    """A device that starts jobs, the devices beside it, and the requests that it serves."""

    device: str
    beside: tuple[str, ...] = ()
    """Further devices for a job on several."""
    wanted: Collection[str] | None = None
    """Values of `train.device` that it serves; None serves all that need a device here."""

    def serves(self, wanted: str) -> bool:
        """Return True if jobs with this `train.device` start here."""
        if self.wanted is None:
            return wanted not in (CLUSTER, *BESIDE)
        named = wanted.split(",")  # a set of devices, of which this slot may be one
        return wanted in self.wanted or (len(named) > 1 and not set(named).isdisjoint(self.wanted))

    def devices_of(
        self, job: Mapping[str, Any], held: Collection[str], room: Mapping[str, int]
    ) -> list[str]:
        """Return the free devices that a job gets here; empty if it does not fit."""
        slots, named = [self.device, *self.beside], job["device_wanted"].split(",")
        fitting = [
            slot for slot in slots
            if slot not in held and room.get(slot, UNBOUNDED) >= job["memory_bytes"]
            and (len(named) == 1 or slot in named)
        ]  # fmt: skip
        width = len(slots) if named == ["all"] else job["width"]
        if self.device == "cpu":  # one device, however many processes share it
            width = 1
        return fitting[:width] if self.device in fitting and width <= len(fitting) else []


def startable(
    db: Tables,
    *,
    wanted: Iterable[str] | None = None,
    start_when: Iterable[str] = ("idle", "night"),
    least_bytes: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the queued jobs that may be claimed now, in the order of the queue."""
    values = {
        "now": now(), "any": wanted is None, "wanted": json.dumps(list(wanted or ())),
        "start_when": json.dumps(["", *start_when]), "least": least_bytes,
    }  # fmt: skip
    return cast("Iterator[dict[str, Any]]", db.query(_STARTABLE, values))


def leased_devices(db: Tables) -> set[str]:
    """Return the devices that jobs hold."""
    rows = db.conn.execute("SELECT device FROM leases WHERE holder = 'job'").fetchall()
    return {device_of(device) for (device,) in rows}


def start_attempt(db: Tables, job: int, device: str, *, owner: Identity, why: str) -> "Claim":
    """Claim a queued job: move it into `starting` on a device, as a new attempt."""
    values = {"id": job, "device": device, "owner": str(owner), "why": why, "now": now()}
    return Claim(*db.conn.execute(_START_ATTEMPT, values).fetchall()[0])


_STARTABLE = """
SELECT id, position, kind, name, sweep, spec, device_wanted, width, memory_bytes, no_progress,
  retries_done, on_error
FROM jobs
WHERE state = 'queued'
  AND +memory_bytes >= :least  -- + keeps to the index of positions
  AND (:any AND device_wanted <> 'ray' OR device_wanted IN (SELECT value FROM json_each(:wanted))
       OR instr(device_wanted, ',')  -- a set, of which this slot is one
          AND EXISTS (SELECT 1 FROM json_each(:wanted) AS mine
                      WHERE instr(',' || device_wanted || ',', ',' || mine.value || ',')))
  AND (start_after IS NULL OR start_after <= :now)
  AND start_when IN (SELECT value FROM json_each(:start_when))
  AND NOT EXISTS (SELECT 1 FROM dependencies JOIN jobs AS needed ON needed.id = dependencies.needs
                  WHERE dependencies.job = jobs.id AND needed.state <> 'succeeded')
  AND (kind <> 'bakeoff'  -- which measures what its runs left, wherever these are trained
       OR NOT EXISTS (SELECT 1 FROM jobs AS run WHERE run.sweep = jobs.sweep AND run.kind = 'train'
                      AND run.state NOT IN ('succeeded', 'failed', 'cancelled')))
ORDER BY position, id
"""
_START_ATTEMPT = """
UPDATE jobs SET state = 'starting', owner = :owner, attempt = attempt + 1,
  heartbeat = :now, started = COALESCE(started, :now), phase = 'Starting',
  error_kind = NULL, error_text = NULL, changed_by = 'supervisor', why = :why, waits = '',
  device = :device
WHERE id = :id
RETURNING id, attempt, device
"""

NO_PROGRESS_LIMIT = 3


def retried(db: Tables) -> dict[int, int]:
    """Return the failed jobs that are tried again, each with the number of its past retries."""
    return dict(db.conn.execute(_RETRIED).fetchall())


_RETRIED = """
SELECT id, retries_done FROM jobs WHERE state = 'failed' AND retries_left > 0
  AND error_kind IN ('start', 'out_of_memory', 'weights_too_large', 'network')  -- transient ones
"""


def set_state(
    db: Tables,
    job: int,
    state: State,
    *,
    attempt: int | None = None,
    actor: str,
    why: str = "",
    result: dict[str, Any] | None = None,
    error: tuple[str, str] | None = None,
) -> bool:
    """Move a job into a state without a process; return False if the attempt does not match.

    The transition trigger refuses an illegal state.
    """
    kind, text = error or (None, None)
    values = {
        "id": job, "state": state, "attempt": attempt, "actor": actor, "why": why or text or "",
        "now": now(), "error_kind": kind, "error_text": text,
        "result": json.dumps(finite(result or {})),
    }  # fmt: skip
    return bool(db.conn.execute(_LEAVE, values).fetchall())


def ask_to_stop(
    db: Tables, job: int, intent: Intent, *, attempt: int | None = None, actor: str, why: str
) -> None:
    """Request the stop of an active job, unless the attempt does not match."""
    values = {
        "id": job, "intent": intent, "attempt": attempt, "actor": actor, "why": why, "now": now(),
    }  # fmt: skip
    db.conn.execute(_STOP, values)


_STOP = """
UPDATE jobs SET state = 'stopping', stop_requested = :intent, stop_requested_at = :now,
  changed_by = :actor, why = :why
WHERE id = :id AND (:attempt IS NULL OR attempt = :attempt AND state IN ('starting', 'running'))
"""
_OBEYED: dict[Intent, State] = {
    "cancel": "cancelled", "pause": "paused", "shutdown": "interrupted",
}  # fmt: skip
_GIVEN_UP = "It ended {tries} times without reaching a new checkpoint. The last time: {why}"
_LEAVE = """
UPDATE jobs SET state = :state, device = NULL, owner = NULL, pid = NULL, pid_started = NULL,
  boot_id = NULL, heartbeat = NULL, stop_requested = NULL, stop_requested_at = NULL, phase = '',
  finished = CASE WHEN :state IN ('succeeded', 'failed', 'cancelled') THEN :now END,
  error_kind = :error_kind, error_text = :error_text, result = json_patch(result, :result),
  changed_by = :actor, why = :why
WHERE id = :id AND (:attempt IS NULL OR (attempt = :attempt
                    AND state IN ('starting', 'running', 'stopping')))
RETURNING id
"""
_ACTIVE_ATTEMPT = """
SELECT stop_requested, resume_step, no_progress FROM jobs
WHERE id = ? AND attempt = ? AND state IN ('starting', 'running', 'stopping')
"""
_COUNT_PROGRESS = "UPDATE jobs SET no_progress = ?, resume_step = ? WHERE id = ?"


class Fenced(Exception):
    """This attempt lost the job to another; it must exit without writing anything."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at one job on its devices (`cpu`, `cuda:0`, or several: `cuda:0,cuda:1`)."""

    job: int
    attempt: int
    device: str


class Claims:
    """The queue as the supervisor and the runners write it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim_next(
        self,
        slots: Sequence[Slot],
        *,
        owner: Identity,
        room: Mapping[str, int] | None = None,
        start_when: Iterable[str] = ("idle", "night"),
    ) -> Claim | None:
        """Take the first job of the queue that may start now on a free slot, or None.

        Smaller jobs overtake one that needs more devices or memory than are free. A job that
        names its devices gets exactly these, one that wants `all` every device of its slot.

        Args:
            slots: Those that may start jobs; of several for one job, the first takes it.
            owner: The supervisor that will start the runner.
            room: Free bytes of a device; an absent one has room for any job.
            start_when: Values of `start_when` that hold now: `idle`, `night`.
        """
        with self._database.writing() as db:
            held = leased_devices(db)
            free = [slot for slot in slots if slot.device not in held]
            served = [slot.wanted for slot in free]
            wanted = None if None in served else {one for own in served for one in own or ()}
            for job in startable(db, wanted=wanted, start_when=start_when) if free else ():
                for slot in free:
                    if slot.serves(job["device_wanted"]):
                        if devices := slot.devices_of(job, held, room or {}):
                            return start_attempt(
                                db, job["id"], ",".join(devices), owner=owner,
                                why=f"on {slot.device}",
                            )  # fmt: skip
        return None

    def waiting_for_memory(
        self,
        room: int,
        *,
        wanted: Iterable[str] | None = None,
        start_when: Iterable[str] = ("idle", "night"),
    ) -> tuple[int, int] | None:
        """Return number and bytes of the first job that only lacks memory to start."""
        with self._database.reading() as db:
            jobs = startable(db, wanted=wanted, start_when=start_when, least_bytes=room + 1)
            first = next(jobs, None)
        return (first["id"], first["memory_bytes"]) if first else None

    def awaited(self, slot: Slot, *, room: Mapping[str, int], start_when: Iterable[str]) -> bool:
        """Return True if a queued job would start on a free slot now."""
        with self._database.reading() as db:
            held = leased_devices(db)
            jobs = startable(db, wanted=slot.wanted, start_when=start_when)
            return any(
                slot.serves(job["device_wanted"]) and slot.devices_of(job, held, room)
                for job in jobs
            )

    def register(self, claim: Claim, process: Identity, *, from_step: int = 0) -> Intent | None:
        """Record the process of a claim; starting becomes running.

        Returns:
            The stop request, if any.

        Raises:
            Fenced: The claim is no longer valid.
        """
        why = f"process {process.pid}"
        own = {"id": claim.job, "attempt": claim.attempt, "now": now(), "from_step": from_step}
        values = {**asdict(process), **own, "why": why}
        with self._database.writing() as db:
            rows = db.conn.execute(_REGISTER, values).fetchall()
            if not rows:
                raise Fenced
            db.conn.execute(_REGISTER_ATTEMPT, values)
        return cast("Intent | None", rows[0][0])

    def intent(self, claim: Claim) -> Intent | None:
        """Return the stop request, if any.

        Raises:
            Fenced: The claim is no longer valid.
        """
        with self._database.reading() as db:
            row = db.conn.execute(_ACTIVE_ATTEMPT, (claim.job, claim.attempt)).fetchone()
        if row is None:
            raise Fenced
        return cast("Intent | None", row[0])

    def take_request(self, claim: Claim) -> Request | None:
        """Return the user's next request to the run, and clear it."""
        values = {"id": claim.job, "attempt": claim.attempt}
        with self._database.reading() as db:
            save, sample = db.conn.execute(_REQUESTS, values).fetchone() or (0, 0)
        if not (save or sample):
            return None
        self._database.change(_TAKE_REQUEST, values | {"sample": not save}, durable=False)
        return "save" if save else "sample"

    def report(self, claim: Claim, progress: Progress) -> Intent | None:
        """Store a report and the heartbeat; a step that is done again replaces the earlier one.

        Returns:
            The stop request, if any.

        Raises:
            Fenced: The claim is no longer valid; nothing was stored.
        """
        values = {
            "id": claim.job, "attempt": claim.attempt, "now": now(), "step": progress.step,
            "total": progress.total_steps, "phase": progress.phase,
            "result": json.dumps(finite(progress.result or {})),
        }  # fmt: skip
        with self._database.writing(durable=bool(progress.checkpoints)) as db:
            rows = db.conn.execute(_PROGRESS, values).fetchall()
            if not rows:
                raise Fenced
            write_measurements(db, claim.job, progress)
        return cast("Intent | None", rows[0][0])

    def ask_shutdown(self, claim: Claim) -> None:
        """Request a stop because the machine shuts down; the job is queued again later."""
        with self._database.writing() as db:
            ask_to_stop(
                db, claim.job, "shutdown", attempt=claim.attempt, actor="supervisor",
                why="the system asked for it",
            )  # fmt: skip

    def ask_pause(self, claim: Claim, *, why: str) -> None:
        """Request a pause from the runner itself, e.g. for a full disk."""
        with self._database.writing() as db:
            ask_to_stop(db, claim.job, "pause", attempt=claim.attempt, actor="runner", why=why)

    def finish(
        self,
        claim: Claim,
        state: Literal["succeeded", "failed", "cancelled", "paused", "interrupted"],
        *,
        result: dict[str, Any] | None = None,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Record how the attempt ended.

        Raises:
            Fenced: The claim is no longer valid.
        """
        with self._database.writing() as db:
            if not set_state(
                db, claim.job, state, attempt=claim.attempt, actor="runner",
                result=result, error=error,
            ):  # fmt: skip
                raise Fenced

    def stopped(
        self,
        claim: Claim,
        *,
        result: dict[str, Any] | None = None,
        error: tuple[str, str] | None = None,
        newest_step: int | None = None,
    ) -> State:
        """End the attempt as its stop request says now, and return the state.

        Args:
            error: Why it paused.
            newest_step: Step of its newest whole checkpoint, to count an attempt without progress.

        Raises:
            Fenced: The claim is no longer valid.
        """
        with self._database.writing() as db:
            row = db.conn.execute(_ACTIVE_ATTEMPT, (claim.job, claim.attempt)).fetchone()
            if row is None:
                raise Fenced
            intent, resume_step, no_progress = row
            state = _OBEYED[intent]
            set_state(
                db, claim.job, state, attempt=claim.attempt, actor="runner", result=result,
                error=error if state == "paused" else None,
            )  # fmt: skip
            if newest_step is not None:
                tries = 0 if newest_step > resume_step else no_progress + 1
                db.conn.execute(_COUNT_PROGRESS, (tries, max(newest_step, resume_step), claim.job))
        return state

    def lost(
        self,
        claim: Claim,
        *,
        why: str,
        newest_step: int,
        blameless: bool = False,
        limit: int = NO_PROGRESS_LIMIT,
    ) -> State | None:
        """End an attempt whose process is proven dead; queue the job again while it progresses.

        Args:
            why: How its process died, for the user.
            newest_step: Step of the newest whole checkpoint; further than last time is progress.
            blameless: Do not count the attempt, since the machine went down.
            limit: Attempts without progress after which only the user resumes the job.

        Returns:
            The state it is in now; None if the attempt had already ended.
        """
        job, attempt = claim.job, claim.attempt
        with self._database.writing() as db:
            row = db.conn.execute(_ACTIVE_ATTEMPT, (job, attempt)).fetchone()
            if row is None:
                return None
            intent, resume_step, no_progress = row
            if intent in ("cancel", "pause"):
                set_state(db, job, _OBEYED[intent], attempt=attempt, actor="supervisor", why=why)
                return _OBEYED[intent]
            moved = newest_step > resume_step or blameless or intent == "shutdown"
            tries = 0 if moved else no_progress + 1
            error = ("interrupted", _GIVEN_UP.format(tries=tries, why=why))
            set_state(
                db, job, "interrupted", attempt=attempt, actor="supervisor", why=why,
                error=error if tries >= limit else None,
            )  # fmt: skip
            db.conn.execute(_COUNT_PROGRESS, (tries, max(newest_step, resume_step), job))
            if tries >= limit:
                return "interrupted"
            where = f"from step {newest_step}" if newest_step else "from the beginning"
            set_state(db, job, "queued", actor="supervisor", why=f"goes on {where}")
            return "queued"

    def could_not_start(self, claim: Claim, *, text: str) -> None:
        """End an attempt whose runner ended before it registered: failed, or as requested."""
        with self._database.writing() as db:
            row = db.conn.execute(_ACTIVE_ATTEMPT, (claim.job, claim.attempt)).fetchone()
            if row is None:
                return
            state: State = _OBEYED[row[0]] if row[0] in ("cancel", "pause") else "failed"
            set_state(
                db, claim.job, state, attempt=claim.attempt, actor="supervisor",
                error=("start", text) if state == "failed" else None,
            )  # fmt: skip


_REGISTER = """
UPDATE jobs SET state = CASE state WHEN 'starting' THEN 'running' ELSE state END,
  pid = :pid, pid_started = :started, boot_id = :boot_id, heartbeat = :now,
  changed_by = 'runner', why = :why
WHERE id = :id AND attempt = :attempt AND pid IS NULL AND state IN ('starting', 'stopping')
RETURNING stop_requested
"""
_REGISTER_ATTEMPT = """
UPDATE attempts SET pid = :pid, from_step = :from_step WHERE job = :id AND attempt = :attempt
"""
_REQUESTS = (
    "SELECT save_requested, sample_requested FROM jobs WHERE id = :id AND attempt = :attempt"
)
_TAKE_REQUEST = """
UPDATE jobs SET save_requested = 0, sample_requested = sample_requested AND NOT :sample
WHERE id = :id AND attempt = :attempt
"""
_PROGRESS = """
UPDATE jobs SET heartbeat = :now, step = COALESCE(:step, step),
  total_steps = COALESCE(:total, total_steps), phase = COALESCE(:phase, phase),
  result = json_patch(result, :result)
WHERE id = :id AND attempt = :attempt AND state IN ('running', 'stopping')
RETURNING stop_requested
"""

"""The queue as pages and commands use it: submit, list, reorder, stop, resume, delete.

Runners and the supervisor write through `claims.py`. An invalid request raises a `QueueError` and
changes nothing.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs import run_curves, run_folder
from jobs.claims import Claim, Claims, ask_to_stop, set_state
from jobs.database import Database, escaped_like, finite, now
from jobs.database_schema import Tables
from jobs.job_record import ENDED, LEGAL, Intent, Job, Request, State
from jobs.job_table import find_job, insert, read_jobs
from jobs.processes import Identity, me
from jobs.run_curves import Curves
from jobs.run_folder import newest_step
from studio.cluster.shared_storage import NOTE as SUBMISSION
from studio.cluster.shared_storage import read_submission
from studio.errors import QueueError
from studio.gpus import installed
from studio.home import Home
from studio.spec import RunSpec

Jobs = list[Job]
Claimed = list[Claim]
Rows = list[dict[str, Any]]
Points = list[tuple[float, float]]


class JobStore:
    """The queue of a home; safe to share between threads. Close it when done."""

    def __init__(self, home: Home) -> None:
        """Open or create the home's database.

        Raises:
            HomeError: The database cannot be used.
        """
        self.home = home
        self.database = Database(home)
        self.claims = Claims(self.database)
        self._curves = Curves()

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    # -- submit --------------------------------------------------------------------------------

    def submit(
        self,
        spec: RunSpec | dict[str, Any],
        *,
        kind: str = "train",
        parent: int | None = None,
        needs: Iterable[int] = (),
        sweep: str | None = None,
        retries: int = 0,
        held: bool = False,
        memory_bytes: int = 0,
    ) -> Job:
        """Queue a job at the end.

        Args:
            spec: The job; its name must be new, and an empty one is generated from its parts.
            kind: The code that executes it (`job_kinds.py`).
            parent: The job that this one continues or copies.
            needs: Jobs that must have succeeded before it starts.
            sweep: The group it belongs to.
            retries: Retries after a transient failure, e.g. out of memory.
            held: Do not start it before the user resumes it.
            memory_bytes: Its peak on its device; 0 if not known.

        Raises:
            QueueError: The name is taken.
        """
        plan = {
            "kind": kind, "parent": parent, "sweep": sweep, "retries": retries,
            "memory": memory_bytes,
        }  # fmt: skip
        with self.database.writing() as db:
            job_id = insert(db, spec, plan, needs)
            if held:
                set_state(db, job_id, "paused", actor="person", why="held back")
        return self.get(job_id)

    def submit_many(
        self,
        specs: Iterable[RunSpec | dict[str, Any]],
        *,
        sweep: str | None = None,
        on_error: str = "continue",
        retries: int = 0,
        memory_bytes: Iterable[int] = (),
    ) -> Jobs:
        """Queue several runs at the end, all or none.

        Raises:
            QueueError: One of the names is taken; nothing was queued.
        """
        plan = {"sweep": sweep, "on_error": on_error, "retries": retries}
        wanted = list(specs)
        needed = list(memory_bytes) or [0] * len(wanted)
        with self.database.writing() as db:
            ids = [
                insert(db, spec, plan | {"memory": memory})
                for spec, memory in zip(wanted, needed, strict=True)
            ]
        return [self.get(job_id) for job_id in ids]

    # -- read ----------------------------------------------------------------------------------

    def get(self, job_id: int | str) -> Job:
        """Return a job by number or name.

        Raises:
            QueueError: There is none.
        """
        with self.database.reading() as db:
            return find_job(db, job_id)

    def list(
        self, states: Iterable[State] | None = None, *, limit: int | None = None,
        search: str = "",
    ) -> Jobs:  # fmt: skip
        """Return the jobs of some or all states whose name contains a text, newest first."""
        values = {
            "all": states is None, "states": json.dumps(sorted(states or ())),
            "limit": -1 if limit is None else limit,
            "pattern": "%" + escaped_like(search.strip()) + "%",
        }  # fmt: skip
        with self.database.reading() as db:
            return read_jobs(db, _LIST, values)

    def queue(self, *, limit: int | None = None) -> Jobs:
        """Return running and queued jobs in the order in which they run."""
        with self.database.reading() as db:
            active = read_jobs(db, _ACTIVE)
            left = -1 if limit is None else max(0, limit - len(active))
            return [*active, *read_jobs(db, _WAITING, (left,))][:limit]

    def counts(self) -> dict[State, int]:
        """Return the number of jobs in each state."""
        rows = self.database.rows("SELECT state, count(*) AS count FROM jobs GROUP BY state")
        return {row["state"]: row["count"] for row in rows}

    def metrics(
        self, job_ids: Iterable[int], names: Iterable[str], *, after_seq: int = 0,
        bins: int = 500, window: tuple[float, float] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return thinned curves, or the new points since `after_seq`; see `run_curves.py`."""
        with self.database.reading() as db:
            return run_curves.read_metrics(
                db, job_ids, names, after_seq=after_seq, bins=bins, window=window,
                curves=self._curves,
            )  # fmt: skip

    def points(self, job_id: int, name: str, *, bins: int = 500) -> Points:
        """Return the points (step, value) of one thinned curve, without gaps."""
        found = self.metrics([job_id], [name], bins=bins)["data"].get(name, {}).get(str(job_id))
        steps = zip(found["x"], found["y"], strict=True) if found else ()
        return [(float(x), float(y)) for x, y in steps if y is not None]

    def samples(self, job_id: int) -> Rows:
        """Return the run's sample answers, oldest first."""
        return self.database.rows("SELECT * FROM samples WHERE job = ? ORDER BY step, id", [job_id])

    def checkpoints(self, job_id: int) -> Rows:
        """Return the checkpoints that are still on disk, oldest first."""
        rows = self.database.rows("SELECT * FROM checkpoints WHERE job = ? ORDER BY step", [job_id])
        return [finite(row) for row in rows if Path(row["path"]).is_dir()]

    def events(self, job_id: int) -> Rows:
        """Return every transition of the job, oldest first."""
        return self.database.rows("SELECT * FROM events WHERE job = ? ORDER BY id", [job_id])

    def attempts(self, job_id: int) -> Rows:
        """Return every attempt at the job, oldest first."""
        return self.database.rows("SELECT * FROM attempts WHERE job = ? ORDER BY attempt", [job_id])

    def log_path(self, job_id: int) -> Path:
        """Return the path of the run's log."""
        return self.home.run(job_id) / "log.txt"

    def log_tail(self, job_id: int, lines: int = 200) -> str:
        """Return the last lines of the run's log; empty if it has none yet."""
        return run_folder.log_tail(self.log_path(job_id), lines)

    # -- change --------------------------------------------------------------------------------

    def cancel(self, job_id: int | str, *, drop: bool = False) -> Job:
        """End a job; a running one stops at its next step. `drop` then deletes its checkpoints."""
        return self._stop(job_id, "cancel", drop=drop)

    def pause(self, job_id: int | str) -> Job:
        """Hold a queued job, or let a running one save, stop and free its device."""
        return self._stop(job_id, "pause")

    def resume(self, job_id: int | str, *, restart: bool = False) -> Job:
        """Queue a job again, from its newest complete checkpoint or with `restart` from step 0.

        Raises:
            QueueError: It is queued, running or succeeded, or has no checkpoint to resume from.
        """
        job = self.get(job_id)
        run_dir = self.home.run(job.id)
        newest = newest_step(run_dir)  # hashes files, so before the database is locked
        with contextlib.ExitStack() as committed, self.database.writing() as db:
            before, job = job, find_job(db, job.id)
            if job.state not in ("paused", "failed", "cancelled", "interrupted"):
                raise QueueError(cannot(job, "resume"))
            if job.attempt != before.attempt:
                raise QueueError(f'"{job.name}" has just become {job.state}. Nothing was changed.')
            restart = restart or bool(job.drop_checkpoints)
            step = 0 if restart else newest
            away = read_submission(run_dir) is not None  # it still trains on the cluster
            if job.step > 0 and not (step or restart or away) and job.kind == "train":
                raise QueueError(
                    f'"{job.name}" has no whole checkpoint to go on from. '
                    "Restart it from the beginning instead (resume with --restart)."
                )
            for statement in _FORGET if restart else ():
                db.conn.execute(statement, (job.id,))
            if job.state in ENDED:
                db.conn.execute(_TO_THE_END, (job.id,))
            db.conn.execute(_FRESH_TRIES, (step, job.id))
            why = f"goes on from step {step}" if step else "starts from the beginning"
            set_state(db, job.id, "queued", actor="person", why=why)
            for name in (run_folder.CHECKPOINTS, SUBMISSION) if restart else ():
                committed.enter_context(run_folder.discarding(run_dir / name))
        return self.get(job.id)

    def request(self, job_id: int | str, what: Request) -> Job:
        """Let a running training save a checkpoint, or answer its sample prompts, at its next step.

        Raises:
            QueueError: It is not a running training.
        """
        job = self.get(job_id)
        if job.state != "running" or job.kind != "train":
            raise QueueError(f'"{job.name}" is {job.state}; only a running training can {what}.')
        values = {"save": what == "save", "sample": what == "sample", "id": job.id}
        self.database.change(_REQUEST, values)
        return self.get(job.id)

    def requeue(self, job_id: int, *, newest_step: int, state: State = "interrupted") -> None:
        """Queue a job again that a shutdown interrupted or a full disk paused."""
        with self.database.writing() as db:
            if find_job(db, job_id).state == state:
                where = f"from step {newest_step}" if newest_step else "from the beginning"
                set_state(db, job_id, "queued", actor="supervisor", why=f"goes on {where}")

    def active_claims(self) -> Claimed:
        """Return the active attempts."""
        return [
            Claim(job.id, job.attempt, job.device or "")
            for job in self.list(["starting", "running", "stopping"])
        ]

    def move(self, job_id: int | str, *, before: int | str | None = None) -> Job:
        """Move a queued job before another one, or to the end."""
        with self.database.writing() as db:
            job = find_job(db, job_id)
            other = None if before is None else find_job(db, before)
            for one in (job, other):
                if one is not None and one.state not in ("queued", "paused"):
                    raise QueueError(
                        f'"{one.name}" is {one.state}; only waiting jobs can be ordered.'
                    )
            if other is None:
                db.conn.execute(_TO_THE_END, (job.id,))
            elif other.id != job.id:
                _place_before(db, job.id, other.id)
        return self.get(job.id)

    def run_next(self, job_id: int | str) -> Job:
        """Move a queued job before all others."""
        with self.database.reading() as db:
            first = read_jobs(db, _WAITING, (1,))
        return self.move(job_id, before=first[0].id if first else None)

    def shift(self, job_id: int | str, places: int) -> Job:
        """Move a queued job towards the front (negative places) or the end."""
        job = self.get(job_id)
        waiting = [row["id"] for row in self.database.rows(_IN_ORDER)]
        if job.id not in waiting:
            job = self.get(job.id)
            raise QueueError(f'"{job.name}" is {job.state}; only waiting jobs can be ordered.')
        place = waiting.index(job.id)
        others = [other for other in waiting if other != job.id]
        target = min(max(0, place + places), len(others))
        return self.move(job.id, before=others[target] if target < len(others) else None)

    def delete(self, job_id: int | str) -> None:
        """Remove a job that does not run, with its run folder."""
        job = self.get(job_id)
        with self.database.writing() as db:
            job = find_job(db, job.id)
            if job.active:
                raise QueueError(f'"{job.name}" is {job.state}. Cancel it first.')
            waiting = db.conn.execute(_WAITING_FOR, (job.id,)).fetchone()
            if waiting:
                raise QueueError(
                    f'"{waiting[0]}" waits for "{job.name}". Delete or cancel that one first.'
                )
            db.conn.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        shutil.rmtree(self.home.run(job.id), ignore_errors=True)

    # -- processes and leases ------------------------------------------------------------------

    def supervisor(self) -> dict[str, Any] | None:
        """Return the row of the living supervisor, or None."""
        return next((row for row in self.processes() if row["role"] == "supervisor"), None)

    def processes(self) -> Rows:
        """Return the living processes of this home: supervisor, web, chat host, spare."""
        rows = self.database.rows("SELECT * FROM processes ORDER BY role, since")
        return [row for row in rows if Identity.recorded(row).alive()]

    def announce(self, role: str, *, url: str = "", identity: Identity | None = None) -> None:
        """Register this process, or another one, until it ends; delete rows of dead ones."""
        process = asdict(identity or me())
        version = installed("adapter-studio") or "0"  # of the sources
        values = {**process, "role": role, "url": url, "version": version, "now": now()}
        with self.database.writing(durable=False) as db:
            for row in list(db.query("SELECT role, pid, pid_started, boot_id FROM processes")):
                if not Identity.recorded(row).alive():
                    db.conn.execute(_FORGET_PROCESS, row)
            db.conn.execute(_ANNOUNCE, values)

    def leases(self) -> Rows:
        """Return the leases on devices without those of dead chat processes."""
        return [
            row for row in self.database.rows(_LEASES)
            if row["holder"] == "job" or (row["pid"] is not None and Identity.recorded(row).alive())
        ]  # fmt: skip

    def take_chat_lease(
        self, device: str, *, memory_bytes: int = 0, identity: Identity | None = None
    ) -> None:
        """Register this process as the holder of a chat model on a device."""
        process = asdict(identity or me())
        values = {**process, "device": device, "memory": memory_bytes, "now": now()}
        self.database.change(_CHAT_LEASE, values, durable=False)

    def ask_chat_to_leave(self, device: str) -> bool:
        """Request that the chat host frees a device; return False if it holds none there."""
        if not any(row["holder"] == "chat" and row["device"] == device for row in self.leases()):
            return False
        self.database.change(_WANT_BACK, (device,), durable=False)
        return True

    def return_chat_lease(self) -> None:
        """Remove the leases of this process."""
        sql = "DELETE FROM leases WHERE holder = 'chat' AND pid = ?"
        self.database.change(sql, (me().pid,), durable=False)
        self.database.wake()  # a job may wait for the device

    def _stop(self, job_id: int | str, intent: Intent, *, drop: bool = False) -> Job:
        """End a waiting job, or request the stop of an active one."""
        ended: State = "cancelled" if intent == "cancel" else "paused"
        with self.database.writing() as db:
            job = find_job(db, job_id)
            if drop:
                db.conn.execute("UPDATE jobs SET drop_checkpoints = 1 WHERE id = ?", (job.id,))
            if job.active:
                if job.intent == "cancel":
                    raise QueueError(f'"{job.name}" is already being cancelled.')
                if job.intent == intent:
                    raise QueueError(f'"{job.name}" is already being stopped.')
                ask_to_stop(db, job.id, intent, actor="person", why=f"{intent} asked for")
            elif job.state not in ENDED and (job.state, ended) in LEGAL:
                set_state(db, job.id, ended, actor="person", why="asked for")
            else:
                raise QueueError(cannot(job, intent))
        return self.get(job.id)


def cannot(job: Job, action: str) -> str:
    """Return why a job in its state does not allow an action, and what to do instead."""
    text = f'"{job.name}" is {job.state} and cannot be {action.rstrip("e")}ed.'
    text = text.replace("canceled", "cancelled")
    if job.state == "succeeded" and action == "resume":
        more = f"`studio extend {job.id}` trains it longer, as a new run."
        return f"{text} {more if job.kind == 'train' else 'Start a new one instead.'}"
    return text


def _place_before(db: Tables, job: int, other: int) -> None:
    """Move a job right before another one; renumber all if the numbers get too close."""
    below, above = db.conn.execute(_NEIGHBOURS, {"other": other, "job": job}).fetchone()
    position = above - 1 if below is None else (below + above) / 2
    if below is not None and not below < position < above:
        db.conn.execute(_RENUMBER)
        return _place_before(db, job, other)
    db.conn.execute("UPDATE jobs SET position = ? WHERE id = ?", (position, job))


_LIST = r"""
SELECT * FROM jobs
WHERE (:all OR state IN (SELECT value FROM json_each(:states))) AND name LIKE :pattern ESCAPE '\'
ORDER BY id DESC LIMIT :limit
"""
_ACTIVE = """
SELECT * FROM jobs WHERE state IN ('starting', 'running', 'stopping') ORDER BY position, id
"""
# Alone, so that the index gives the first of ten thousand without sorting them.
_WAITING = "SELECT * FROM jobs WHERE state = 'queued' ORDER BY position, id LIMIT ?"
_IN_ORDER = "SELECT id FROM jobs WHERE state IN ('queued', 'paused') ORDER BY position, id"
_TO_THE_END = """
UPDATE jobs SET position = (SELECT MAX(position) + 1 FROM jobs) WHERE id = ?
"""
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
_FRESH_TRIES = """
UPDATE jobs SET no_progress = 0, resume_step = ?,
  on_error = CASE WHEN EXISTS (SELECT 1 FROM jobs AS other  -- the user knows of that failure
                               WHERE other.sweep = jobs.sweep AND other.state = 'failed')
             THEN 'continue' ELSE on_error END
WHERE id = ?
"""
_REQUEST = """
UPDATE jobs SET save_requested = max(save_requested, :save),
  sample_requested = max(sample_requested, :sample)
WHERE id = :id
"""
_FORGET = (
    "DELETE FROM metrics WHERE job = ?",
    "DELETE FROM samples WHERE job = ?",
    "DELETE FROM checkpoints WHERE job = ?",
    """UPDATE jobs SET step = 0, total_steps = NULL, result = '{}', drop_checkpoints = 0
       WHERE id = ?""",
)
_WAITING_FOR = """
SELECT waiting.name FROM dependencies JOIN jobs AS waiting ON waiting.id = dependencies.job
WHERE dependencies.needs = ? AND waiting.state IN ('queued', 'paused')
"""
_FORGET_PROCESS = "DELETE FROM processes WHERE role = :role AND pid = :pid"
_WANT_BACK = "UPDATE leases SET wanted_back = 1 WHERE holder = 'chat' AND device = ?"
_ANNOUNCE = """
INSERT INTO processes(role, pid, pid_started, boot_id, url, version, since, heartbeat)
VALUES (:role, :pid, :started, :boot_id, :url, :version, :now, :now)
ON CONFLICT(role, pid) DO UPDATE SET pid_started = :started, boot_id = :boot_id, url = :url,
  version = :version, heartbeat = :now,
  since = CASE pid_started WHEN :started THEN since ELSE :now END
"""
_LEASES = """
SELECT leases.*, jobs.name AS job_name, jobs.state AS job_state
FROM leases LEFT JOIN jobs ON jobs.id = leases.job ORDER BY leases.device, leases.holder
"""
_CHAT_LEASE = """
INSERT INTO leases(device, holder, pid, pid_started, boot_id, memory_bytes, since)
VALUES (:device, 'chat', :pid, :started, :boot_id, :memory, :now)
ON CONFLICT(device, holder) DO UPDATE SET pid = :pid, pid_started = :started,
  boot_id = :boot_id, memory_bytes = :memory, wanted_back = 0
"""

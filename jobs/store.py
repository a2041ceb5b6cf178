"""The queue as a person uses it: submit, look, reorder, stop, go on, delete.

Pages and commands talk to this; runners and the supervisor write through `claims.py`. A request
that makes no sense raises a `QueueError` with one sentence and changes nothing.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs import curves, jobs_table, leases, run_files
from jobs.claims import Claim, Claims, leave
from jobs.curves import Curves
from jobs.database import Database
from jobs.job import Job, State
from jobs.processes import Identity, me
from jobs.run_files import newest_step
from studio.cluster.orders import delete_submission, read_submission
from studio.errors import QueueError
from studio.home import Home
from studio.spec import RunSpec

Jobs = list[Job]
Claimed = list[Claim]
Rows = list[dict[str, Any]]


class JobStore:
    """The studio's queue; safe to share between threads. Close it when done."""

    def __init__(self, home: Home) -> None:
        """Open or make the home's database.

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

    # -- submit ----------------------------------------------------------------------------------

    def submit(
        self,
        spec: RunSpec | dict[str, Any],
        *,
        kind: str = "train",
        parent: int | None = None,
        needs: Iterable[int] = (),
        sweep: str | None = None,
        on_error: str = "continue",
        retries: int = 0,
        held: bool = False,
        memory_bytes: int = 0,
    ) -> Job:
        """Put a job at the end of the queue.

        Args:
            spec: What to do; its name must be new, an empty one is made up from its parts.
            kind: Who runs it (`kinds.py`).
            parent: The job this one continues or came from.
            needs: Jobs that must have succeeded before it starts.
            sweep: The group it belongs to.
            on_error: `stop` holds the rest of its sweep back when it fails.
            retries: How often a transient failure (no memory, no start) is tried again.
            held: Whether it waits for a person to let it start.
            memory_bytes: What it will need of its device; 0 is not known.

        Raises:
            QueueError: The name is taken.
        """
        plan = {
            "kind": kind, "parent": parent, "sweep": sweep, "on_error": on_error,
            "retries": retries, "memory": memory_bytes,
        }  # fmt: skip
        with self.database.writing() as db:
            job_id = jobs_table.insert(db, spec, plan, needs)
            if held:
                leave(db, job_id, "paused", actor="person", why="held back")
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
        """Put several runs at the end of the queue, all of them or none.

        Raises:
            QueueError: One of the names is taken; nothing was queued.
        """
        plan = {"sweep": sweep, "on_error": on_error, "retries": retries}
        wanted = list(specs)
        needed = list(memory_bytes) or [0] * len(wanted)
        with self.database.writing() as db:
            ids = [
                jobs_table.insert(db, spec, plan | {"memory": memory})
                for spec, memory in zip(wanted, needed, strict=True)
            ]
        return [self.get(job_id) for job_id in ids]

    # -- look ------------------------------------------------------------------------------------

    def get(self, job_id: int | str) -> Job:
        """Return a job by number or name.

        Raises:
            QueueError: There is none.
        """
        with self.database.reading() as db:
            return jobs_table.find_job(db, job_id)

    def list(
        self, states: Iterable[State] | None = None, *, limit: int | None = None,
        offset: int = 0, search: str = "",
    ) -> Jobs:  # fmt: skip
        """Return jobs, newest first.

        Args:
            states: Only these; None returns all.
            limit: At most so many.
            offset: Skip so many.
            search: Words that the name must contain.
        """
        with self.database.reading() as db:
            return jobs_table.list_jobs(db, states, limit=limit, offset=offset, search=search)

    def queue(self, *, limit: int | None = None) -> Jobs:
        """Return what runs and what waits, in the order it will run."""
        with self.database.reading() as db:
            return jobs_table.queued_jobs(db, limit=limit)

    def counts(self) -> dict[State, int]:
        """Return how many jobs are in each state."""
        with self.database.reading() as db:
            return dict(db.conn.execute("SELECT state, count(*) FROM jobs GROUP BY state"))

    def metrics(
        self, job_ids: Iterable[int], names: Iterable[str], *, after_seq: int = 0,
        bins: int = 500, window: tuple[float, float] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return curves, thinned, or what is new since `after_seq`; see `metrics.py`."""
        with self.database.reading() as db:
            return curves.read_metrics(
                db,
                job_ids,
                names,
                after_seq=after_seq,
                bins=bins,
                window=window,
                curves=self._curves,
            )

    def samples(self, job_id: int) -> Rows:
        """Return the answers the run gave on its way, oldest first."""
        return self._rows("SELECT * FROM samples WHERE job = ? ORDER BY step, id", job_id)

    def checkpoints(self, job_id: int) -> Rows:
        """Return the checkpoints that are still on disk, oldest first."""
        rows = self._rows("SELECT * FROM checkpoints WHERE job = ? ORDER BY step", job_id)
        return [row for row in rows if Path(row["path"]).is_dir()]

    def events(self, job_id: int) -> Rows:
        """Return every transition of the job, oldest first."""
        return self._rows("SELECT * FROM events WHERE job = ? ORDER BY id", job_id)

    def attempts(self, job_id: int) -> Rows:
        """Return every attempt at the job, oldest first."""
        return self._rows("SELECT * FROM attempts WHERE job = ? ORDER BY attempt", job_id)

    def log_path(self, job_id: int) -> Path:
        """Where the run's log is."""
        return self.home.run(job_id) / "log.txt"

    def log_tail(self, job_id: int, lines: int = 200) -> str:
        """Return the last lines of the run's log; empty when it has none yet."""
        return run_files.log_tail(self.log_path(job_id), lines)

    # -- change ----------------------------------------------------------------------------------

    def cancel(self, job_id: int | str, *, drop: bool = False) -> Job:
        """End a job; one that runs stops at its next step. `drop` forgets its checkpoints then."""
        return self._stop(job_id, "cancel", "cancelled", drop=drop)

    def pause(self, job_id: int | str) -> Job:
        """Hold a waiting job back; let a running one save, stop and free its device."""
        return self._stop(job_id, "pause", "paused")

    def resume(self, job_id: int | str, *, restart: bool = False) -> Job:
        """Queue a job again: from its newest whole checkpoint, or with `restart` from step 0.

        Raises:
            QueueError: It waits, runs or succeeded already, or has no checkpoint to go on from.
        """
        job = self.get(job_id)
        if job.state not in ("paused", "failed", "cancelled", "interrupted"):
            raise QueueError(jobs_table.cannot(job, "resume"))
        restart = restart or bool(job.drop_checkpoints)
        step = 0 if restart else newest_step(self.home.run(job.id))
        away = read_submission(self.home.run(job.id)) is not None  # it is followed where it trains
        if job.step > 0 and not (step or restart or away) and job.kind == "train":
            raise QueueError(
                f'"{job.name}" has no whole checkpoint to go on from. '
                "Restart it from the beginning instead (resume with --restart)."
            )
        if restart:
            delete_submission(self.home.run(job.id))
            shutil.rmtree(self.home.run(job.id) / "checkpoints", ignore_errors=True)
        with self.database.writing() as db:
            jobs_table.queue_again(db, job, step=step, restart=restart)
        return self.get(job.id)

    def go_on(self, job_id: int, *, newest_step: int, state: State = "interrupted") -> None:
        """Queue again, by itself, what a shutdown had interrupted or a full disk had paused."""
        with self.database.writing() as db:
            if jobs_table.find_job(db, job_id).state == state:
                where = f"from step {newest_step}" if newest_step else "from the beginning"
                leave(db, job_id, "queued", actor="supervisor", why=f"goes on {where}")

    def active_claims(self) -> Claimed:
        """Return the attempts that are under way."""
        return [
            Claim(job.id, job.attempt, job.device or "")
            for job in self.list(["starting", "running", "stopping"])
        ]

    def move(self, job_id: int | str, *, before: int | str | None = None) -> Job:
        """Place a waiting job before another one, or at the end."""
        with self.database.writing() as db:
            job = jobs_table.find_job(db, job_id)
            other = None if before is None else jobs_table.find_job(db, before)
            for one in (job, other):
                if one is not None and one.state not in ("queued", "paused"):
                    raise QueueError(
                        f'"{one.name}" is {one.state}; only waiting jobs can be ordered.'
                    )
            if other is None:
                jobs_table.to_the_end(db, job.id)
            elif other.id != job.id:
                jobs_table.place_before(db, job.id, other.id)
        return self.get(job.id)

    def run_next(self, job_id: int | str) -> Job:
        """Place a waiting job before all others."""
        with self.database.reading() as db:
            first = jobs_table.first_waiting(db)
        return self.move(job_id, before=first)

    def delete(self, job_id: int | str) -> None:
        """Remove a job that does not run, with its run folder."""
        job = self.get(job_id)
        with self.database.writing() as db:
            job = jobs_table.find_job(db, job.id)
            if job.active:
                raise QueueError(f'"{job.name}" is {job.state}. Cancel it first.')
            waiting = db.conn.execute(_WAITING_FOR, (job.id,)).fetchone()
            if waiting:
                raise QueueError(
                    f'"{waiting[0]}" waits for "{job.name}". Delete or cancel that one first.'
                )
            db.conn.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
        shutil.rmtree(self.home.run(job.id), ignore_errors=True)

    # -- who is there ----------------------------------------------------------------------------

    def supervisor(self) -> dict[str, Any] | None:
        """Return the living supervisor's process row, or None."""
        return next((row for row in self.processes() if row["role"] == "supervisor"), None)

    def processes(self) -> Rows:
        """Return our processes that live: supervisor, web, chat host, spare."""
        with self.database.reading() as db:
            return leases.living(db)

    def announce(self, role: str, *, url: str = "", identity: Identity | None = None) -> None:
        """Say that this process is there; it counts until the process ends."""
        with self.database.writing(durable=False) as db:
            leases.announce(db, role, identity or me(), url)

    def leases(self) -> Rows:
        """Return who holds which device."""
        with self.database.reading() as db:
            return leases.leases(db)

    def take_chat_lease(self, device: str, *, memory_bytes: int = 0) -> None:
        """Say that this process keeps a chat model on a device."""
        with self.database.writing(durable=False) as db:
            leases.take_chat_lease(db, device, me(), memory_bytes)

    def ask_chat_to_leave(self, device: str) -> bool:
        """Ask whoever chats on a device to free it; False when nobody does."""
        if not any(row["holder"] == "chat" and row["device"] == device for row in self.leases()):
            return False
        with self.database.writing(durable=False) as db:
            leases.ask_chat_to_leave(db, device)
        return True

    def return_chat_lease(self) -> None:
        """Say that this process keeps no chat model any more."""
        with self.database.writing(durable=False) as db:
            leases.return_chat_lease(db, me())
        self.database.wake()  # a job may wait for the device

    def _rows(self, sql: str, job_id: int) -> Rows:
        with self.database.reading() as db:
            return [dict(row) for row in db.query(sql, (job_id,))]

    def _stop(self, job_id: int | str, intent: str, ended: State, *, drop: bool = False) -> Job:
        with self.database.writing() as db:
            number = jobs_table.stop(db, job_id, intent, ended, drop=drop)
        return self.get(number)


_WAITING_FOR = """
SELECT waiting.name FROM dependencies JOIN jobs AS waiting ON waiting.id = dependencies.job
WHERE dependencies.needs = ? AND waiting.state IN ('queued', 'paused')
"""

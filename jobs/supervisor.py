"""The supervisor: give queued jobs to devices, rescue jobs whose process died.

One per home, by a file lock that is freed with its process. It loads no model and never imports
torch, so it may run for weeks. All its state is in the database: after a kill the next one adopts
the living runners and queues again what died. It waits for a wake-up (`processes.py`)
instead of polling, and ends when nothing is left to do (a webhook to send and a run that waits for
room on the disk included) and no page is open, or when its home was deleted or moved.
"""

import argparse
import contextlib
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from jobs import backup, disk_usage, ended_jobs, queue_settings
from jobs.claims import NO_PROGRESS_LIMIT, Claim, Slot
from jobs.device_placement import Placement, claim_siblings
from jobs.job_kinds import BESIDE, NETWORK
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.processes import FileLock, Identity, Wakeup, me, of, wake
from jobs.ray_cluster import Watch
from jobs.run_folder import checkpoint_folders, newest_step
from jobs.runner_processes import RUNNER, Rescue, Runners, spawn
from jobs.webhook import Webhook
from studio import hardware, offline
from studio.errors import HomeError, StudioError
from studio.home import Home, open_home


def paused_by_full_disk(store: JobStore, *, limit: int = NO_PROGRESS_LIMIT) -> list[Job]:
    """Return the jobs that the supervisor resumes when the disk has room again."""
    return [
        job for job in store.list(["paused"])
        if job.error_kind == "disk_full" and job.no_progress < limit
    ]  # fmt: skip


def resume_paused_by_full_disk(store: JobStore, *, limit: int = NO_PROGRESS_LIMIT) -> None:
    """Resume the jobs that a full disk paused, if it has clearly more space now.

    What a job could not finish writing is gone when it pauses, so space alone means nothing: there
    must be more than was left then. After `limit` attempts without progress the user resumes it.
    """
    for job in paused_by_full_disk(store, limit=limit):
        run_dir, full = store.home.run(job.id), job.result.get("full_disk", {})
        newest = sum(map(disk_usage.size, checkpoint_folders(run_dir)[:1]))
        with contextlib.suppress(OSError):  # that disk is not there now
            free = disk_usage.free_bytes(Path(full.get("folder", store.home.path)))
            if free > disk_usage.NEEDED_BYTES + max(2 * newest, full.get("free_bytes", 0)):
                store.requeue(job.id, newest_step=newest_step(run_dir), state="paused")


logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0
POLL_SECONDS = 0.2  # where nothing can wake it
CALM_SECONDS = 0.05  # between two looks, however often it is woken
IDLE_LOOK_SECONDS = 5.0
BEAT_SECONDS = 2.0
IDLE_SECONDS = 900.0
GRACE_SECONDS = 60.0
BACKUP_LOOK_SECONDS = 600.0
WORK = {"queued", "starting", "running", "stopping"}
OFFLINE = "It waits for the hub: this studio is offline."
START_SECONDS = GRACE_SECONDS + 30


class Supervisor:
    """The loop: rescue, claim, keep a spare, leave when idle."""

    def __init__(
        self,
        home: Home,
        *,
        slots: Sequence[str] | None = None,
        command: Sequence[str] = RUNNER,
        idle_seconds: float = IDLE_SECONDS,
        limit: int = NO_PROGRESS_LIMIT,
        spare: bool = True,
    ) -> None:
        self.home = home
        self.store = JobStore(home)
        self.store.database.wakes = False
        self.wakeup = Wakeup(home)
        self.runners = Runners(home, command, self.wakeup.watch)
        self.rescue = Rescue(self.store, self.runners, limit=limit)
        self.webhook = Webhook(self.store)
        self.placement = Placement(self.store)
        self.cluster = Watch(self.store)
        self.slots = list(slots or [device.name for device in hardware.devices()])
        self._idle_seconds, self._spare, self._limit = idle_seconds, spare, limit
        self._stopping = self._working = False
        self._short: str | None = None
        self._beaten, self._busy = float("-inf"), time.monotonic()
        self._looked, self._version = float("-inf"), -1
        self._idle_look_seconds = min(IDLE_LOOK_SECONDS, idle_seconds)
        self._copied = time.monotonic() - BACKUP_LOOK_SECONDS + 30  # not while it starts

    def run(self) -> None:
        """Work until told to stop or idle; the caller holds the home's supervisor lock."""
        logger.info("supervising %s, devices %s", self.home.path, ", ".join(self.slots))
        woken, length = True, TURN_SECONDS if self.wakeup.complete else POLL_SECONDS
        while not self._stopping and self.home.state.is_dir():
            try:
                if self.turn(woken=woken) and self._idle_for() > self._idle_seconds:
                    logger.info("nothing to do and no page open; leaving")
                    break
                seconds = min(length, self._idle_seconds)
            except (StudioError, OSError, sqlite3.Error) as error:  # busy, full or gone for now
                logger.error("trying again: %s", error)
                seconds = 2.0
            woken = self.wakeup.wait(seconds)
            if woken:
                time.sleep(max(0.0, CALM_SECONDS - (time.monotonic() - self._looked)))
        self._close()

    def stop(self) -> None:
        """Let the loop end (safe to call from a signal handler)."""
        self._stopping = True
        wake(self.home.state)

    def turn(self, *, woken: bool) -> bool:
        """Look if something may have changed, refresh the heartbeat; return True if it looked.

        While jobs wait or run it looks at every turn, since some of what they wait for is not in
        the database. Otherwise only a wake-up, a commit or `IDLE_LOOK_SECONDS` make it look.
        """
        since = time.monotonic() - self._looked
        looks = (
            woken
            or since >= (TURN_SECONDS if self._working else self._idle_look_seconds)
            or self.store.database.version() != self._version
        )
        if looks:
            self._looked = time.monotonic()
            self.look()
            self._working = not WORK.isdisjoint(self.store.counts())
        if time.monotonic() - self._beaten > BEAT_SECONDS:
            self.store.announce("supervisor")
            self._beaten = time.monotonic()
        self._version = self.store.database.version()
        return looks

    def look(self) -> None:
        """Do once what is to do now."""
        self.rescue.look()
        self.rescue.requeue_interrupted()
        ended_jobs.follow_up(self.store)
        self.webhook.look()
        self.cluster.look()
        self._claim()
        if self._spare:
            self._care_for_spare()
        if time.monotonic() - self._copied > BACKUP_LOOK_SECONDS:
            self._copied = time.monotonic()
            backup.copy_daily(self.home, self.store.database, now=time.time())

    def _claim(self) -> None:
        short = disk_usage.shortage(self.home.path)
        if short != self._short:
            logger.warning("%s", short or "there is space again")
            self._short = short
        if short or queue_settings.read(self.store, "held"):
            return
        resume_paused_by_full_disk(self.store, limit=self._limit)
        if not self.store.counts().get("queued"):
            return
        start_when = self._start_when()
        away = {NETWORK} if offline.is_offline(self.home) else set()
        waits = self.cluster.waits()
        if away:
            queued = self.store.list(["queued"])
            waits |= {job.id: OFFLINE for job in queued if job.device_wanted == NETWORK}
        machine = [self._slot(device) for device in self.slots]
        self.placement.look(machine, start_when=start_when, others=waits)
        beside = [self._slot(name) for name in BESIDE if name not in away]
        alone = [slot for slot in machine if slot.device not in self.placement.chat]
        self._claim_on([*beside, *alone], start_when)
        held = [slot for slot in machine if slot not in alone]
        self._claim_on([s for s in held if self.placement.may_claim(s)], start_when)
        for claim in self.cluster.claims(me(), start_when):
            self._start(claim)

    def _claim_on(self, slots: Sequence[Slot], start_when: list[str]) -> None:
        claims, room = self.store.claims, self.placement.left
        while slots and (
            claim := claims.claim_next(slots, owner=me(), room=room, start_when=start_when)
        ):
            siblings = claim_siblings(
                self.store.database, claim, owner=me(), slot=self._slot(claim.device),
                start_when=start_when,
            )  # fmt: skip
            self._start(claim, siblings)

    def _start(self, claim: Claim, siblings: Sequence[Claim] = ()) -> None:
        for one in (claim, *siblings):
            logger.info("job %d, attempt %d on %s", one.job, one.attempt, one.device)
        self.runners.start(claim, siblings)

    def _start_when(self) -> list[str]:
        """Return the state of the machine: `idle` (little load, no chat model loaded), `night`."""
        start_when = []
        if not any(row["holder"] == "chat" for row in self.store.leases()):
            if psutil.getloadavg()[0] < 0.25 * hardware.physical_cores():
                start_when.append("idle")
        if not 7 <= time.localtime().tm_hour < 22:
            start_when.append("night")
        return start_when

    def _slot(self, device: str) -> Slot:
        """Return a slot with the others of its kind, for a job that trains on several."""
        kind = device.partition(":")[0]
        beside = [s for s in self.slots if s != device and s.partition(":")[0] == kind != "cpu"]
        return Slot(device, tuple(beside), self._served_by(device))

    def _served_by(self, device: str) -> list[str] | None:
        """Return the device requests that a slot serves; `auto` goes to GPUs if there are any."""
        if device in BESIDE:
            return [device]
        if device == self.slots[0] and len(self.slots) == 1:
            return None
        if device == "cpu":
            return ["cpu"]
        kind = device.partition(":")[0]
        return ["auto", "all", kind, device]

    def _care_for_spare(self) -> None:
        counts = self.store.counts()
        active = sum(counts.get(state, 0) for state in ("starting", "running", "stopping"))
        if active < len(self.slots):
            started = self.runners.keep_spare()
            if started is not None:
                self.store.announce("spare", identity=of(started))

    def _idle_for(self) -> float:
        if (
            self._working
            or self.webhook.waits
            or any(row["role"] == "web" for row in self.store.processes())
            or paused_by_full_disk(self.store, limit=self._limit)
        ):
            self._busy = time.monotonic()
        return time.monotonic() - self._busy

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # the home may be gone
            _lock_path(self.home).write_text("", encoding="utf-8")  # so that the next one can start
        self.runners.drop_spare()
        if self._stopping:
            interrupt_all(self.store, self.rescue, deadline=time.monotonic() + GRACE_SECONDS)
        self.wakeup.close()
        self.store.close()


def living(home: Home) -> Identity | None:
    """Return the identity of the home's supervisor, or None."""
    try:
        identity = Identity.parse(_lock_path(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return identity if identity.alive() else None


def ensure_running(home: Home) -> int:
    """Return the pid of the home's supervisor, starting one when none lives.

    Raises:
        HomeError: It did not start; its log says why.
    """
    found = living(home)
    if found is not None:
        return found.pid
    JobStore(home).close()  # refuses a bad database here, where the user sees it
    log = home.state / "supervisor.log"
    command = (sys.executable, "-P", "-m", "jobs.supervisor", "--home", str(home.path))
    child = spawn(command, log)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = living(home)
        if found is not None:
            threading.Thread(target=child.wait, daemon=True).start()  # reaps it if it ends first
            return found.pid
        if child.poll() not in (None, 0):
            break
        time.sleep(0.02)
    raise HomeError(f"The queue's supervisor did not start. {log} says why.")


def stop(home: Home) -> bool:
    """End the supervisor and return True if there was one; its jobs save and resume later."""
    found = living(home)
    if found is None:
        return False
    with contextlib.suppress(OSError):  # it ends by itself
        os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS + 10
    while found.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.closing(
        JobStore(home)
    ) as store:  # Windows ends it before it could interrupt its jobs
        interrupt_all(store, Rescue(store, Runners(home)), deadline=deadline)
    return True


def interrupt_all(store: JobStore, rescue: Rescue, *, deadline: float) -> None:
    """Let the supervisor's running jobs save and end; they resume at the next start."""
    for claim in store.active_claims():
        store.claims.ask_shutdown(claim)
    while store.active_claims() and time.monotonic() < deadline:
        rescue.look()
        time.sleep(POLL_SECONDS)


def main(arguments: Sequence[str] | None = None, *, command: Sequence[str] = RUNNER) -> None:
    """Supervise a home in this process until told to stop."""
    parser = argparse.ArgumentParser(prog="jobs.supervisor")
    parser.add_argument("--home", required=True)
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument("--tries", type=int, default=NO_PROGRESS_LIMIT)
    options = parser.parse_args(arguments)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    try:
        home = open_home(options.home)
        lock = FileLock(_lock_path(home))
        # One that is just leaving has emptied the file: wait for it, for it may save for a while.
        if not lock.acquire(timeout_seconds=1 if living(home) else START_SECONDS):
            logger.info("another supervisor is already here; leaving")
            return
        _lock_path(home).write_text(str(me()), encoding="utf-8")
        supervisor = Supervisor(
            home, idle_seconds=options.idle_seconds, limit=options.tries, command=command,
            spare=os.environ.get("STUDIO_SPARE") != "0",
        )  # fmt: skip
    except StudioError as error:
        logger.error("%s", error.text)
        raise SystemExit(error.exit_code) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    supervisor.run()


def _lock_path(home: Home) -> Path:
    return home.state / "supervisor.lock"


if __name__ == "__main__":
    main()

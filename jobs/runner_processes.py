"""Start runner processes, from a warm spare if there is one; rescue the jobs of dead ones.

A spare has imported torch and the engine and waits for a claim on a pipe, which saves seconds. Each
runner leads its own session, so that it can be ended with its children and outlives the supervisor.

A job is taken from its process only on proof of death, never for a missed heartbeat: after a night
of sleep a laptop's runners go on. Proof is the exit of a child, or that no process has the recorded
pid, start time and boot id. A process that does not stop on request is killed. Never imports torch.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from jobs.claims import NO_PROGRESS_LIMIT, Claim
from jobs.job_kinds import BESIDE
from jobs.job_queue import JobStore
from jobs.job_record import Intent
from jobs.processes import Identity, boot_id, kill_session, me, of
from jobs.ray_cluster import is_slot
from jobs.run_folder import newest_step
from studio.home import Home
from studio.training.allocator_and_threads import preload

logger = logging.getLogger(__name__)

RUNNER = (sys.executable, "-P", "-m", "jobs.runner")
SPARE_NEEDS_BYTES = 1 << 30
ASK_AGAIN_SECONDS = 15.0
KILL_SECONDS = {"cancel": 45.0, "pause": 120.0, "shutdown": 60.0}
# Beside siblings that continue, a stop may wait for a slow evaluation; only a hang lasts longer.
SHARED_KILL_SECONDS = 900.0


def environment() -> dict[str, str]:
    """Return the environment of a runner or other child, in which it imports this very code."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
        **preload(),
    }


def spawn(command: Sequence[str], log: Path, *, pipe: bool = False) -> subprocess.Popen[bytes]:
    """Start a runner or other process in its own session that outlives this one; log to a file."""
    flags = 0x00000008 | 0x00000200 if sys.platform == "win32" else 0  # detached, its own group
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            env=environment(),
            start_new_session=True,
            creationflags=flags,
        )


class Runners:
    """The runners that this supervisor started, and its spare."""

    def __init__(
        self,
        home: Home,
        command: Sequence[str] = RUNNER,
        watch: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """Start runners by `command`, and hand the pid of each to `watch`."""
        self._home, self._command, self._watch = home, tuple(command), watch
        self._spare: subprocess.Popen[bytes] | None = None
        self.children: dict[Claim, subprocess.Popen[bytes]] = {}

    def start(self, claim: Claim, siblings: Sequence[Claim] = ()) -> None:
        """Hand a claim and its siblings to the spare, or to a new process; work on files or far
        away needs no torch."""
        claims = (claim, *siblings)
        text = "+".join(f"{one.job}:{one.attempt}:{one.device}" for one in claims)
        light = claim.device in BESIDE or is_slot(claim.device)
        child = None if light else self._use_spare(text)
        if child is None:
            run_dir = self._home.run(claim.job)
            run_dir.mkdir(parents=True, exist_ok=True)
            command = (*self._command, "--home", str(self._home.path), "--claim", text)
            child = spawn(command, run_dir / "log.txt")
            self._watch(child.pid)
        self.children |= dict.fromkeys(claims, child)

    def keep_spare(self) -> int | None:
        """Make sure that a spare waits, where there is memory for it; return a new one's pid."""
        if self._spare is not None and self._spare.poll() is None:
            return None
        if self._spare is not None:
            self.drop_spare()
        if psutil.virtual_memory().available < SPARE_NEEDS_BYTES:
            return None
        command = (*self._command, "--home", str(self._home.path), "--spare")
        self._spare = spawn(command, self._home.state / "spare.log", pipe=True)
        self._watch(self._spare.pid)
        return self._spare.pid

    def drop_spare(self) -> None:
        """Let the spare go; it ends when its pipe closes."""
        if self._spare is not None:
            assert self._spare.stdin is not None
            self._spare.stdin.close()
            self._spare.terminate()
            self._spare.wait()
            self._spare = None

    def _use_spare(self, text: str) -> subprocess.Popen[bytes] | None:
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        assert spare.stdin is not None
        try:
            if spare.poll() is None:
                spare.stdin.write(text.encode() + b"\n")
                spare.stdin.close()
                return spare
        except OSError:
            logger.warning("the spare had died; starting a new process")
        spare.kill()
        spare.wait()
        return None


class Rescue:
    """The watch over the active jobs of one home."""

    def __init__(
        self, store: JobStore, runners: Runners, *, limit: int = NO_PROGRESS_LIMIT
    ) -> None:
        self._store, self._runners, self._limit = store, runners, limit
        self._asked: dict[tuple[Claim, Intent], float] = {}
        self._signalled: set[tuple[Claim, Intent]] = set()

    def look(self) -> None:
        """Take jobs from dead processes, and enforce stop requests."""
        held: dict[Identity, dict[Claim, Intent | None]] = {}
        for row in self._active():
            claim = Claim(row["id"], row["attempt"], row["device"])
            death = self._death(claim, row)
            if death is not None:
                self._take_from_dead(claim, row, death)
            elif (process := self._process(claim, row)) is not None:
                held.setdefault(process, {})[claim] = row["stop_requested"]
        for process, intents in held.items():
            self._enforce(process, intents)
        self._forget_ended()

    def requeue_interrupted(self) -> None:
        """Queue jobs again that a shutdown interrupted; those over the limit need the user."""
        for job in self._store.list(["interrupted"]):
            if job.error_kind is None:
                self._store.requeue(job.id, newest_step=newest_step(self._store.home.run(job.id)))

    def _active(self) -> list[dict[str, Any]]:
        return self._store.database.rows(_ACTIVE)

    def _death(self, claim: Claim, row: dict[str, Any]) -> str | None:
        child = self._runners.children.get(claim)
        if child is not None:
            code = child.poll()
            return None if code is None else _described(code)
        if row["pid"] is None:
            owner = Identity.parse(row["owner"])
            # Our own claim without a child: the start itself failed.
            gone = not owner.alive() or owner == me()
            return "it was claimed but not started" if gone else None
        process = Identity.recorded(row)
        if process.alive():
            return None
        return "the machine went down" if process.boot_id != boot_id() else "its process is gone"

    def _take_from_dead(self, claim: Claim, row: dict[str, Any], death: str) -> None:
        child = self._runners.children.pop(claim, None)
        if row["pid"] is not None:
            kill_session(Identity.recorded(row), hard=True)  # its children must not go on writing
        if row["pid"] is None and child is not None and (child.returncode or 0) > 0:
            self._store.claims.could_not_start(
                claim, text=f"The run could not start ({death}). Its log says why."
            )
            return
        newest = newest_step(self._store.home.run(claim.job))
        blameless = row["boot_id"] is not None and row["boot_id"] != boot_id()
        state = self._store.claims.lost(
            claim, why=death, newest_step=newest, blameless=blameless, limit=self._limit
        )
        logger.warning("job %d, attempt %d: %s; now %s", claim.job, claim.attempt, death, state)

    def _process(self, claim: Claim, row: dict[str, Any]) -> Identity | None:
        if row["pid"] is not None:
            return Identity.recorded(row)
        child = self._runners.children.get(claim)
        return of(child.pid) if child is not None else None

    def _enforce(self, process: Identity, intents: dict[Claim, Intent | None]) -> None:
        """Kill a process that does not stop after all its jobs were requested to."""
        now = time.monotonic()
        asked = {(claim, intent) for claim, intent in intents.items() if intent}
        waited = {key: now - self._asked.setdefault(key, now) for key in asked}
        all_asked, longest = len(asked) == len(intents), max(waited.values(), default=0.0)
        overdue = all_asked and all(waited[key] > KILL_SECONDS[key[1]] for key in asked)
        if overdue or longest > SHARED_KILL_SECONDS:
            numbers = ", ".join(str(claim.job) for claim, _ in asked)
            logger.warning("job %s did not stop in %.0f s; killing it", numbers, longest)
            kill_session(process, hard=True)
        elif (
            all_asked and min(waited.values()) > ASK_AGAIN_SECONDS
            and not asked <= self._signalled
        ):  # fmt: skip
            self._signalled |= asked
            kill_session(process, hard=False)

    def _forget_ended(self) -> None:
        """Reap children whose runner recorded its own end."""
        living = {(row["id"], row["attempt"]) for row in self._active()}
        for claim, child in list(self._runners.children.items()):
            if (claim.job, claim.attempt) not in living and child.poll() is not None:
                del self._runners.children[claim]
        for key in [k for k in self._asked if (k[0].job, k[0].attempt) not in living]:
            del self._asked[key]
            self._signalled.discard(key)


def _described(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        hint = " (often the system ran out of memory)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"


_ACTIVE = """
SELECT id, attempt, device, owner, pid, pid_started, boot_id, stop_requested FROM jobs
WHERE state IN ('starting', 'running', 'stopping')
"""

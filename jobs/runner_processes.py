"""Start runner processes, from a warm spare if there is one. Never imports torch.

A spare has imported torch and the engine and waits for a claim on a pipe, which saves seconds. Each
runner leads its own session, so that it can be ended with its children and outlives the supervisor.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from jobs.claims import Claim
from jobs.job_kinds import BESIDE
from jobs.ray_cluster import is_slot
from studio.home import Home
from studio.training import allocator

logger = logging.getLogger(__name__)

RUNNER = (sys.executable, "-P", "-m", "jobs.runner")
SPARE_NEEDS_BYTES = 1 << 30


def environment() -> dict[str, str]:
    """Return the environment of child processes, in which they import this very code."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
        **allocator.preload(),
    }


def spawn(command: Sequence[str], log: Path, *, pipe: bool = False) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which outlives this one, writing to a log file."""
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

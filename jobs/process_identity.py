"""Identify a process and find out if it is alive.

A pid alone is reused, and a clock step moves a wall-clock start time. So a process is identified by
its pid, its start in ticks since boot, and the boot id. On Windows the time since boot drifts, but
the system keeps the creation time. A zombie counts as dead.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, distinct from any later one with its pid."""

    pid: int
    started: int
    boot_id: str

    def __str__(self) -> str:
        return f"{self.pid}:{self.started}:{self.boot_id}"

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Return the identity that `str` wrote."""
        pid, started, boot_id = text.split(":", 2)
        return cls(int(pid), int(started), boot_id)

    @classmethod
    def recorded(cls, row: Mapping[str, Any]) -> "Identity":
        """Return the identity in a row of `jobs`, `leases` or `processes`."""
        return cls(row["pid"], row["pid_started"], row["boot_id"])

    def alive(self) -> bool:
        """Return True if exactly this process still runs."""
        return self.boot_id == boot_id() and _start_if_alive(self.pid) == self.started


def me() -> Identity:
    """Return the identity of this process."""
    return of(os.getpid())


def of(pid: int) -> Identity:
    """Return the identity of a process; one that is gone gets a start that never matches."""
    return Identity(pid, _start_if_alive(pid) or -1, boot_id())


@cache
def boot_id() -> str:
    """Return a value that is new at each boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # A clock step moves this by its own size; minutes are steady enough.
        windows = sys.platform == "win32"
        return "windows" if windows else f"boot-{round(psutil.boot_time() / 600)}"


def kill_session(leader: Identity, *, hard: bool) -> None:
    """Signal a runner and everything it started, but never a stranger who has its pid now.

    It leads a session of its own; what it started may outlive it.
    """
    known = leader.boot_id == boot_id() and _start_if_alive(leader.pid) in (None, leader.started)
    number = signal.SIGTERM if not hard or sys.platform == "win32" else signal.SIGKILL
    for pid in session_members(leader.pid) if known else ():
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def session_members(leader: int) -> list[int]:
    """Return the living processes of the session `leader` started, itself last."""
    if sys.platform == "win32":
        try:
            process = psutil.Process(leader)
            return [*(child.pid for child in process.children(recursive=True)), leader]
        except psutil.NoSuchProcess:
            return []
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and _start_if_alive(pid) is not None:
                found.append(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return sorted(found, key=lambda pid: pid == leader)


def _start_if_alive(pid: int) -> int | None:
    try:
        # Behind the last ')', because a program's name may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if sys.platform == "linux":
            return None
        return _start_elsewhere(pid)
    return None if fields[0] in "ZX" else int(fields[19])


def _start_elsewhere(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if sys.platform == "win32":
            return round(process.create_time() * 1000)
        return round(process.create_time() - psutil.boot_time())
    except psutil.NoSuchProcess:
        return None


def exit_now(code: int) -> None:
    """End the process at once, without waiting for the threads of torch."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

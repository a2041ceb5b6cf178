"""Identify a process and find out if it is alive.

A pid alone is reused, and a clock step moves a wall-clock start time. So a process is identified by
its pid, its start in ticks since boot, and the boot id. Windows and macOS keep the time that the
clock had at its creation, whatever the clock does later. A zombie counts as dead.
"""

import contextlib
import logging
import os
import signal
import subprocess
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
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        if sys.platform == "darwin":
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
                asked = subprocess.run(
                    command, capture_output=True, text=True, timeout=5, check=True
                )
                return asked.stdout.strip()
        # The time of the boot moves with the clock; pid and creation time are distinct enough.
        return "windows" if sys.platform == "win32" else sys.platform


def kill_session(leader: Identity, *, hard: bool) -> None:
    """Signal a runner and everything it started, but never a stranger who has its pid now.

    It leads a session of its own; what it started may outlive it. Windows has no signal that asks:
    each one ends a process at once, so nothing is sent there unless `hard`.
    """
    if sys.platform == "win32" and not hard:
        return
    known = leader.boot_id == boot_id() and _start_if_alive(leader.pid) in (None, leader.started)
    number = signal.SIGTERM if not hard or sys.platform == "win32" else signal.SIGKILL
    for pid in session_members(leader.pid) if known else ():
        try:
            os.kill(pid, number)
        except OSError:  # it has ended; Windows says "invalid parameter"
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
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if sys.platform == "linux":
            return None
        return _start_elsewhere(pid)
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _start_elsewhere(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # Not `create_time`, which psutil moves with the clock, since when the process imported it.
        _, created = process._ident  # type: ignore[attr-defined]
        return None if created is None else round(created * 1000)  # None: a stranger's
    except psutil.NoSuchProcess:
        return None


def exit_now(code: int) -> None:
    """End the process at once, without waiting for the threads of torch."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

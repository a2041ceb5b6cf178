"""Processes of a home: identify them, locks that die with them, and waking the supervisor.

A pid alone is reused, and a clock step moves a wall-clock start time. So a process is identified by
its pid, its start in ticks since boot, and the boot id. Windows and macOS keep the time that the
clock had at its creation, whatever the clock does later. A zombie counts as dead.

A database on a network share without working locks is corrupted sooner or later, silently. Such a
home is refused by the type of its file system, and everywhere by a trial of the lock itself. A lock
file may have content: on Windows, where others cannot read or write what is locked, the lock is on
a byte far behind it. Child processes do not inherit its handle, so that they cannot hold the lock
of a dead parent.

The supervisor does not poll: it listens on a UDP socket of the loopback address and leaves port and
token in the home's state folder; a commit that changes a job's state sends the token. A datagram
may be lost: the supervisor looks at the database by itself every second or so as well. Where no
socket can be opened, it polls.
"""

import contextlib
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from studio import atomic
from studio.errors import HomeError
from studio.home import Home

logger = logging.getLogger(__name__)

NETWORK_SHARES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "fuse.rclone", "davfs"}
)
MOUNTS = Path("/proc/self/mounts")
WAKEUP_FILE = "wakeup"
CAN_WATCH = hasattr(os, "pidfd_open") or hasattr(select, "kqueue")


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


def exit_now(code: int) -> None:
    """End the process at once, without waiting for the threads of torch."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill_session(leader: Identity, *, hard: bool) -> None:
    """Signal a process and its session, but never a stranger that has its pid now.

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


def refuse_unsafe(folder: Path) -> None:
    """Refuse a home whose file locks between processes cannot be trusted.

    Raises:
        HomeError: It is on a network share, or two locks on one file do not exclude each other.
    """
    kind = file_system(folder)
    if kind in NETWORK_SHARES:
        raise HomeError(
            f"{folder} is on a network share ({kind}), whose locks cannot be trusted with a "
            "database. Give a folder on a local disk with --home or STUDIO_HOME."
        )
    if not locks_exclude(folder):
        raise HomeError(
            f"{folder} is on a file system without the locks the queue needs. "
            "Give a folder on a local disk with --home or STUDIO_HOME."
        )


def file_system(folder: Path) -> str:
    """Return the type of the file system of a folder; empty if it is not known."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = folder.resolve(), -1, ""
    for line in lines:
        _, point, name, *_ = [*line.split(" "), "", "", ""]
        mount = Path(point.encode().decode("unicode_escape", errors="replace"))
        if place.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), name
    return kind


def locks_exclude(folder: Path) -> bool:
    """Return True if a second handle is refused a file lock that a first one holds."""
    if sys.platform == "win32":
        return True
    try:
        first, probe = tempfile.mkstemp(prefix=".probe-lock-", dir=folder)
    except OSError:
        return True  # a full or read-only disk has its own error
    second = os.open(probe, os.O_RDWR)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    except OSError:
        return False
    finally:
        os.close(first)
        os.close(second)
        Path(probe).unlink(missing_ok=True)


if sys.platform == "win32":
    import msvcrt

    LOCKED_BYTE = 1 << 30

    def _try_lock(handle: int) -> bool:
        os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


class FileLock:
    """An exclusive lock between processes, and between the threads of one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._guard = threading.Lock()

    def acquire(self, *, timeout_seconds: float = 0) -> bool:
        """Take the lock; return False if another holder has it for the whole time."""
        deadline = time.monotonic() + timeout_seconds
        if not self._guard.acquire(timeout=max(timeout_seconds, 0.001)):
            return False
        pause = 0.0002
        try:
            if self._handle is None:
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            while not _try_lock(self._handle):
                if time.monotonic() >= deadline:
                    self._guard.release()
                    return False
                time.sleep(pause)
                pause = min(pause * 1.5, 0.01)
        except BaseException:
            self._guard.release()
            raise
        return True

    def release(self) -> None:
        """Release the lock."""
        assert self._handle is not None
        _unlock(self._handle)
        self._guard.release()

    def close(self) -> None:
        """Close the file, which releases the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @contextlib.contextmanager
    def held(self, *, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock for a block.

        Raises:
            HomeError: Another process has it for the whole time, or it cannot be created.
        """
        try:
            taken = self.acquire(timeout_seconds=timeout_seconds)
        except OSError as error:
            raise HomeError(
                f"The lock {self.path} cannot be created ({error.strerror}). "
                "The home must be a writable folder on a local disk; give one with --home."
            ) from None
        if not taken:
            raise HomeError(
                f"{self.path} is held by another process for {timeout_seconds:.0f} seconds. "
                "Is a studio hanging? `studio doctor` shows which."
            )
        try:
            yield
        finally:
            self.release()


def wake(state: Path) -> None:
    """Wake the supervisor that listens in a home's state folder, if there is one."""
    with contextlib.suppress(OSError, ValueError):
        port, token = (state / WAKEUP_FILE).read_text(encoding="utf-8").split()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(token.encode(), ("127.0.0.1", int(port)))


class Wakeup:
    """A flag to wait for that other processes and the end of watched ones set."""

    def __init__(self, home: Home) -> None:
        self._flag = threading.Event()
        self._path = home.state / WAKEUP_FILE
        self._token = secrets.token_hex(16)
        self._closed = False
        self._thread: threading.Thread | None = None
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.bind(("127.0.0.1", 0))
            text = f"{listener.getsockname()[1]} {self._token}"
            atomic.write(self._path, text, private=True)
        except OSError as error:
            logger.warning("no socket to be woken by, polling instead: %s", error)
            return
        self._thread = threading.Thread(target=self._listen, args=(listener,), daemon=True)
        self._thread.start()

    @property
    def complete(self) -> bool:
        """True if every submission and every end of a watched process sets the flag."""
        return self._thread is not None and CAN_WATCH

    def wait(self, seconds: float) -> bool:
        """Wait for the flag and clear it; return True if it was set within `seconds`."""
        was_set = self._flag.wait(seconds)
        self._flag.clear()
        return was_set

    def watch(self, pid: int) -> None:
        """Set the flag when a process ends; it need not be a child and is not reaped."""
        if CAN_WATCH:
            threading.Thread(target=self._set_at_end, args=(pid,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closed = True
        if self._thread is not None:
            wake(self._path.parent)
            self._thread.join(timeout=1)
            self._path.unlink(missing_ok=True)

    def _listen(self, listener: socket.socket) -> None:
        with listener:
            while not self._closed:
                with contextlib.suppress(OSError):
                    sent = listener.recv(len(self._token) + 1)
                    if secrets.compare_digest(sent, self._token.encode()):
                        self._flag.set()

    def _set_at_end(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            _wait_for_end(pid)
        self._flag.set()


def _wait_for_end(pid: int) -> None:
    if sys.platform == "linux":
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll()
        finally:
            os.close(handle)
        return
    queue = select.kqueue()
    with contextlib.closing(queue):
        ends = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
        queue.control([ends], 1)

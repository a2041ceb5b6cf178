"""File locks that die with their process, and file systems whose locks cannot be trusted.

A database on a network share without working locks is corrupted sooner or later, silently. Such a
home is refused by the type of its file system, and everywhere by a trial of the lock itself.

A lock file may have content: on Windows, where others cannot read or write what is locked, the lock
is on a byte far behind it. Child processes do not inherit its handle, so that they cannot hold the
lock of a dead parent.
"""

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from studio.errors import HomeError

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "fuse.rclone", "davfs"}
)
MOUNTS = Path("/proc/self/mounts")


def refuse_unsafe(folder: Path) -> None:
    """Refuse a home whose locks cannot be trusted.

    Raises:
        HomeError: It is on a network share, or two locks on one file do not exclude each other.
    """
    kind = kind_of(folder)
    if kind in NETWORK:
        raise HomeError(
            f"{folder} is on a network share ({kind}), whose locks cannot be trusted with a "
            "database. Give a folder on a local disk with --home or STUDIO_HOME."
        )
    if not locks_exclude(folder):
        raise HomeError(
            f"{folder} is on a file system without the locks the queue needs. "
            "Give a folder on a local disk with --home or STUDIO_HOME."
        )


def kind_of(folder: Path) -> str:
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
    """Return True if a second handle is refused a lock that a first one holds."""
    if sys.platform == "win32":
        return True
    import fcntl

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

"""A lock on a file that the system frees when its process dies, however it dies.

The file's content never matters. Handles are not inherited by child processes, so a child cannot
keep the lock of a dead parent.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from studio.errors import HomeError

if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
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
        """Take the lock; False when another holder kept it for the whole time."""
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
        """Give the lock back."""
        assert self._handle is not None
        _unlock(self._handle)
        self._guard.release()

    def close(self) -> None:
        """Close the file; a lock that is still held is freed."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @contextlib.contextmanager
    def held(self, *, timeout_seconds: float) -> Iterator[None]:
        """Hold the lock for a block.

        Raises:
            HomeError: Another process kept it for the whole time, or it cannot be made.
        """
        try:
            taken = self.acquire(timeout_seconds=timeout_seconds)
        except OSError as error:
            raise HomeError(
                f"The lock {self.path} cannot be made ({error.strerror}). "
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

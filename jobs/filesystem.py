"""Whether a folder is on a file system whose locks the queue can trust.

A database on a network share without working locks is corrupted sooner or later, and nobody sees
it happen. So a home is refused there by the name of the file system where the system tells it, and
by a trial of the lock itself everywhere.
"""

import os
import sys
import tempfile
from pathlib import Path

from studio.errors import HomeError

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "fuse.rclone", "davfs"}
)
MOUNTS = Path("/proc/self/mounts")


def refuse_unsafe(folder: Path) -> None:
    """Refuse a home whose locks cannot be trusted.

    Raises:
        HomeError: It is on a network share, or two locks on one file did not exclude each other.
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
    """Return the type of the file system that holds a folder; empty where nobody tells."""
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
    """Whether a second handle is refused a lock that a first one holds."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        first, probe = tempfile.mkstemp(prefix=".probe-lock-", dir=folder)
    except OSError:
        return True  # a full or read-only disk has its own sentence
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

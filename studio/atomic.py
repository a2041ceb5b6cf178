"""Write files that are whole or absent, read them back, rename what others may have open.

POSIX replaces an open file at once. Windows refuses while another process reads it, for a virus
scanner too, so renames are tried again for a while; and it flushes writable handles only.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

WAIT_SECONDS = 5.0


def beside(path: Path) -> Path:
    """Return where this thread writes what becomes `path`; `home.sweep` reads the pid in it."""
    return path.with_name(f".tmp-{path.name}-{threading.get_native_id()}-{os.getpid()}")


def write(path: Path, content: str, *, durable: bool = False, private: bool = False) -> None:
    """Write a text file beside its place, then rename it.

    Args:
        durable: Flush it to the disk before the rename.
        private: Only this user may read it.

    Raises:
        OSError: As the system reports it; an older file is untouched.
    """
    temporary = beside(path)
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing, damaged or another value."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder over its target, waiting while Windows says it is in use.

    Raises:
        PermissionError: It stayed in use for `WAIT_SECONDS`.
        OSError: As the system reports it.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    pause = 0.01
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 0.25)


def flush(path: Path) -> None:
    """Flush a file to the disk: Windows wants it writable, elsewhere it may be read-only."""
    with path.open("r+b" if os.name == "nt" else "rb") as handle:
        os.fsync(handle.fileno())


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    if os.name == "nt":
        return  # Windows has no handle to a folder; the rename is durable there
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

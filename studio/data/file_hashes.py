"""SHA-256 of data files, remembered by size and modification time so that each is read once.

The page and the runner both need the hash of a dataset. A file counts as unchanged if its path,
inode, size and modification time are; one that was modified moments before it was hashed is not
remembered, since a later change could leave the same time (git's index does the same).
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from studio import atomic
from studio.home import Home

SMALL_BYTES = 1 << 18  # read again, which is as quick as looking it up
SETTLED_SECONDS = 2.0
MOST_ENTRIES = 512


def hash_files(files: list[Path], home: Home | None = None) -> str:
    """Return one SHA-256 of the bytes of all files in order."""
    digests = [_hash(file, home) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _hash(file: Path, home: Home | None) -> str:
    with file.open("rb") as handle:
        before = os.fstat(handle.fileno())
        if home is None or before.st_size <= SMALL_BYTES:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        path, state = str(file.absolute()), [before.st_ino, before.st_size, before.st_mtime_ns]
        memory = home.state / "file-hashes.json"
        known = _read(memory)
        if (entry := known.get(path)) and entry[:3] == state:
            return str(entry[3])
        started = time.time()
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        after = os.fstat(handle.fileno())
    settled = started - after.st_mtime > SETTLED_SECONDS
    if settled and state == [after.st_ino, after.st_size, after.st_mtime_ns]:
        known.pop(path, None)
        known[path] = [*state, digest]
        _write(memory, dict(list(known.items())[-MOST_ENTRIES:]))
    return digest


def _read(memory: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {path: [int(a), int(b), int(c), str(d)] for path, (a, b, c, d) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(memory: Path, known: dict[str, list[int | str]]) -> None:
    with contextlib.suppress(OSError):  # a full disk costs a second read
        atomic.write(memory, json.dumps(known))

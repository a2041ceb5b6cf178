"""Back up the whole home into one tar file while everything runs; daily copies of the database.

The tar holds `studio.db` (through SQLite's backup), every regular file of the home, and last a
manifest with the size and SHA-256 of each member. Of `state/` only what the user chose is kept: no
locks, sockets, caches or secrets. A file that grows is stored as it was when it was opened; a
checkpoint that is replaced meanwhile is incomplete, and its run skips it when it resumes, as after
a power cut.
"""

import hashlib
import io
import itertools
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

from jobs.database import Database, daily_copies, damage, plain_errors, restore_advice
from studio import atomic
from studio.errors import DiskFull, HomeError, is_disk_full
from studio.home import Home
from studio.names import readable

MANIFEST = "BACKUP.json"
LEFT_OUT = frozenset({"state", "backups", "studio.db", "studio.db-wal", "studio.db-shm"})
CHOSEN = ("model-folders.json", "offline")  # of `state/`
TEMPORARY = (".tmp-", ".old-", ".probe-")
DAILY_SECONDS, DAILY_KEPT = 86_400.0, 7
VERSION = 1


def backup(home: Home, file: Path) -> dict[str, Any]:
    """Write a backup: the whole home in one new file; return its path and size.

    Raises:
        HomeError: The file exists, lies inside the home, or cannot be written.
        DiskFull: The disk is full; the unfinished file was removed.
    """
    file = file.expanduser().absolute()
    if file.exists():
        raise HomeError(f"{file} exists already. Choose another name, or remove it first.")
    if file.is_relative_to(home.path):
        raise HomeError(f"{file} lies inside the home itself. Choose a place outside {home.path}.")
    partial, copy = atomic.beside(file), atomic.beside(home.state / "backup.db")
    try:
        copy_database(home, copy)
        with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            with tarfile.open(fileobj=out, mode="w") as tar:
                members = _write(tar, home, copy)
            out.flush()
            os.fsync(out.fileno())
        atomic.replace(partial, file)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(
                f"The disk that holds {file.parent} is full; the backup was not made."
            ) from None
        raise HomeError(
            f"{file} cannot be written ({error.strerror}). Choose another place."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    total = sum(entry["size"] for entry in members.values())
    return {"file": str(file), "files": len(members), "bytes": total}


def copy_database(home: Home, target: Path) -> None:
    """Back up the database as of one point in time, while others write.

    Raises:
        HomeError: It cannot be read.
        DiskFull: The disk is full.
    """
    target.unlink(missing_ok=True)
    with (
        plain_errors(home.database),
        closing(sqlite3.connect(home.database, timeout=30)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy, pages=2000, sleep=0.005)
        copy.execute("PRAGMA journal_mode = DELETE")
    os.chmod(target, 0o600)


def copy_daily(home: Home, database: Database, *, now: float) -> Path | None:
    """Back up the database if its newest daily copy is a day old; keep seven copies.

    Raises:
        HomeError: The database is damaged; it was not copied.
    """
    # One of a time when the clock was ahead counts for nothing.
    if any(0 <= now - one.stat().st_mtime < DAILY_SECONDS for one in daily_copies(home.path)):
        return None
    with database.reading() as db:
        found = damage(db.conn)
    if found:
        raise HomeError(f"{home.database} is damaged ({found}). {restore_advice(home.path)}")
    folder = home.path / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / time.strftime("studio-%Y%m%d-%H%M%S.db", time.gmtime(now))
    temporary = atomic.beside(target)
    try:
        copy_database(home, temporary)
        atomic.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    for old in daily_copies(home.path)[:-DAILY_KEPT]:
        old.unlink(missing_ok=True)
    return target


def refuse_too_large(folder: Path, needed: int) -> None:
    """Check that a backup fits into the free space of a folder.

    Raises:
        DiskFull: It is less than is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(f"{readable(needed)} are needed in {folder} and {readable(free)} are free.")


def _write(tar: tarfile.TarFile, home: Home, copy: Path) -> dict[str, dict[str, Any]]:
    members: dict[str, dict[str, Any]] = {}
    names = {copy: "studio.db"} | {p: p.relative_to(home.path).as_posix() for p in _files(home)}
    for path, name in names.items():
        try:
            source = path.open("rb")
        except FileNotFoundError:
            continue  # removed meanwhile
        with source:
            info, status = tarfile.TarInfo(name), os.fstat(source.fileno())
            info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o600
            reader = _HashingReader(source, info.size)
            tar.addfile(info, cast("IO[bytes]", reader))
        members[name] = {"size": info.size, "sha256": reader.hash.hexdigest()}
    manifest = {
        "version": VERSION, "home": str(home.path), "created": time.time(), "files": members,
    }  # fmt: skip
    info, body = tarfile.TarInfo(MANIFEST), json.dumps(manifest).encode()
    info.size, info.mode = len(body), 0o600
    tar.addfile(info, io.BytesIO(body))
    return members


def _files(home: Home) -> Iterator[Path]:
    """Yield the regular files of the home, without half-written ones and links.

    Its own folders may be links: models or runs that were moved to a larger disk.
    """
    own = (home.runs, home.adapters, home.datasets, home.models, home.path / "trash")
    roots = (home.path, *(folder for folder in own if folder.is_symlink()))
    for folder, names, files in itertools.chain.from_iterable(map(os.walk, roots)):
        passed = LEFT_OUT if Path(folder) == home.path else frozenset[str]()
        passed |= {n for n in (*names, *files) if n.startswith(TEMPORARY)} | {".lock"}
        names[:] = sorted(set(names) - passed)
        for path in (Path(folder) / name for name in sorted(set(files) - passed)):
            if path.is_file() and not path.is_symlink():
                yield path
    yield from (path for name in CHOSEN if (path := home.state / name).is_file())


class _HashingReader:
    """Read an exact number of bytes of a file, zeros where it shrank, and hash them."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source, self._left, self.hash = source, size, hashlib.sha256()

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        part = self._source.read(count).ljust(count, b"\0")
        self._left -= count
        self.hash.update(part)
        return part

"""The whole home in one file, taken while everything runs, and brought back whole or not at all.

A backup is a tar: `studio.db` through SQLite's own backup, every folder a person made, and last a
manifest with the size and hash of each member. Locks, sockets and secrets of `state/` stay out.
A file that grows is stored as it was when it was opened; a checkpoint that is replaced meanwhile is
incomplete in the backup and is passed over when its run resumes, as after a power cut.

The supervisor also keeps a copy of the database a day in `backups/`.
"""

import hashlib
import io
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

from jobs.database import Database, advice, copies, plain_errors
from studio.errors import DiskFull, HomeError
from studio.home import Home
from studio.names import readable

MANIFEST = "BACKUP.json"
LEFT_OUT = frozenset({"state", "backups", "studio.db", "studio.db-wal", "studio.db-shm"})
DAILY_SECONDS, DAILY_KEPT = 86_400.0, 7
VERSION = 1


def backup(home: Home, file: Path) -> dict[str, Any]:
    """Write the home into a new file and return what is in it.

    Raises:
        HomeError: The file exists, lies inside the home, or cannot be written.
        DiskFull: No room; nothing stays of the file.
    """
    file = file.expanduser().absolute()
    if file.exists():
        raise HomeError(f"{file} exists already. Choose another name, or remove it first.")
    if file.is_relative_to(home.path):
        raise HomeError(f"{file} lies inside the home itself. Choose a place outside {home.path}.")
    partial = file.with_name(f".tmp-{file.name}-{os.getpid()}")
    copy = home.state / f".backup-{os.getpid()}.db"
    try:
        copy_database(home, copy)
        with (
            open(partial, "xb", opener=_private) as out,
            tarfile.open(fileobj=out, mode="w") as tar,
        ):
            members = _write(tar, home, copy)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise _plain(error, file) from None
    finally:
        partial.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    total = sum(entry["size"] for entry in members.values())
    return {"file": str(file), "files": len(members), "bytes": total}


def _write(tar: tarfile.TarFile, home: Home, copy: Path) -> dict[str, dict[str, Any]]:
    members: dict[str, dict[str, Any]] = {}
    for path, name in [(copy, "studio.db"), *((p, _name(home, p)) for p in _files(home))]:
        entry = _add(tar, path, name)
        if entry is not None:
            members[name] = entry
    manifest = {
        "version": VERSION, "home": str(home.path), "created": time.time(), "files": members,
    }  # fmt: skip
    _add_text(tar, MANIFEST, json.dumps(manifest))
    return members


def _name(home: Home, path: Path) -> str:
    return path.relative_to(home.path).as_posix()


def copy_database(home: Home, target: Path) -> None:
    """Copy the database as it is at one moment, while others write.

    Raises:
        HomeError: It cannot be read.
        DiskFull: There is no room for the copy.
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


def daily(home: Home, database: Database, *, now: float) -> Path | None:
    """Keep a copy of the database when the newest is a day old; a damaged one is never copied.

    Raises:
        HomeError: The database is damaged.
    """
    folder = home.path / "backups"
    kept = copies(home.path)
    if kept and now - kept[-1].stat().st_mtime < DAILY_SECONDS:
        return None
    with database.reading() as db:
        answer = str(db.conn.execute("PRAGMA quick_check(1)").fetchone()[0])
    if answer != "ok":
        raise HomeError(f"{home.database} is damaged ({answer}). {advice(home.path)}")
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / time.strftime("studio-%Y%m%d-%H%M%S.db", time.gmtime(now))
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    try:
        copy_database(home, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    for old in copies(home.path)[:-DAILY_KEPT]:
        old.unlink(missing_ok=True)
    return target


def _files(home: Home) -> Iterator[Path]:
    """Every regular file a person made; never a link, never what is half written."""
    for folder, names, files in os.walk(home.path, followlinks=False):
        place = Path(folder)
        top = place == home.path
        names[:] = sorted(n for n in names if not _passing(n) and not (top and n in LEFT_OUT))
        for name in sorted(files):
            path = place / name
            if not (_passing(name) or (top and name in LEFT_OUT) or path.is_symlink()):
                if path.is_file():
                    yield path


def _passing(name: str) -> bool:
    return name.startswith((".tmp-", ".old-", ".probe-")) or name in (".lock", "working")


def _add(tar: tarfile.TarFile, path: Path, name: str) -> dict[str, Any] | None:
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return None  # it was removed meanwhile
    with source:
        info = tarfile.TarInfo(name)
        status = os.fstat(source.fileno())
        info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o600
        reader = _Hashing(source, info.size)
        tar.addfile(info, cast("IO[bytes]", reader))
    return {"size": info.size, "sha256": reader.digest()}


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    body = text.encode()
    info.size, info.mode = len(body), 0o600
    tar.addfile(info, io.BytesIO(body))


class _Hashing:
    """Reads exactly so many bytes of a file, zeros where it shrank, and hashes them."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source, self._left, self._hash = source, size, hashlib.sha256()

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        part = self._source.read(count)
        part += b"\0" * (count - len(part))
        self._left -= len(part)
        self._hash.update(part)
        return part

    def digest(self) -> str:
        return self._hash.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _plain(error: OSError, file: Path) -> HomeError | DiskFull:
    if error.errno in (28, 122):
        return DiskFull(f"The disk that holds {file.parent} is full; the backup was not made.")
    return HomeError(f"{file} cannot be written ({error.strerror}). Choose another place.")


def free_enough(folder: Path, needed: int) -> None:
    """Refuse early what cannot fit.

    Raises:
        DiskFull: There is too little room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(f"{readable(needed)} are needed in {folder} and {readable(free)} are free.")

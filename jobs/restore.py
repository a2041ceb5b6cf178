"""Restore a home or its database from a backup: unpack and check all of it, then rename it.

A file that is not a complete, unchanged backup, or has a member that would be written outside the
home, is refused and nothing is changed. Jobs that ran when the backup was taken are queued again by
the next supervisor: their processes are marked as those of another boot, which cannot be alive.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jobs import supervisor
from jobs.backup import MANIFEST, VERSION, refuse_too_large
from jobs.database import damage
from jobs.database_schema import unknown_migration
from jobs.job_queue import JobStore
from jobs.processes import FileLock
from studio import atomic
from studio.errors import HomeError
from studio.home import MANIFEST as LIST
from studio.home import Home, manifest_entry, open_home

SQLITE = b"SQLite format 3\x00"
CHUNK_BYTES = 1 << 20
MOST_MANIFEST_BYTES = 512 << 20
MOST_TEXT_BYTES = 4 << 20  # of a file with paths in it


def restore(home_path: Path, file: Path) -> dict[str, Any]:
    """Restore a backup: a whole home, or its database if the file is a copy of one.

    Returns:
        The home, the number of files, and the path of what was there before.

    Raises:
        HomeError: The file cannot be used, or the home is in use.
        DiskFull: There is too little space; nothing was changed.
    """
    file = file.expanduser().absolute()
    try:
        with file.open("rb") as source:
            head = source.read(len(SQLITE))
    except OSError as error:
        raise HomeError(f"{file} cannot be read ({error.strerror}).") from None
    home = Home(home_path)
    if supervisor.living(home) is not None or _runs(home) or _processes(home):
        raise HomeError("This home is in use. `studio stop` ends what runs; then restore again.")
    if head == SQLITE:
        return _restore_database(open_home(home_path), file)
    return _restore_home(home_path, file)


def _runs(home: Home) -> bool:
    """Return True if a runner, which outlives its supervisor, writes into its run's folder."""
    for path in home.runs.glob("*/.lock"):
        lock = FileLock(path)
        free = lock.acquire()
        lock.close()
        if not free:
            return True
    return False


def _processes(home: Home) -> bool:
    """Return True if a page or chat, which outlive the supervisor, may use the database."""
    if home.database.exists():
        with contextlib.suppress(HomeError), closing(JobStore(home)) as store:
            return bool(store.processes())
    return False  # none, or one that nothing can use


def _restore_database(home: Home, file: Path) -> dict[str, Any]:
    temporary = atomic.beside(home.state / "restored.db")
    refuse_too_large(home.path, file.stat().st_size)
    try:
        with (
            closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(temporary)) as target,
        ):
            source.backup(target)
        _adapt(temporary, [])
        before = home.path / f"studio.db.before-{time.strftime('%Y%m%d-%H%M%S')}"
        for end in ("", "-wal", "-shm"):  # the names by which SQLite finds an unmerged log
            if (home.path / f"studio.db{end}").exists():
                atomic.replace(home.path / f"studio.db{end}", Path(f"{before}{end}"))
        atomic.replace(temporary, home.database)
    except sqlite3.DatabaseError as error:
        raise HomeError(f"{file} is damaged ({error}); nothing was changed.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return {"home": str(home.path), "files": 1, "before": str(before) if before.exists() else None}


def _restore_home(home_path: Path, file: Path) -> dict[str, Any]:
    temporary = atomic.beside(home_path)
    elsewhere = "Restore into another folder with --home."
    if os.path.ismount(home_path):
        raise HomeError(f"{home_path} is a mount point and cannot be replaced. {elsewhere}")
    try:
        temporary.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise HomeError(
            f"Nothing can be written to {home_path.parent} ({error.strerror}). {elsewhere}"
        ) from None
    try:
        manifest = _unpack(file, temporary)
        moved = _moved_paths(str(manifest["home"]), home_path)
        _adapt(temporary / "studio.db", moved)
        _move_in_files(temporary, moved)
        before = _moved_aside(home_path)
        try:
            atomic.replace(temporary, home_path)
        except OSError:
            if before:
                atomic.replace(Path(before), home_path)
            raise
    except sqlite3.DatabaseError as error:
        raise HomeError(f"The database in {file} is damaged ({error}).") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    open_home(home_path)
    return {"home": str(home_path), "files": len(manifest["files"]), "before": before}


def _unpack(file: Path, target: Path) -> dict[str, Any]:
    """Unpack a backup into a folder and return its manifest, which every member agrees with."""
    found: dict[str, tuple[int, str]] = {}
    manifest: Any = None
    foreign = HomeError(f"{file} is not a backup of this studio, or it was cut short.")
    try:
        with tarfile.open(file, mode="r:") as tar:
            refuse_too_large(target, sum(member.size for member in tar))
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or not _is_inside(member.name) or member.name in found:
                    raise HomeError(
                        f'{file} holds "{member.name[:100]}", which a backup never holds. '
                        "Nothing was changed."
                    )
                if member.name != MANIFEST:
                    place = target / member.name
                    found[member.name] = (member.size, _copied(source, place, member.size))
                elif member.size > MOST_MANIFEST_BYTES:
                    raise foreign
                else:
                    manifest = json.loads(source.read())
        if manifest is None:
            raise HomeError(f"{file} was cut short: its list of contents is missing.")
        if manifest["version"] > VERSION:
            raise HomeError(f"{file} was made by a newer Adapter Studio. Upgrade this one first.")
        wanted = {n: (e["size"], e["sha256"]) for n, e in manifest["files"].items()}
        str(manifest["home"])
    except (
        tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError,
        FileExistsError, NotADirectoryError,
    ):  # fmt: skip
        raise foreign from None
    if wanted != found or "studio.db" not in found:
        wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise HomeError(
            f"{file} is damaged: {wrong[0] if wrong else 'studio.db'} differs from its list of "
            "contents. Nothing was changed."
        )
    return dict(manifest)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = "\0" not in name and (os.name != "nt" or not {"\\", ":"} & {*name})
    return plain and not path.is_absolute() and ".." not in path.parts and len(path.parts) > 0


def _copied(source: IO[bytes], place: Path, left: int) -> str:
    """Write a new private file, on disk before this returns; return its SHA-256."""
    digest = hashlib.sha256()
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(place, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
        while left and (part := source.read(min(CHUNK_BYTES, left))):
            digest.update(part)
            out.write(part)
            left -= len(part)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _moved_paths(old_home: str, new_home: Path) -> list[tuple[str, str]]:
    """Return the beginnings of paths in the old home, as text and as JSON, with their new ones."""
    if old_home == str(new_home):
        return []
    mark = "\\" if "\\" in old_home else "/"
    old, new = f"{old_home}{mark}", f"{new_home}{os.sep}"
    written: tuple[Callable[[str], str], ...] = (
        str, lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    )  # fmt: skip
    return list({write(old): write(new) for write in written}.items())


def _move_in_files(folder: Path, moved: list[tuple[str, str]]) -> None:
    """Move the paths in passports, configurations and specs, and keep their manifests true."""
    for place, names, files in os.walk(folder) if moved else ():
        if Path(place) == folder:
            names[:] = [name for name in names if name != "datasets"]
        for path in (Path(place) / name for name in files if name.endswith((".json", ".yaml"))):
            before = path.read_bytes() if path.stat().st_size < MOST_TEXT_BYTES else b""
            after = before
            for old, new in moved:
                after = after.replace(old.encode(), new.encode())
            if after != before:
                path.write_bytes(after)
                _list_again(path, folder)


def _list_again(path: Path, folder: Path) -> None:
    """Correct a file's entry in the manifest of the published folder that it belongs to."""
    for parent in path.parents:
        name, listed = path.relative_to(parent).as_posix(), parent / LIST
        if name in (entries := atomic.read_object(listed)):
            entries[name] = manifest_entry(path)
            listed.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        if parent == folder:
            return


def _adapt(database: Path, moved: list[tuple[str, str]]) -> None:
    """Check a restored database, mark its processes as dead, and move its paths to this home."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        if found := damage(db):
            raise sqlite3.DatabaseError(found)
        try:
            applied = [row[0] for row in db.execute("SELECT name FROM _sqlite_migrations")]
        except sqlite3.OperationalError:
            raise HomeError("That is a database, but not one of this studio.") from None
        if newer := unknown_migration(applied):
            raise HomeError(
                f"The backup is of a newer Adapter Studio ({newer}). Upgrade this one first."
            )
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM processes")
        db.execute("DELETE FROM leases WHERE holder = 'chat'")
        db.execute(_OF_ANOTHER_BOOT)
        for statement in _MOVE_PATHS:
            db.executemany(statement, moved)
        db.execute("COMMIT")
    os.chmod(database, 0o600)


def _moved_aside(home_path: Path) -> str | None:
    if not home_path.exists():
        return None
    inside = (path.relative_to(home_path) for path in home_path.rglob("*") if path.is_file())
    if all(path.parts[0] == "state" for path in inside):
        shutil.rmtree(home_path)  # a new home without anything of the user
        return None
    before = home_path.with_name(f"{home_path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    atomic.replace(home_path, before)
    return str(before)


_OF_ANOTHER_BOOT = """
UPDATE jobs SET boot_id = CASE WHEN pid IS NULL THEN NULL ELSE 'restored' END,
  owner = '1:0:restored' WHERE state IN ('starting', 'running', 'stopping')
"""
_MOVE_PATHS = (
    "UPDATE jobs SET result = replace(result, ?, ?)",
    "UPDATE jobs SET spec = replace(spec, ?, ?)",
    "UPDATE checkpoints SET path = replace(path, ?, ?)",
    "UPDATE matches SET lanes = replace(lanes, ?, ?)",
    "UPDATE settings SET value = replace(value, ?, ?)",
    "UPDATE recipes SET model = replace(model, ?, ?)",
    "UPDATE recipes SET stack = replace(stack, ?, ?)",
    "UPDATE conversations SET lanes = replace(lanes, ?, ?)",
    "UPDATE turns SET answers = replace(answers, ?, ?)",
    "UPDATE matches SET answers = replace(answers, ?, ?)",
)

"""A backup comes back: checked as a whole first, then put in place in one rename.

What is no backup, was cut short, changed, or holds a name that leads outside is refused and nothing
is changed. Jobs that ran when the backup was taken are queued again by the next supervisor: their
processes are declared to be of another boot, so that they can be no living ones.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from jobs import supervisor
from jobs.backup import MANIFEST, VERSION, free_enough
from jobs.schema import STATEMENTS
from studio.errors import HomeError
from studio.home import Home, open_home

SQLITE = b"SQLite format 3\x00"
CHUNK = 1 << 20
MOST_MANIFEST_BYTES = 512 << 20


def restore(home_path: Path, file: Path) -> dict[str, Any]:
    """Bring back a whole home, or a database when the file is a copy of one.

    Returns:
        What came back, and where what was there before is kept.

    Raises:
        HomeError: The file cannot be used, or something of the home still runs.
        DiskFull: There is no room; nothing was changed.
    """
    file = file.expanduser().absolute()
    try:
        with file.open("rb") as source:
            head = source.read(len(SQLITE))
    except OSError as error:
        raise HomeError(f"{file} cannot be read ({error.strerror}).") from None
    _refuse_running(Home(home_path))
    if head == SQLITE:
        return _restore_database(open_home(home_path), file)
    return _restore_home(home_path, file)


def _restore_database(home: Home, file: Path) -> dict[str, Any]:
    temporary = home.state / f".restored-{os.getpid()}.db"
    free_enough(home.path, file.stat().st_size)
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source:
            with closing(sqlite3.connect(temporary)) as target:
                source.backup(target)
        _settle(temporary, home.path, home.path)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        before = home.path / f"studio.db.before-{stamp}"
        for end in ("", "-wal", "-shm"):  # named so that SQLite finds what is not merged yet
            if (home.path / f"studio.db{end}").exists():
                os.replace(home.path / f"studio.db{end}", f"{before}{end}")
        os.replace(temporary, home.database)
    except sqlite3.DatabaseError as error:
        raise HomeError(f"{file} is damaged ({error}); nothing was changed.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return {"home": str(home.path), "files": 1, "before": str(before) if before.exists() else None}


def _restore_home(home_path: Path, file: Path) -> dict[str, Any]:
    manifest = _checked(file)
    files = manifest["files"]
    parent = home_path.parent
    parent.mkdir(parents=True, exist_ok=True)
    free_enough(parent, sum(entry["size"] for entry in files.values()))
    temporary = parent / f".tmp-{home_path.name}-{os.getpid()}"
    temporary.mkdir(mode=0o700)
    try:
        _unpack(file, temporary, files)
        _settle(temporary / "studio.db", Path(manifest["home"]), home_path)
        before = _moved_away(home_path)
        try:
            os.replace(temporary, home_path)
        except OSError:
            if before:
                os.replace(before, home_path)
            raise
    except sqlite3.DatabaseError as error:
        raise HomeError(f"The database in {file} is damaged ({error}).") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    open_home(home_path)
    return {"home": str(home_path), "files": len(files), "before": before}


def _checked(file: Path) -> dict[str, Any]:
    """Read the whole file once, and return its manifest when every member is what it says."""
    found: dict[str, tuple[int, str]] = {}
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(file, mode="r:") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or not _safe(member.name) or member.name in found:
                    raise HomeError(
                        f'{file} holds "{member.name[:100]}", which no backup of ours holds. '
                        "Nothing was changed."
                    )
                if member.name == MANIFEST:
                    if member.size > MOST_MANIFEST_BYTES:
                        raise HomeError(f"{file} is no backup of this studio.")
                    manifest = json.loads(source.read())
                    continue
                digest = hashlib.sha256()
                while part := source.read(CHUNK):
                    digest.update(part)
                found[member.name] = (member.size, digest.hexdigest())
    except (tarfile.TarError, EOFError, ValueError):
        raise HomeError(f"{file} is no backup of this studio, or it was cut short.") from None
    return _agreeing(file, manifest, found)


def _agreeing(
    file: Path, manifest: dict[str, Any] | None, found: dict[str, tuple[int, str]]
) -> dict[str, Any]:
    if manifest is None:
        raise HomeError(f"{file} was cut short: its list of contents is missing.")
    try:
        if manifest["version"] > VERSION:
            raise HomeError(f"{file} was made by a newer Adapter Studio. Upgrade this one first.")
        wanted = {n: (e["size"], e["sha256"]) for n, e in manifest["files"].items()}
        str(manifest["home"])
    except (KeyError, TypeError, AttributeError):
        raise HomeError(f"{file} is no backup of this studio.") from None
    if wanted != found or "studio.db" not in found:
        wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise HomeError(
            f"{file} is damaged: {wrong[0] if wrong else 'studio.db'} is not what it was. "
            "Nothing was changed."
        )
    return manifest


def _safe(name: str) -> bool:
    path = PurePosixPath(name)
    plain = "\\" not in name and ":" not in name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts and len(path.parts) > 0


def _unpack(file: Path, target: Path, files: dict[str, Any]) -> None:
    with tarfile.open(file, mode="r:") as tar:
        for member in tar:
            if member.name not in files:
                continue
            source = tar.extractfile(member)
            assert source is not None
            place = target / member.name
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            digest, left = hashlib.sha256(), files[member.name]["size"]
            with open(place, "xb", opener=lambda p, f: os.open(p, f, 0o600)) as out:
                while left and (part := source.read(min(CHUNK, left))):
                    digest.update(part)
                    out.write(part)
                    left -= len(part)
                out.flush()
                os.fsync(out.fileno())
            if digest.hexdigest() != files[member.name]["sha256"]:
                raise HomeError(f"{file} changed while it was read. Nothing was changed.")


def _settle(database: Path, then: Path, now: Path) -> None:
    """Check a restored database, let no job of it seem alive, and move its paths to this home."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        answer = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        if answer != "ok":
            raise sqlite3.DatabaseError(answer)
        known = set(STATEMENTS)
        try:
            applied = [row[0] for row in db.execute("SELECT name FROM _sqlite_migrations")]
        except sqlite3.OperationalError:
            raise HomeError("That is a database, but not one of this studio.") from None
        if unknown := [name for name in applied if name not in known]:
            raise HomeError(
                f"The backup is of a newer Adapter Studio ({unknown[-1]}). Upgrade this one first."
            )
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM processes")
        db.execute("DELETE FROM leases WHERE holder = 'chat'")
        db.execute(_OF_ANOTHER_BOOT)
        old, new = json.dumps(f"{then}/")[1:-1], json.dumps(f"{now}/")[1:-1]
        for statement in _MOVE_PATHS:
            db.execute(statement, (old, new))
        db.execute("COMMIT")
    os.chmod(database, 0o600)


def _refuse_running(home: Home) -> None:
    if supervisor.living(home) is not None:
        raise HomeError("This home is in use. `studio stop` ends what runs; then restore again.")


def _moved_away(home_path: Path) -> str | None:
    if not home_path.exists():
        return None
    inside = (path.relative_to(home_path) for path in home_path.rglob("*") if path.is_file())
    if not any(path.parts[0] != "state" for path in inside):
        shutil.rmtree(home_path)  # a new home: nothing a person made
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    before = home_path.with_name(f"{home_path.name}.before-{stamp}")
    os.replace(home_path, before)
    return str(before)


_OF_ANOTHER_BOOT = """
UPDATE jobs SET boot_id = CASE WHEN pid IS NULL THEN NULL ELSE 'restored' END,
  owner = '1:0:restored' WHERE state IN ('starting', 'running', 'stopping')
"""
_MOVE_PATHS = (
    "UPDATE jobs SET result = replace(result, ?, ?)",
    "UPDATE jobs SET spec = replace(spec, ?, ?)",
    "UPDATE checkpoints SET path = replace(path, ?, ?)",
)

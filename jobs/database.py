"""Connections to `studio.db`: how to read, how to write, and when to refuse the file.

Two write connections with two durabilities: state changes survive a power cut (`synchronous=FULL`),
metrics may lose their last seconds (`NORMAL`). Every write and checkpoint holds a lock file too:
SQLite below 3.51.3 can corrupt a WAL database when a commit resets the log while another process
checkpoints it, and Python links whatever the system has. It costs 0.1 ms. Reads take no lock.

Transactions are always `BEGIN IMMEDIATE`: a deferred one that reads first and writes later fails
with "locked", which no timeout cures. It knows tables by name only when it migrates.
"""

import atexit
import contextlib
import math
import os
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.database_schema import Tables, half_made, sqlite_library, unknown_migration
from jobs.processes import FileLock, refuse_unsafe, wake
from studio.errors import DiskFull, HomeError, QueueError, is_disk_full
from studio.home import Home

BUSY_SECONDS = 30.0
BUSY_TIMEOUT = "PRAGMA busy_timeout = 30000"  # the same; a pragma takes no parameter
LOG_LIMIT_BYTES = 4 << 20
IDLE_READERS = 4

_open_databases: "weakref.WeakSet[Database]" = weakref.WeakSet()


class Database:
    """The studio's database file, safe to share between threads."""

    def __init__(self, home: Home) -> None:
        """Open and migrate.

        Raises:
            HomeError: The file is not a database, is damaged, or is newer than this program.
        """
        self.path = home.database
        self.wakes = True  # the supervisor's own commits do not wake it
        self._state, self._runs = home.state, home.runs
        self._lock_file = FileLock(home.state / "write.lock")
        self._readers: list[Tables] = []
        self._readers_guard = threading.Lock()
        self._write_guard = threading.RLock()
        self._writers: dict[str, Tables] = {}
        refuse_unsafe(home.state)
        with plain_errors(self.path):
            self._migrate()
        _open_databases.add(self)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Tables]:
        """Yield a connection for a short read of one snapshot."""
        with self._readers_guard:
            tables = self._readers.pop() if self._readers else None
        with plain_errors(self.path):
            tables = tables or self._connect("NORMAL")
        try:
            with plain_errors(self.path):
                tables.conn.execute("BEGIN")
                yield tables
        finally:
            tables.rollback()
            with self._readers_guard:
                keep = len(self._readers) < IDLE_READERS
                if keep:
                    self._readers.append(tables)
            if not keep:
                self._close(tables)

    def rows(self, sql: str, values: Any = ()) -> list[dict[str, Any]]:
        """Return the rows of one query, by the names of their columns."""
        with self.reading() as db:
            return list(db.query(sql, values))

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Tables]:
        """Yield a connection inside one immediate transaction; commit at the end.

        Args:
            durable: Survive a power cut. Such a commit changes a job's state, so it wakes the
                supervisor.
        """
        level = "FULL" if durable else "NORMAL"
        with self._write_guard, plain_errors(self.path):
            tables = self._writers.get(level) or self._connect(level)
            self._writers[level] = tables
            with self._lock_file.held(timeout_seconds=BUSY_SECONDS):
                tables.conn.execute("BEGIN IMMEDIATE")
                try:
                    yield tables
                except BaseException:
                    tables.rollback()
                    raise
                try:
                    tables.conn.execute("COMMIT")
                except BaseException:
                    tables.rollback()
                    raise
                self._shorten_log(tables)
        if durable:
            self.wake()

    def change(self, sql: str, values: Any = (), *, durable: bool = True) -> int:
        """Execute one statement and return the number of rows that it changed."""
        with self.writing(durable=durable) as db:
            return int(db.conn.execute(sql, values).rowcount)

    def wake(self) -> None:
        """Wake the supervisor."""
        if self.wakes:
            wake(self._state)

    def version(self) -> int:
        """Return a number that changes when another connection commits; cheap to poll."""
        with self._write_guard, plain_errors(self.path):
            tables = self._writers.get("version") or self._connect("NORMAL")
            self._writers["version"] = tables
            return int(tables.conn.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close every connection; the last one of all processes folds the log into the file."""
        with self._write_guard, self._readers_guard:
            connections = [*self._writers.values(), *self._readers]
            self._writers, self._readers = {}, []
        for tables in connections:
            self._close(tables)
        self._lock_file.close()

    def _connect(self, synchronous: str) -> Tables:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        tables = sqlite_library()[0](connection, execute_plugins=False)
        for pragma in (
            "PRAGMA foreign_keys = ON",
            "PRAGMA wal_autocheckpoint = 0",
            "PRAGMA synchronous = FULL" if synchronous == "FULL" else "PRAGMA synchronous = NORMAL",
        ):
            connection.execute(pragma)
        return tables

    def _close(self, tables: Tables) -> None:
        # Closing the last connection checkpoints, so it needs the lock as well.
        with contextlib.suppress(HomeError, sqlite3.Error), self._lock_file.held(timeout_seconds=2):
            tables.conn.close()

    def _shorten_log(self, tables: Tables) -> None:
        log = self.path.with_name(self.path.name + "-wal")
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_LIMIT_BYTES:
                tables.conn.execute("PRAGMA busy_timeout = 0")
                try:  # TRUNCATE waits for readers; without a wait it does what it can
                    tables.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                except sqlite3.OperationalError:
                    pass
                finally:
                    tables.conn.execute(BUSY_TIMEOUT)

    def _migrate(self) -> None:
        with self._lock_file.held(timeout_seconds=BUSY_SECONDS):
            tables = self._connect("FULL")
            try:
                migrations = sqlite_library()[1]
                if newer := unknown_migration(one.name for one in migrations.applied(tables)):
                    raise HomeError(
                        f"{self.path} was written by a newer Adapter Studio ({newer}). Upgrade "
                        "this one, or give another home with --home."
                    )
                if half_made(tables):
                    raise HomeError(
                        f"{self.path} was left half made by an earlier version. Move it away, or "
                        "give another home with --home."
                    )
                if tables.conn.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                    raise HomeError(
                        f"{self.path} is on a file system without the locks the queue needs "
                        "(a network share?). Give a folder on a local disk with --home."
                    )
                migrations.apply(tables)
                # A restored or new database must not give a run the number of a folder.
                names = (one for one in os.listdir(self._runs) if one.isdecimal() and len(one) < 10)
                used = max(map(int, names), default=0)
                given = tables.conn.execute(_GIVEN).fetchone()
                if given is None or given[0] < used:  # a busy database can be read, not written
                    tables.conn.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
                    tables.conn.execute("INSERT INTO sqlite_sequence VALUES ('jobs', ?)", (used,))
                os.chmod(self.path, 0o600)
            finally:
                tables.conn.close()


_GIVEN = "SELECT seq FROM sqlite_sequence WHERE name = 'jobs'"


@contextlib.contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors about a database file as plain errors."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except OverflowError as error:
        if "SQLite" not in str(error):
            raise
        raise QueueError("A number has too many digits.") from error
    except sqlite3.DatabaseError as error:
        text = str(error)
        failed = "disk I/O error" in text  # of an exhausted quota too
        if "disk is full" in text or (failed and _is_full(path.parent)):
            raise DiskFull(
                f"The disk that holds {path} is full. Free some space; nothing saved is lost.",
                folder=path.parent,
            ) from error
        if failed:
            raise HomeError(
                f"The disk that holds {path} reports an error. Check the disk and the system's "
                "log, then try again, or give another home with --home."
            ) from error
        if "readonly" in text or "unable to open" in text:
            raise HomeError(
                f"{path} cannot be written. Check its permissions, or give another home with "
                "--home."
            ) from error
        if "locked" in text or "busy" in text:
            raise HomeError(
                f"{path} stayed locked by another program for {BUSY_SECONDS:.0f} seconds. "
                "Close that program and try again."
            ) from error
        if "malformed" in text or "not a database" in text:
            raise HomeError(f"{path} is damaged ({text}). {restore_advice(path.parent)}") from error
        raise


def _is_full(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(1 << 20))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        return is_disk_full(error)
    return False


def damage(connection: sqlite3.Connection) -> str:
    """Return what a quick check finds wrong with a database; empty if nothing."""
    answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    return "" if answer == "ok" else answer


def daily_copies(home: Path) -> list[Path]:
    """Return the daily copies of a home's database, oldest first."""
    return sorted((home / "backups").glob("studio-*.db"))


def restore_advice(home: Path) -> str:
    """Return how to restore a damaged database."""
    kept = daily_copies(home)
    if kept:
        return f"`studio restore {kept[-1]}` brings back its newest copy."
    return "There is no copy of it yet; move it away to start with an empty queue."


def escaped_like(text: str) -> str:
    """Return a text to search the database for, with the wildcards of LIKE escaped."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON in the database cannot hold, by None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> float:
    """Return the time as the database stores it: seconds since 1970 in UTC."""
    return time.time()


@atexit.register
def _close_all() -> None:
    for database in list(_open_databases):
        database.close()

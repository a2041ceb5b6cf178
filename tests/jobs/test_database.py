"""The file itself: refused when newer, damaged or unreachable; safe between processes."""

import hashlib
import json
import sqlite3
from contextlib import closing

import pytest

from jobs.database import Database
from jobs.database_schema import SCRIPTS, sqlite_library
from jobs.job_queue import JobStore
from jobs.processes import FileLock
from studio.errors import DiskFull, HomeError
from tests.jobs.conftest import a_spec, run_workers

# The schema's hash after each migration. A home keeps the schema that it was made with, so a
# released line never changes; a new migration appends one.
SCHEMA_AFTER = {
    "m001_create_jobs": "3ff9167f91a9",
    "m011_drop_unused_tables": "3ff9167f91a9",
}


def test_opening_again_changes_nothing_and_a_newer_or_spoiled_file_is_refused(home):
    store = JobStore(home)
    job = store.submit(a_spec())
    store.close()
    with closing(JobStore(home)) as store:
        assert store.get(job.id) == job
    assert home.database.stat().st_mode & 0o077 == 0, "private"
    with closing(sqlite3.connect(home.database)) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at) "
            "VALUES ('jobs', 'm999_from_the_future', '2030-01-01')"
        )
        connection.commit()
    with pytest.raises(HomeError, match=r"newer Adapter Studio \(m999_from_the_future\)"):
        JobStore(home)
    home.database.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(HomeError, match="damaged"):
        JobStore(home)


def test_a_schema_that_was_left_half_made_is_refused(home):
    JobStore(home).close()
    with closing(sqlite3.connect(home.database)) as connection:
        connection.execute("DROP INDEX jobs_by_place")  # what the last step of 0.1.0 made
    with pytest.raises(HomeError, match="half made"):
        JobStore(home)


def test_a_released_migration_is_never_edited(tmp_path):
    connect, migrations = sqlite_library()
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    tables = connect(connection, execute_plugins=False)
    found = {}
    for migration in migrations._migrations:
        migration.fn(tables)
        if not SCRIPTS[migration.name]:  # of 0.1.0, whose schema the first one makes
            continue
        rows = (
            tables.conn.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL "
                "ORDER BY name"
            ).fetchall()
            + tables.conn.execute("SELECT src, dst FROM transitions ORDER BY 1, 2").fetchall()
        )
        found[migration.name] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
    assert found == SCHEMA_AFTER
    assert [int(name[1:4]) for name in SCRIPTS] == list(range(1, len(SCRIPTS) + 1))


def test_a_home_with_tables_that_nothing_used_opens_without_them(home):
    JobStore(home).close()
    connection = sqlite3.connect(home.database)
    connection.execute("CREATE TABLE adapters (id INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE datasets (id INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM _sqlite_migrations WHERE name LIKE 'm011%'")
    connection.commit()
    connection.close()
    store = JobStore(home)
    with store.database.reading() as db:
        assert not {"adapters", "datasets"} & set(db.table_names())
    store.close()


def test_processes_that_open_a_new_home_together_all_succeed(home):
    assert run_workers("open_and_submit", home, [["5"]] * 4) == [5] * 4
    store = JobStore(home)
    assert len(store.list()) == 20
    with store.database.reading() as db:
        assert db.conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    store.close()


def test_a_new_database_passes_the_numbers_of_run_folders(home):
    for name in ("7", "notes", "9" * 30):
        home.run(name).mkdir(parents=True)
    with closing(JobStore(home)) as store:
        assert store.submit({"name": ""}).id == 8
    for path in home.path.glob("studio.db*"):
        path.unlink()
    home.run(9).mkdir()
    with closing(JobStore(home)) as store:
        assert store.submit({"name": ""}).id == 10


def test_a_failed_write_leaves_nothing_and_frees_the_lock(store):
    with pytest.raises(RuntimeError), store.database.writing() as db:
        db.conn.execute("UPDATE counters SET value = 5")
        raise RuntimeError
    assert store.metrics([1], ["loss"])["seq"] == 0
    store.submit(a_spec())


def test_a_full_disk_is_its_own_error(store):
    with pytest.raises(DiskFull, match="is full"), store.database.writing() as db:
        db.conn.execute("PRAGMA max_page_count = 1")
        db.conn.execute("INSERT INTO counters VALUES (?, 1)", ("x" * 5_000_000,))
    with store.database.writing() as db:
        db.conn.execute("PRAGMA max_page_count = 1073741823")


def test_the_log_does_not_grow_without_end(home):
    database = Database(home)
    for _ in range(40):
        with database.writing(durable=False) as db:
            db.conn.execute("INSERT INTO counters VALUES (?, 1)", ("x" * 500_000 + str(_),))
    size = home.database.with_name("studio.db-wal").stat().st_size
    database.close()
    assert size < 16 << 20


def test_a_lock_is_one_holder_at_a_time(tmp_path):
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert one.acquire()
    assert not other.acquire()
    with pytest.raises(HomeError, match="held by another process"), other.held(timeout_seconds=0):
        pass
    one.release()
    assert other.acquire()
    other.release()
    one.close()
    other.close()

"""The database schema of a home, as its migrations make it.

The database enforces what other modules rely on. At most one job is active on a device (partial
unique index); a state changes only along `job_record.LEGAL`, and each change writes a row of
`events` (triggers); an attempt number grows by one at a claim (trigger); the fields of a job agree
with its state (CHECKs). Times are seconds since 1970 in UTC.

Released statements are never edited, so that every home has the same schema; append a migration.
"""

import sqlite3
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

    Tables: TypeAlias = Database
else:
    Tables = Any

NOW = "(julianday('now') - 2440587.5) * 86400.0"  # stands for {NOW} in the statements

SCHEMA = """
-- Jobs, the legal transitions between their states, and their audit.
CREATE TABLE transitions (
  src TEXT NOT NULL,
  dst TEXT NOT NULL,
  PRIMARY KEY (src, dst)
) STRICT, WITHOUT ROWID;
INSERT INTO transitions(src, dst) VALUES
  ('cancelled', 'queued'), ('failed', 'queued'), ('interrupted', 'cancelled'),
  ('interrupted', 'queued'), ('paused', 'cancelled'), ('paused', 'queued'),
  ('queued', 'cancelled'), ('queued', 'paused'), ('queued', 'starting'),
  ('running', 'failed'), ('running', 'interrupted'), ('running', 'stopping'),
  ('running', 'succeeded'), ('starting', 'failed'), ('starting', 'interrupted'),
  ('starting', 'running'), ('starting', 'stopping'), ('stopping', 'cancelled'),
  ('stopping', 'failed'), ('stopping', 'interrupted'), ('stopping', 'paused'),
  ('stopping', 'succeeded');
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: it names the run's folder
  kind TEXT NOT NULL,
  name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 120),
  spec TEXT NOT NULL CHECK (json_valid(spec)),
  state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'starting', 'running',
    'stopping', 'paused', 'succeeded', 'failed', 'cancelled', 'interrupted')),
  position REAL NOT NULL,
  device_wanted TEXT NOT NULL DEFAULT 'auto',
  device TEXT,
  owner TEXT,
  pid INTEGER,
  pid_started INTEGER,
  boot_id TEXT,
  heartbeat REAL,
  attempt INTEGER NOT NULL DEFAULT 0,
  no_progress INTEGER NOT NULL DEFAULT 0,
  resume_step INTEGER NOT NULL DEFAULT 0,
  stop_requested TEXT CHECK (stop_requested IN ('cancel', 'pause', 'shutdown')),
  stop_requested_at REAL,
  created REAL NOT NULL,
  started REAL,
  finished REAL,
  step INTEGER NOT NULL DEFAULT 0,
  total_steps INTEGER,
  phase TEXT NOT NULL DEFAULT '',
  error_kind TEXT,
  error_text TEXT,
  result TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(result)),
  parent INTEGER REFERENCES jobs(id) ON DELETE SET NULL,
  changed_by TEXT NOT NULL DEFAULT 'person',
  why TEXT NOT NULL DEFAULT '',
  sweep TEXT,
  on_error TEXT NOT NULL DEFAULT 'continue' CHECK (on_error IN ('continue', 'stop')),
  start_after REAL,
  start_when TEXT NOT NULL DEFAULT '' CHECK (start_when IN ('', 'idle', 'night')),
  retries_left INTEGER NOT NULL DEFAULT 0,
  retries_done INTEGER NOT NULL DEFAULT 0,
  save_requested INTEGER NOT NULL DEFAULT 0 CHECK (save_requested IN (0, 1)),
  notes TEXT NOT NULL DEFAULT '',
  tags TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(tags)),
  drop_checkpoints INTEGER NOT NULL DEFAULT 0 CHECK (drop_checkpoints IN (0, 1)),
  sample_requested INTEGER NOT NULL DEFAULT 0 CHECK (sample_requested IN (0, 1)),
  width INTEGER NOT NULL DEFAULT 1 CHECK (width > 0),
  memory_bytes INTEGER NOT NULL DEFAULT 0,
  waits TEXT NOT NULL DEFAULT '',
  CHECK ((state IN ('starting', 'running', 'stopping')) = (device IS NOT NULL)),
  CHECK ((state IN ('starting', 'running', 'stopping')) = (owner IS NOT NULL)),
  CHECK ((stop_requested IS NOT NULL) = (state = 'stopping')),
  CHECK (state <> 'running' OR pid IS NOT NULL),
  CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished IS NOT NULL)),
  CHECK (state <> 'failed' OR error_text IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX jobs_one_active_per_device ON jobs(device)
WHERE state IN ('starting', 'running', 'stopping');
CREATE INDEX jobs_by_position ON jobs(state, position, id);
CREATE INDEX jobs_by_place ON jobs(position);  -- the end of a long queue without reading it
CREATE INDEX jobs_by_sweep ON jobs(sweep) WHERE sweep IS NOT NULL;
CREATE INDEX jobs_by_memory ON jobs(memory_bytes) WHERE state = 'queued';
CREATE INDEX jobs_that_wait ON jobs(id) WHERE waits <> '';
CREATE TABLE dependencies (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  needs INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  PRIMARY KEY (job, needs),
  CHECK (needs < job)  -- only on older jobs, so that no circle can be
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL,  -- no foreign key: the audit outlives the job
  attempt INTEGER NOT NULL,
  time REAL NOT NULL,
  src TEXT,
  dst TEXT NOT NULL,
  actor TEXT NOT NULL,
  why TEXT NOT NULL
) STRICT;
CREATE TABLE attempts (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  attempt INTEGER NOT NULL,
  device TEXT NOT NULL,
  pid INTEGER,
  started REAL NOT NULL,
  ended REAL,
  from_step INTEGER NOT NULL DEFAULT 0,
  outcome TEXT,
  why TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (job, attempt)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER jobs_start_queued BEFORE INSERT ON jobs WHEN NEW.state <> 'queued'
BEGIN SELECT RAISE(ABORT, 'a new job must be queued'); END;
CREATE TRIGGER jobs_legal_transition BEFORE UPDATE OF state ON jobs
WHEN NEW.state <> OLD.state
  AND NOT EXISTS (SELECT 1 FROM transitions WHERE src = OLD.state AND dst = NEW.state)
BEGIN SELECT RAISE(ABORT, 'illegal transition'); END;
CREATE TRIGGER jobs_attempt_grows BEFORE UPDATE OF attempt, state ON jobs
WHEN NEW.attempt <> OLD.attempt + (OLD.state = 'queued' AND NEW.state = 'starting')
BEGIN SELECT RAISE(ABORT, 'an attempt grows by one at a claim and never else'); END;
CREATE TRIGGER jobs_cancel_stays BEFORE UPDATE OF stop_requested ON jobs
WHEN OLD.stop_requested = 'cancel' AND NEW.state = 'stopping'
  AND NEW.stop_requested <> 'cancel'
BEGIN SELECT RAISE(ABORT, 'a cancel cannot be taken back'); END;
CREATE TRIGGER jobs_no_delete_alive BEFORE DELETE ON jobs
WHEN OLD.state IN ('starting', 'running', 'stopping')
BEGIN SELECT RAISE(ABORT, 'an active job cannot be deleted'); END;
CREATE TRIGGER jobs_no_delete_needed BEFORE DELETE ON jobs
WHEN EXISTS (SELECT 1 FROM dependencies JOIN jobs AS waiting ON waiting.id = dependencies.job
             WHERE dependencies.needs = OLD.id AND waiting.state IN ('queued', 'paused'))
BEGIN SELECT RAISE(ABORT, 'a waiting job needs this one'); END;
CREATE TRIGGER jobs_created AFTER INSERT ON jobs BEGIN
  INSERT INTO events(job, attempt, time, src, dst, actor, why)
  VALUES (NEW.id, NEW.attempt, {NOW}, NULL, NEW.state, NEW.changed_by, NEW.why); END;
CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN NEW.state <> OLD.state BEGIN
  INSERT INTO events(job, attempt, time, src, dst, actor, why)
  VALUES (NEW.id, NEW.attempt, {NOW}, OLD.state, NEW.state, NEW.changed_by, NEW.why); END;
CREATE TRIGGER jobs_attempt_begins AFTER UPDATE OF state ON jobs
WHEN OLD.state = 'queued' AND NEW.state = 'starting' BEGIN
  INSERT INTO attempts(job, attempt, device, started)
  VALUES (NEW.id, NEW.attempt, NEW.device, {NOW}); END;
CREATE TRIGGER jobs_attempt_ends AFTER UPDATE OF state ON jobs
WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN
  UPDATE attempts SET ended = {NOW}, outcome = NEW.state, why = NEW.why, pid = OLD.pid
  WHERE job = NEW.id AND attempt = NEW.attempt; END;
CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs BEGIN
  INSERT INTO events(job, attempt, time, src, dst, actor, why)
  VALUES (OLD.id, OLD.attempt, {NOW}, OLD.state, 'deleted', 'person', OLD.name); END;

-- What runs write: metrics, samples, checkpoints.
CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counters(name, value) VALUES ('metrics', 0);
CREATE TABLE metrics (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  step INTEGER NOT NULL,
  value REAL,  -- NULL where it is no finite number: SQLite stores NaN as NULL
  flag TEXT CHECK (flag IN ('nan', 'inf', '-inf')),
  time REAL NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (job, name, step),
  CHECK ((value IS NULL) = (flag IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX metrics_by_seq ON metrics(seq);
CREATE TABLE samples (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  prompt TEXT NOT NULL,
  text TEXT NOT NULL,
  time REAL NOT NULL,
  UNIQUE (job, step, prompt)
) STRICT;
CREATE TABLE checkpoints (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  path TEXT NOT NULL,
  eval_loss REAL,
  time REAL NOT NULL,
  PRIMARY KEY (job, step)
) STRICT, WITHOUT ROWID;

-- Leases on devices, one on each that a job holds, and the living processes of this home.
CREATE TABLE leases (
  device TEXT NOT NULL,
  holder TEXT NOT NULL CHECK (holder IN ('job', 'chat')),
  job INTEGER REFERENCES jobs(id) ON DELETE CASCADE,
  pid INTEGER,
  pid_started INTEGER,
  boot_id TEXT,
  memory_bytes INTEGER NOT NULL DEFAULT 0,
  wanted_back INTEGER NOT NULL DEFAULT 0 CHECK (wanted_back IN (0, 1)),
  since REAL NOT NULL,
  CHECK ((holder = 'job') = (job IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX leases_one_per_holder ON leases(device, holder);
CREATE TRIGGER leases_taken AFTER UPDATE OF state ON jobs
WHEN OLD.device IS NULL AND NEW.device IS NOT NULL BEGIN
  INSERT INTO leases(device, holder, job, memory_bytes, since)
  SELECT value, 'job', NEW.id, NEW.memory_bytes, {NOW}
  FROM json_each('["' || replace(NEW.device, ',', '","') || '"]'); END;
CREATE TRIGGER leases_named AFTER UPDATE OF pid ON jobs WHEN NEW.pid IS NOT NULL BEGIN
  UPDATE leases SET pid = NEW.pid, pid_started = NEW.pid_started, boot_id = NEW.boot_id
  WHERE job = NEW.id; END;
CREATE TRIGGER leases_returned AFTER UPDATE OF state ON jobs
WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN
  DELETE FROM leases WHERE job = NEW.id; END;
CREATE TABLE processes (
  role TEXT NOT NULL CHECK (role IN ('supervisor', 'web', 'chat', 'spare')),
  pid INTEGER NOT NULL,
  pid_started INTEGER NOT NULL,
  boot_id TEXT NOT NULL,
  url TEXT NOT NULL DEFAULT '',
  version TEXT NOT NULL,
  since REAL NOT NULL,
  heartbeat REAL NOT NULL,
  PRIMARY KEY (role, pid)
) STRICT, WITHOUT ROWID;
CREATE TABLE settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL CHECK (json_valid(value))
) STRICT, WITHOUT ROWID;

-- Compare: conversations, votes and recipes.
CREATE TABLE conversations (
  id TEXT PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
  title TEXT NOT NULL DEFAULT '',
  lanes TEXT NOT NULL CHECK (json_valid(lanes)),
  settings TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings)),
  parent TEXT,  -- the conversation this one was branched from; it may be deleted since
  created REAL NOT NULL,
  updated REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE turns (
  conversation TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
  number INTEGER NOT NULL CHECK (number >= 0),
  prompt TEXT NOT NULL,
  answers TEXT NOT NULL CHECK (json_valid(answers)),
  words TEXT NOT NULL,
  PRIMARY KEY (conversation, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE matches (
  id INTEGER PRIMARY KEY,
  prompt TEXT NOT NULL,
  lanes TEXT NOT NULL CHECK (json_valid(lanes)),
  winner INTEGER,  -- index into lanes; NULL is a tie
  created REAL NOT NULL,
  bad INTEGER NOT NULL DEFAULT 0 CHECK (bad IN (0, 1)),
  blind INTEGER NOT NULL DEFAULT 0 CHECK (blind IN (0, 1)),
  conversation TEXT,
  turn INTEGER,
  answers TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(answers))
) STRICT;
CREATE UNIQUE INDEX matches_one_a_turn ON matches(conversation, turn)
WHERE conversation IS NOT NULL;
CREATE TABLE recipes (
  name TEXT PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 120),
  model TEXT NOT NULL,
  stack TEXT NOT NULL CHECK (json_valid(stack)),
  created REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""

FOLDED = (  # 0.1.0 made the same schema in these steps
    "m002_create_measurements", "m003_create_library", "m004_create_leases", "m005_create_plans",
    "m006_create_settings", "m007_create_conversations", "m008_widen_jobs",
    "m009_place_by_memory", "m010_index_positions",
)  # fmt: skip
SCRIPTS: dict[str, str] = {
    "m001_create_jobs": SCHEMA,
    **dict.fromkeys(FOLDED, ""),
    # Of 0.1.0; nothing ever read or wrote them.
    "m011_drop_unused_tables": "DROP TABLE IF EXISTS adapters; DROP TABLE IF EXISTS datasets;",
}


def unknown_migration(applied: Iterable[str]) -> str | None:
    """Return the last of the applied migrations that this program does not have."""
    return next((name for name in reversed(list(applied)) if name not in SCRIPTS), None)


def half_made(db: Tables) -> bool:
    """Return True if some, and not all, of the steps of 0.1.0 made a database's schema."""
    names = {name for (name,) in db.conn.execute("SELECT name FROM sqlite_master")}
    return "jobs" in names and "jobs_by_place" not in names


def _apply(script: str, db: Tables) -> None:
    """Execute a script inside the caller's transaction, which `executescript` would commit."""
    for statement in _statements(script.replace("{NOW}", NOW)):
        db.conn.execute(statement)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@cache
def sqlite_library() -> "tuple[type[Database], Migrations]":
    """Return the connection class and the migrations of sqlite-utils, loaded at the first use."""
    # It imports pandas and numpy where they are installed: 0.4 s and 40 MB in every process.
    hidden = [name for name in ("pandas", "numpy") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        from sqlite_utils import Database
        from sqlite_utils.migrations import Migrations
    finally:
        for name in hidden:
            del sys.modules[name]
    migrations = Migrations("jobs")
    for name, script in SCRIPTS.items():
        migrations(name=name)(partial(_apply, script))
    return Database, migrations

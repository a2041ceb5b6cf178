"""The tables of the queue, with its invariants inside: what is not legal cannot be stored.

One job at most is active on a device (partial unique index), a state changes only along
`states.LEGAL` and each change writes its row of `events` (triggers), an attempt number only grows
by one at a claim (trigger), and the fields of a job agree with its state (CHECKs). Every other
module may have bugs; the database still says no. Times are seconds since 1970 in UTC.

Migrations are append-only; a released one is never edited.
"""

from jobs.schema_compare import COMPARE
from jobs.states import LEGAL
from jobs.tables import Migrations, Tables


def m001_create_jobs(db: Tables) -> None:
    """Jobs, the legal transitions, and their audit."""
    for statement in (_TRANSITIONS, _JOBS, *_JOB_INDEXES, _EVENTS, _ATTEMPTS, *_TRIGGERS):
        db.conn.execute(statement)
    db.conn.executemany("INSERT INTO transitions(src, dst) VALUES (?, ?)", sorted(LEGAL))


def m002_create_measurements(db: Tables) -> None:
    """What runs write while they run."""
    for statement in (_COUNTERS, _METRICS, _METRICS_CURSOR, _SAMPLES, _CHECKPOINTS):
        db.conn.execute(statement)
    db.conn.execute("INSERT INTO counters(name, value) VALUES ('metrics', 0)")


def m003_create_library(db: Tables) -> None:
    """What a person collects: adapters, datasets, votes of the arena."""
    for statement in (_ADAPTERS, _DATASETS, _MATCHES):
        db.conn.execute(statement)


def m004_create_leases(db: Tables) -> None:
    """Who holds which device, and which of our processes live."""
    for statement in (_LEASES, _ONE_JOB_PER_DEVICE, _PROCESSES, *_LEASE_TRIGGERS):
        db.conn.execute(statement)


def m005_create_plans(db: Tables) -> None:
    """When a job may start, what it waits for, what belongs together, what a person notes."""
    for statement in (*_PLAN_COLUMNS, _DEPENDENCIES, _JOBS_BY_SWEEP, _NO_DELETE_NEEDED):
        db.conn.execute(statement)


def m006_create_settings(db: Tables) -> None:
    """What a person decides about the whole queue, and two more wishes about a job."""
    for statement in (_SETTINGS, *_WISH_COLUMNS):
        db.conn.execute(statement)


def m007_create_conversations(db: Tables) -> None:
    """What Compare keeps: conversations, saved mixes, and more about a vote."""
    for statement in COMPARE:
        db.conn.execute(statement)


def m008_widen_jobs(db: Tables) -> None:
    """A job may hold several devices: a lease on each, all taken in the claim's transaction."""
    for statement in (_WIDTH, "DROP TRIGGER leases_taken", _LEASES_TAKEN):
        db.conn.execute(statement)


migrations = Migrations("jobs")
for _step in (
    m001_create_jobs,
    m002_create_measurements,
    m003_create_library,
    m004_create_leases,
    m005_create_plans,
    m006_create_settings,
    m007_create_conversations,
    m008_widen_jobs,
):
    migrations()(_step)

_TRANSITIONS = """
CREATE TABLE transitions (
  src TEXT NOT NULL,
  dst TEXT NOT NULL,
  PRIMARY KEY (src, dst)
) STRICT, WITHOUT ROWID
"""

_JOBS = """
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
  CHECK ((state IN ('starting', 'running', 'stopping')) = (device IS NOT NULL)),
  CHECK ((state IN ('starting', 'running', 'stopping')) = (owner IS NOT NULL)),
  CHECK ((stop_requested IS NOT NULL) = (state = 'stopping')),
  CHECK (state <> 'running' OR pid IS NOT NULL),
  CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished IS NOT NULL)),
  CHECK (state <> 'failed' OR error_text IS NOT NULL)
) STRICT
"""

_JOB_INDEXES = (
    """CREATE UNIQUE INDEX jobs_one_active_per_device ON jobs(device)
       WHERE state IN ('starting', 'running', 'stopping')""",
    "CREATE INDEX jobs_by_position ON jobs(state, position, id)",
)

_EVENTS = """
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL,  -- no foreign key: the audit outlives the job
  attempt INTEGER NOT NULL,
  time REAL NOT NULL,
  src TEXT,
  dst TEXT NOT NULL,
  actor TEXT NOT NULL,
  why TEXT NOT NULL
) STRICT
"""

_ATTEMPTS = """
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
) STRICT, WITHOUT ROWID
"""

_NOW = "(julianday('now') - 2440587.5) * 86400.0"

_TRIGGERS = (
    """CREATE TRIGGER jobs_start_queued BEFORE INSERT ON jobs WHEN NEW.state <> 'queued'
       BEGIN SELECT RAISE(ABORT, 'a new job must be queued'); END""",
    """CREATE TRIGGER jobs_legal_transition BEFORE UPDATE OF state ON jobs
       WHEN NEW.state <> OLD.state
        AND NOT EXISTS (SELECT 1 FROM transitions WHERE src = OLD.state AND dst = NEW.state)
       BEGIN SELECT RAISE(ABORT, 'illegal transition'); END""",
    """CREATE TRIGGER jobs_attempt_grows BEFORE UPDATE OF attempt, state ON jobs
       WHEN NEW.attempt <> OLD.attempt + (OLD.state = 'queued' AND NEW.state = 'starting')
       BEGIN SELECT RAISE(ABORT, 'an attempt grows by one at a claim and never else'); END""",
    """CREATE TRIGGER jobs_cancel_stays BEFORE UPDATE OF stop_requested ON jobs
       WHEN OLD.stop_requested = 'cancel' AND NEW.state = 'stopping'
        AND NEW.stop_requested <> 'cancel'
       BEGIN SELECT RAISE(ABORT, 'a cancel cannot be taken back'); END""",
    """CREATE TRIGGER jobs_no_delete_alive BEFORE DELETE ON jobs
       WHEN OLD.state IN ('starting', 'running', 'stopping')
       BEGIN SELECT RAISE(ABORT, 'an active job cannot be deleted'); END""",
    f"""CREATE TRIGGER jobs_created AFTER INSERT ON jobs BEGIN
         INSERT INTO events(job, attempt, time, src, dst, actor, why)
         VALUES (NEW.id, NEW.attempt, {_NOW}, NULL, NEW.state, NEW.changed_by, NEW.why); END""",
    f"""CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN NEW.state <> OLD.state BEGIN
         INSERT INTO events(job, attempt, time, src, dst, actor, why)
         VALUES (NEW.id, NEW.attempt, {_NOW}, OLD.state, NEW.state, NEW.changed_by, NEW.why);
        END""",
    f"""CREATE TRIGGER jobs_attempt_begins AFTER UPDATE OF state ON jobs
        WHEN OLD.state = 'queued' AND NEW.state = 'starting' BEGIN
         INSERT INTO attempts(job, attempt, device, started)
         VALUES (NEW.id, NEW.attempt, NEW.device, {_NOW}); END""",
    f"""CREATE TRIGGER jobs_attempt_ends AFTER UPDATE OF state ON jobs
        WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN
         UPDATE attempts SET ended = {_NOW}, outcome = NEW.state, why = NEW.why, pid = OLD.pid
         WHERE job = NEW.id AND attempt = NEW.attempt; END""",
    f"""CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs BEGIN
         INSERT INTO events(job, attempt, time, src, dst, actor, why)
         VALUES (OLD.id, OLD.attempt, {_NOW}, OLD.state, 'deleted', 'person', OLD.name); END""",
)

_COUNTERS = """
CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

# Clustered by series, so that a curve is one range scan; `seq` is the cursor of the live page and
# is new again when a step is done again after a resume.
_METRICS = """
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
) STRICT, WITHOUT ROWID
"""
_METRICS_CURSOR = "CREATE INDEX metrics_by_seq ON metrics(seq)"

_SAMPLES = """
CREATE TABLE samples (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  prompt TEXT NOT NULL,
  text TEXT NOT NULL,
  time REAL NOT NULL,
  UNIQUE (job, step, prompt)
) STRICT
"""

_CHECKPOINTS = """
CREATE TABLE checkpoints (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  path TEXT NOT NULL,
  eval_loss REAL,
  time REAL NOT NULL,
  PRIMARY KEY (job, step)
) STRICT, WITHOUT ROWID
"""

_ADAPTERS = """
CREATE TABLE adapters (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  path TEXT NOT NULL,
  job INTEGER REFERENCES jobs(id) ON DELETE SET NULL,
  base TEXT NOT NULL,
  method TEXT NOT NULL,
  notes TEXT NOT NULL DEFAULT '',
  tags TEXT NOT NULL DEFAULT '',
  created REAL NOT NULL
) STRICT
"""

_DATASETS = """
CREATE TABLE datasets (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  path TEXT NOT NULL,
  hash TEXT NOT NULL,
  format TEXT NOT NULL,
  rows INTEGER NOT NULL,
  created REAL NOT NULL
) STRICT
"""

_MATCHES = """
CREATE TABLE matches (
  id INTEGER PRIMARY KEY,
  prompt TEXT NOT NULL,
  lanes TEXT NOT NULL CHECK (json_valid(lanes)),
  winner INTEGER,  -- index into lanes; NULL is a tie
  created REAL NOT NULL
) STRICT
"""

_LEASES = """
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
) STRICT
"""
_ONE_JOB_PER_DEVICE = "CREATE UNIQUE INDEX leases_one_per_holder ON leases(device, holder)"

_PROCESSES = """
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
) STRICT, WITHOUT ROWID
"""

_LEASE_TRIGGERS = (
    f"""CREATE TRIGGER leases_taken AFTER UPDATE OF state ON jobs
        WHEN OLD.device IS NULL AND NEW.device IS NOT NULL BEGIN
         INSERT INTO leases(device, holder, job, since)
         VALUES (NEW.device, 'job', NEW.id, {_NOW}); END""",
    """CREATE TRIGGER leases_named AFTER UPDATE OF pid ON jobs WHEN NEW.pid IS NOT NULL BEGIN
         UPDATE leases SET pid = NEW.pid, pid_started = NEW.pid_started, boot_id = NEW.boot_id
         WHERE job = NEW.id; END""",
    """CREATE TRIGGER leases_returned AFTER UPDATE OF state ON jobs
        WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN
         DELETE FROM leases WHERE job = NEW.id; END""",
)

_PLAN_COLUMNS = (
    "ALTER TABLE jobs ADD COLUMN sweep TEXT",
    """ALTER TABLE jobs ADD COLUMN on_error TEXT NOT NULL DEFAULT 'continue'
       CHECK (on_error IN ('continue', 'stop'))""",
    "ALTER TABLE jobs ADD COLUMN start_after REAL",
    """ALTER TABLE jobs ADD COLUMN start_when TEXT NOT NULL DEFAULT ''
       CHECK (start_when IN ('', 'idle', 'night'))""",
    "ALTER TABLE jobs ADD COLUMN retries_left INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN retries_done INTEGER NOT NULL DEFAULT 0",
    """ALTER TABLE jobs ADD COLUMN save_requested INTEGER NOT NULL DEFAULT 0
       CHECK (save_requested IN (0, 1))""",
    "ALTER TABLE jobs ADD COLUMN notes TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN tags TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(tags))",
)
_DEPENDENCIES = """
CREATE TABLE dependencies (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  needs INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  PRIMARY KEY (job, needs),
  CHECK (needs < job)  -- only on older jobs, so that no circle can be
) STRICT, WITHOUT ROWID
"""
_JOBS_BY_SWEEP = "CREATE INDEX jobs_by_sweep ON jobs(sweep) WHERE sweep IS NOT NULL"
_NO_DELETE_NEEDED = """
CREATE TRIGGER jobs_no_delete_needed BEFORE DELETE ON jobs
WHEN EXISTS (SELECT 1 FROM dependencies JOIN jobs AS waiting ON waiting.id = dependencies.job
             WHERE dependencies.needs = OLD.id AND waiting.state IN ('queued', 'paused'))
BEGIN SELECT RAISE(ABORT, 'a waiting job needs this one'); END
"""

_SETTINGS = """
CREATE TABLE settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL CHECK (json_valid(value))
) STRICT, WITHOUT ROWID
"""
_WISH_COLUMNS = (
    """ALTER TABLE jobs ADD COLUMN drop_checkpoints INTEGER NOT NULL DEFAULT 0
       CHECK (drop_checkpoints IN (0, 1))""",
    """ALTER TABLE jobs ADD COLUMN sample_requested INTEGER NOT NULL DEFAULT 0
       CHECK (sample_requested IN (0, 1))""",
)

_WIDTH = "ALTER TABLE jobs ADD COLUMN width INTEGER NOT NULL DEFAULT 1 CHECK (width > 0)"
_LEASES_TAKEN = f"""
CREATE TRIGGER leases_taken AFTER UPDATE OF state ON jobs
WHEN OLD.device IS NULL AND NEW.device IS NOT NULL BEGIN
  INSERT INTO leases(device, holder, job, since)
  SELECT value, 'job', NEW.id, {_NOW}
  FROM json_each('["' || replace(NEW.device, ',', '","') || '"]'); END
"""

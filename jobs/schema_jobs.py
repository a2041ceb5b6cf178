"""Jobs, the legal transitions between their states, and the audit: tables, indexes, triggers.

Statements that a released migration runs are never edited (`schema.py`).
"""

TRANSITIONS = """
CREATE TABLE transitions (
  src TEXT NOT NULL,
  dst TEXT NOT NULL,
  PRIMARY KEY (src, dst)
) STRICT, WITHOUT ROWID
"""

JOBS = """
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

JOB_INDEXES = (
    """CREATE UNIQUE INDEX jobs_one_active_per_device ON jobs(device)
       WHERE state IN ('starting', 'running', 'stopping')""",
    "CREATE INDEX jobs_by_position ON jobs(state, position, id)",
)

EVENTS = """
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

ATTEMPTS = """
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

NOW = "(julianday('now') - 2440587.5) * 86400.0"

TRIGGERS = (
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
         VALUES (NEW.id, NEW.attempt, {NOW}, NULL, NEW.state, NEW.changed_by, NEW.why); END""",
    f"""CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN NEW.state <> OLD.state BEGIN
         INSERT INTO events(job, attempt, time, src, dst, actor, why)
         VALUES (NEW.id, NEW.attempt, {NOW}, OLD.state, NEW.state, NEW.changed_by, NEW.why);
        END""",
    f"""CREATE TRIGGER jobs_attempt_begins AFTER UPDATE OF state ON jobs
        WHEN OLD.state = 'queued' AND NEW.state = 'starting' BEGIN
         INSERT INTO attempts(job, attempt, device, started)
         VALUES (NEW.id, NEW.attempt, NEW.device, {NOW}); END""",
    f"""CREATE TRIGGER jobs_attempt_ends AFTER UPDATE OF state ON jobs
        WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN
         UPDATE attempts SET ended = {NOW}, outcome = NEW.state, why = NEW.why, pid = OLD.pid
         WHERE job = NEW.id AND attempt = NEW.attempt; END""",
    f"""CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs BEGIN
         INSERT INTO events(job, attempt, time, src, dst, actor, why)
         VALUES (OLD.id, OLD.attempt, {NOW}, OLD.state, 'deleted', 'person', OLD.name); END""",
)

JOBS_BY_PLACE = "CREATE INDEX jobs_by_place ON jobs(position)"

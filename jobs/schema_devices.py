"""Who holds which device and which of our processes live: tables and triggers.

Statements that a released migration runs are never edited (`schema.py`).
"""

from jobs.schema_jobs import NOW

LEASES = """
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

ONE_JOB_PER_DEVICE = "CREATE UNIQUE INDEX leases_one_per_holder ON leases(device, holder)"

PROCESSES = """
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

LEASE_TRIGGERS = (
    f"""CREATE TRIGGER leases_taken AFTER UPDATE OF state ON jobs
        WHEN OLD.device IS NULL AND NEW.device IS NOT NULL BEGIN
         INSERT INTO leases(device, holder, job, since)
         VALUES (NEW.device, 'job', NEW.id, {NOW}); END""",
    """CREATE TRIGGER leases_named AFTER UPDATE OF pid ON jobs WHEN NEW.pid IS NOT NULL BEGIN
         UPDATE leases SET pid = NEW.pid, pid_started = NEW.pid_started, boot_id = NEW.boot_id
         WHERE job = NEW.id; END""",
    """CREATE TRIGGER leases_returned AFTER UPDATE OF state ON jobs
        WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN
         DELETE FROM leases WHERE job = NEW.id; END""",
)

WIDTH = "ALTER TABLE jobs ADD COLUMN width INTEGER NOT NULL DEFAULT 1 CHECK (width > 0)"

LEASES_TAKEN = f"""
CREATE TRIGGER leases_taken AFTER UPDATE OF state ON jobs
WHEN OLD.device IS NULL AND NEW.device IS NOT NULL BEGIN
  INSERT INTO leases(device, holder, job, since)
  SELECT value, 'job', NEW.id, {NOW}
  FROM json_each('["' || replace(NEW.device, ',', '","') || '"]'); END
"""

MEMORY_COLUMNS = (
    "ALTER TABLE jobs ADD COLUMN memory_bytes INTEGER NOT NULL DEFAULT 0",  # 0: not known
    "ALTER TABLE jobs ADD COLUMN waits TEXT NOT NULL DEFAULT ''",
)
MEMORY_INDEXES = (
    "CREATE INDEX jobs_by_memory ON jobs(memory_bytes) WHERE state = 'queued'",
    "CREATE INDEX jobs_that_wait ON jobs(id) WHERE waits <> ''",
)
LEASES_TAKEN_WITH_MEMORY = LEASES_TAKEN.replace(
    "device, holder, job, since)", "device, holder, job, memory_bytes, since)"
).replace("'job', NEW.id, ", "'job', NEW.id, NEW.memory_bytes, ")

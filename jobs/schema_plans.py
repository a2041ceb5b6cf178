"""When a job may start, what it waits for, what a person decides and notes: columns and tables.

Statements that a released migration runs are never edited (`schema.py`).
"""

PLAN_COLUMNS = (
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

DEPENDENCIES = """
CREATE TABLE dependencies (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  needs INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  PRIMARY KEY (job, needs),
  CHECK (needs < job)  -- only on older jobs, so that no circle can be
) STRICT, WITHOUT ROWID
"""

JOBS_BY_SWEEP = "CREATE INDEX jobs_by_sweep ON jobs(sweep) WHERE sweep IS NOT NULL"

NO_DELETE_NEEDED = """
CREATE TRIGGER jobs_no_delete_needed BEFORE DELETE ON jobs
WHEN EXISTS (SELECT 1 FROM dependencies JOIN jobs AS waiting ON waiting.id = dependencies.job
             WHERE dependencies.needs = OLD.id AND waiting.state IN ('queued', 'paused'))
BEGIN SELECT RAISE(ABORT, 'a waiting job needs this one'); END
"""

SETTINGS = """
CREATE TABLE settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL CHECK (json_valid(value))
) STRICT, WITHOUT ROWID
"""

WISH_COLUMNS = (
    """ALTER TABLE jobs ADD COLUMN drop_checkpoints INTEGER NOT NULL DEFAULT 0
       CHECK (drop_checkpoints IN (0, 1))""",
    """ALTER TABLE jobs ADD COLUMN sample_requested INTEGER NOT NULL DEFAULT 0
       CHECK (sample_requested IN (0, 1))""",
)

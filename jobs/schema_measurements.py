"""What runs write while they run, and what a person collects: tables.

Statements that a released migration runs are never edited (`schema.py`).
"""

COUNTERS = """
CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

# Clustered by series, so that a curve is one range scan; `seq` is the cursor of the live page and
# is new again when a step is done again after a resume.
METRICS = """
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

METRICS_CURSOR = "CREATE INDEX metrics_by_seq ON metrics(seq)"

SAMPLES = """
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

CHECKPOINTS = """
CREATE TABLE checkpoints (
  job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  path TEXT NOT NULL,
  eval_loss REAL,
  time REAL NOT NULL,
  PRIMARY KEY (job, step)
) STRICT, WITHOUT ROWID
"""

ADAPTERS = """
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

DATASETS = """
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

MATCHES = """
CREATE TABLE matches (
  id INTEGER PRIMARY KEY,
  prompt TEXT NOT NULL,
  lanes TEXT NOT NULL CHECK (json_valid(lanes)),
  winner INTEGER,  -- index into lanes; NULL is a tie
  created REAL NOT NULL
) STRICT
"""

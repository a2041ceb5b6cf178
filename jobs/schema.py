"""The tables of the queue, with its invariants inside: what is not legal cannot be stored.

One job at most is active on a device (partial unique index), a state changes only along
`states.LEGAL` and each change writes its row of `events` (triggers), an attempt number only grows
by one at a claim (trigger), and the fields of a job agree with its state (CHECKs). Every other
module may have bugs; the database still says no. Times are seconds since 1970 in UTC.

Migrations are append-only; a released one is never edited.
"""

from jobs import schema_devices, schema_jobs, schema_measurements, schema_plans
from jobs.schema_compare import COMPARE
from jobs.states import LEGAL
from jobs.tables import Migrations, Tables


def m001_create_jobs(db: Tables) -> None:
    """Jobs, the legal transitions, and their audit."""
    for statement in (
        schema_jobs.TRANSITIONS,
        schema_jobs.JOBS,
        *schema_jobs.JOB_INDEXES,
        schema_jobs.EVENTS,
        schema_jobs.ATTEMPTS,
        *schema_jobs.TRIGGERS,
    ):
        db.conn.execute(statement)
    db.conn.executemany("INSERT INTO transitions(src, dst) VALUES (?, ?)", sorted(LEGAL))


def m002_create_measurements(db: Tables) -> None:
    """What runs write while they run."""
    for statement in (
        schema_measurements.COUNTERS,
        schema_measurements.METRICS,
        schema_measurements.METRICS_CURSOR,
        schema_measurements.SAMPLES,
        schema_measurements.CHECKPOINTS,
    ):
        db.conn.execute(statement)
    db.conn.execute("INSERT INTO counters(name, value) VALUES ('metrics', 0)")


def m003_create_library(db: Tables) -> None:
    """What a person collects: adapters, datasets, votes of the arena."""
    for statement in (
        schema_measurements.ADAPTERS,
        schema_measurements.DATASETS,
        schema_measurements.MATCHES,
    ):
        db.conn.execute(statement)


def m004_create_leases(db: Tables) -> None:
    """Who holds which device, and which of our processes live."""
    for statement in (
        schema_devices.LEASES,
        schema_devices.ONE_JOB_PER_DEVICE,
        schema_devices.PROCESSES,
        *schema_devices.LEASE_TRIGGERS,
    ):
        db.conn.execute(statement)


def m005_create_plans(db: Tables) -> None:
    """When a job may start, what it waits for, what belongs together, what a person notes."""
    for statement in (
        *schema_plans.PLAN_COLUMNS,
        schema_plans.DEPENDENCIES,
        schema_plans.JOBS_BY_SWEEP,
        schema_plans.NO_DELETE_NEEDED,
    ):
        db.conn.execute(statement)


def m006_create_settings(db: Tables) -> None:
    """What a person decides about the whole queue, and two more wishes about a job."""
    for statement in (schema_plans.SETTINGS, *schema_plans.WISH_COLUMNS):
        db.conn.execute(statement)


def m007_create_conversations(db: Tables) -> None:
    """What Compare keeps: conversations, saved mixes, and more about a vote."""
    for statement in COMPARE:
        db.conn.execute(statement)


def m008_widen_jobs(db: Tables) -> None:
    """A job may hold several devices: a lease on each, all taken in the claim's transaction."""
    for statement in (
        schema_devices.WIDTH,
        "DROP TRIGGER leases_taken",
        schema_devices.LEASES_TAKEN,
    ):
        db.conn.execute(statement)


def m009_place_by_memory(db: Tables) -> None:
    """A job brings the memory it will need, its lease holds it, and it says what it waits for."""
    for statement in (
        *schema_devices.MEMORY_COLUMNS,
        *schema_devices.MEMORY_INDEXES,
        "DROP TRIGGER leases_taken",
        schema_devices.LEASES_TAKEN_WITH_MEMORY,
    ):
        db.conn.execute(statement)


def m010_index_positions(db: Tables) -> None:
    """The end of a long queue is found without reading it."""
    db.conn.execute(schema_jobs.JOBS_BY_PLACE)


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
    m009_place_by_memory,
    m010_index_positions,
):
    migrations()(_step)

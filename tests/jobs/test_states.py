"""Every one of the 72 pairs of states: the database accepts the legal ones and no other."""

import sqlite3
from itertools import product

import pytest

from jobs.job_queue import JobStore
from jobs.job_record import ACTIVE, ENDED, LEGAL, STATES, State, actions
from jobs.processes import me
from tests.jobs.conftest import a_spec

PAIRS = [(src, dst) for src, dst in product(STATES, STATES) if src != dst]

# One shortest legal way to each state, from the new job's `queued`.
WAYS: dict[State, tuple[State, ...]] = {
    "queued": (),
    "starting": ("starting",),
    "running": ("starting", "running"),
    "stopping": ("starting", "running", "stopping"),
    "paused": ("paused",),
    "succeeded": ("starting", "running", "succeeded"),
    "failed": ("starting", "running", "failed"),
    "cancelled": ("cancelled",),
    "interrupted": ("starting", "interrupted"),
}

FORCE = """
UPDATE jobs SET state = :state, attempt = attempt + (state = 'queued' AND :state = 'starting'),
  device = CASE WHEN :active THEN 'cpu' END, owner = CASE WHEN :active THEN :owner END,
  pid = CASE WHEN :active THEN 1 END, pid_started = 1, boot_id = 'b',
  stop_requested = CASE WHEN :state = 'stopping' THEN 'pause' END,
  finished = CASE WHEN :ended THEN 1.0 END,
  error_text = CASE WHEN :state = 'failed' THEN 'because' END
WHERE id = :id
"""


def move(store: JobStore, job: int, state: State) -> None:
    values = {
        "id": job, "state": state, "active": state in ACTIVE, "ended": state in ENDED,
        "owner": str(me()),
    }  # fmt: skip
    with store.database.writing() as db:
        db.conn.execute(FORCE, values)


@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_the_database_accepts_exactly_the_legal_pairs(store, src, dst):
    job = store.submit(a_spec()).id
    for state in WAYS[src]:
        move(store, job, state)
    before = len(store.events(job))

    if (src, dst) in LEGAL:
        move(store, job, dst)
        assert store.get(job).state == dst
        last = store.events(job)[-1]
        assert (last["src"], last["dst"]) == (src, dst)
    else:
        with pytest.raises(sqlite3.IntegrityError, match=r"illegal transition|attempt grows"):
            move(store, job, dst)
        assert store.get(job).state == src
        assert len(store.events(job)) == before


def test_the_database_holds_the_same_table_as_the_code(store):
    assert (len(PAIRS), len(LEGAL)) == (72, 22)
    with store.database.reading() as db:
        rows = db.conn.execute("SELECT src, dst FROM transitions").fetchall()
    assert set(rows) == LEGAL


def test_what_a_person_can_do_is_legal():
    targets = {"hold": "paused", "resume": "queued"}
    for state in STATES:
        for action in actions(state):
            if action in targets:
                assert (state, targets[action]) in LEGAL
            if action == "cancel" and state not in ("stopping",):
                assert (state, "stopping") in LEGAL or (state, "cancelled") in LEGAL


def test_the_database_refuses_two_on_a_device_a_smaller_attempt_and_a_cancel_taken_back(store):
    first, second = store.submit(a_spec()).id, store.submit(a_spec()).id
    for state in WAYS["running"]:
        move(store, first, state)
    store.cancel(first)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        move(store, second, "starting")
    for change, words in (("stop_requested = 'pause'", "taken back"), ("attempt = 0", "attempt")):
        with pytest.raises(sqlite3.IntegrityError, match=words), store.database.writing() as db:
            db.conn.execute(f"UPDATE jobs SET {change} WHERE id = ?", (first,))

"""Ten thousand queued jobs: every question stays short, by the instructions that SQLite executes.

These are the same on every machine, however busy; `studio bench queue` measures by the clock.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import ended_jobs
from jobs.database import Database
from jobs.database_schema import Tables
from jobs.job_queue import JobStore
from studio.home import open_home
from tests.jobs.conftest import begin, take

MANY = 10_000
MOST_STEPS, PER_CALL = 500_000, 100  # about 15 ms


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("many") / "home"
    store = JobStore(open_home(folder))
    spec = {"method": {"name": "lora"}, "train": {"max_steps": 10}}
    store.submit_many({**spec, "name": f"run {number:05}"} for number in range(MANY))
    yield store
    store.close()


@pytest.fixture
def steps(crowded, monkeypatch):
    """Count what SQLite does for the questions asked from here on."""
    counted = [0]
    connect = Database._connect

    def count() -> None:
        counted[0] += PER_CALL

    def counting(self: Database, synchronous: str) -> Tables:
        tables = connect(self, synchronous)
        tables.conn.set_progress_handler(count, PER_CALL)
        return tables

    monkeypatch.setattr(Database, "_connect", counting)
    monkeypatch.setattr(crowded.database, "_readers", [])
    monkeypatch.setattr(crowded.database, "_writers", {})
    return lambda: counted[0]


ASK: dict[str, Callable[[JobStore], object]] = {
    "newest": lambda s: s.list(limit=100),
    "front of the queue": lambda s: s.queue(limit=200),
    "a search": lambda s: s.list(limit=100, search="run 0999"),
    "a search without a hit": lambda s: s.list(limit=100, search="nothing"),
    "counts": lambda s: s.counts(),
    "one by name": lambda s: s.get("run 05000"),
    "run next": lambda s: s.run_next("run 09999"),
    "move between": lambda s: s.move("run 09998", before="run 00005"),
    "shift": lambda s: s.shift("run 05000", 3),
    "submit without a name": lambda s: s.submit({"name": ""}),
    "settle": ended_jobs.follow_up,
    "what lacks memory": lambda s: s.claims.waiting_for_memory(1000),
    "a claim that fits nothing": lambda s: take(s, "x", wanted=["x"]),
}


@pytest.mark.parametrize("question", ASK)
def test_a_question_to_a_long_queue_is_short_work(crowded, steps, question):
    ASK[question](crowded)

    assert steps() < MOST_STEPS


def test_a_claim_from_a_long_queue_is_short_work(crowded, steps):
    claim = begin(crowded)
    crowded.claims.finish(claim, "succeeded")

    assert 0 < steps() < MOST_STEPS


def test_the_counter_sees_what_is_too_much(crowded, steps):
    with crowded.database.reading() as db:
        db.conn.execute("SELECT count(*) FROM jobs a, jobs b WHERE a.id < 300").fetchone()

    assert steps() > MOST_STEPS

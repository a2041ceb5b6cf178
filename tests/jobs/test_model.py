"""Any interleaving keeps the queue's promises: a stateful search and a long random walk.

Hypothesis shrinks what it finds, the walk finds more (in a trial hypothesis alone missed half of
the planted bugs). Both must notice bugs planted on purpose, or they prove nothing.
"""

import os
import random
import sqlite3
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jobs import claims
from jobs import job_queue as store_module
from jobs.claims import Fenced
from jobs.job_queue import JobStore
from studio.errors import StudioError
from studio.home import open_home
from tests.jobs.model import Queue, one_step, walk

pytestmark = [pytest.mark.usefixtures("no_power_cuts"), pytest.mark.timeout(900)]
STEPS = int(os.environ.get("STUDIO_WALK_STEPS", "10000"))


def test_a_long_random_walk_keeps_every_promise(tmp_path):
    walks = 20
    for seed in range(walks):
        store = JobStore(open_home(tmp_path / str(seed)))
        walk(store, steps=STEPS // walks, seed=seed).store.close()


def test_any_interleaving_keeps_every_promise(tmp_path):
    homes = iter(range(10**9))

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.queue = Queue(JobStore(open_home(tmp_path / f"h{next(homes)}")))

        @rule(dice=st.integers(0, 2**32 - 1), times=st.integers(1, 6))
        def go(self, dice: int, times: int) -> None:
            source = random.Random(dice)
            for _ in range(times):
                one_step(self.queue, source)
                self.queue.check()

        @invariant()
        def holds(self) -> None:
            self.queue.check()

        def teardown(self) -> None:
            self.queue.check_all()
            self.queue.store.close()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


ATTEMPT = "attempt = :attempt AND "
PLANTED: dict[str, tuple[Any, str, str, str]] = {
    "claims out of order": (claims, "_STARTABLE", "ORDER BY position, id", "ORDER BY -id"),
    "claims paused jobs too": (
        claims, "_STARTABLE", "WHERE state = 'queued'", "WHERE state IN ('queued', 'paused')",
    ),
    "registers without the attempt": (claims, "_REGISTER", ATTEMPT, ""),
    "registers twice": (claims, "_REGISTER", "pid IS NULL AND ", ""),
    "reports without the attempt": (claims, "_PROGRESS", ATTEMPT, ""),
    "reports before it runs": (
        claims, "_PROGRESS", "('running',", "('starting', 'running',",
    ),
    "ends without the attempt": (
        claims, "_LEAVE", "(attempt = :attempt", "(attempt <> -1",
    ),
    "forgets the intent at an end": (
        claims, "_ACTIVE_ATTEMPT", "SELECT stop_requested", "SELECT NULL",
    ),
    "takes jobs from new owners": (
        claims, "_ACTIVE_ATTEMPT", "attempt = ?", "attempt <> -?",
    ),
    "shuts down other attempts": (claims, "_STOP", ATTEMPT, ""),
    "never gives up": (
        claims, "_COUNT_PROGRESS", "no_progress = ?", "no_progress = 0 * ?",
    ),
    "resumes with old tries": (store_module, "_FRESH_TRIES", "no_progress = 0, ", ""),
    "asks nobody to stop": (claims, "_STOP", "WHERE id = :id", "WHERE id = -:id"),
    "moves too far": (store_module, "_NEIGHBOURS", "MAX(position)", "MIN(position)"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_noticed(tmp_path, monkeypatch, bug):
    module, name, right, wrong = PLANTED[bug]
    statement = getattr(module, name)
    assert right in statement, "the bug could not be planted"
    monkeypatch.setattr(module, name, statement.replace(right, wrong))
    with pytest.raises((AssertionError, StudioError, Fenced, sqlite3.IntegrityError, KeyError)):
        for seed in range(20):
            walk(JobStore(open_home(tmp_path / str(seed))), steps=1000, seed=seed)


def test_a_claim_that_forgets_the_device_is_stopped_by_the_database(tmp_path, monkeypatch):
    """The unique index holds where the statement fails: defence in depth."""
    monkeypatch.setattr(claims, "leased_devices", lambda db: set())
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        walk(JobStore(open_home(tmp_path)), steps=1000, seed=0)

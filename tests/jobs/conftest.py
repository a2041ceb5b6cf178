"""A store in a private home, specs that need no model, and a wait that has an end."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import queue_settings
from jobs.claims import Claim, Slot
from jobs.database import Database
from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.runner_processes import RUNNER, environment
from jobs.supervisor import Supervisor, living
from studio.home import Home
from studio.spec import RunSpec
from tests.jobs.nursery import AVAILABLE, Born, Nursery

FAKE_RUNNER = Path(__file__).with_name("fake_runner.py")
SLOW, FAST = "0.1", "0.005"  # FAKE_PACE of runs that must not end before a test acts, and after


FORKS: list[Nursery] = []
"""The nursery of fake runners and their supervisors, where this system can fork them."""


@pytest.fixture(scope="session", autouse=True)
def fake_runners_are_forked():
    FORKS.extend([Nursery.start("fake")] if AVAILABLE else [])
    yield
    for one in FORKS:
        one.close()


@pytest.fixture
def no_power_cuts(monkeypatch):
    """Thousands of commits need no fsync to be logically right."""
    connect = Database._connect

    def fast(self: Database, synchronous: str) -> Any:
        tables = connect(self, synchronous)
        tables.conn.execute("PRAGMA synchronous = OFF")
        return tables

    monkeypatch.setattr(Database, "_connect", fast)


def a_spec(
    *, name: str = "", steps: int = 20, save: int = 5, seed: int = 0, **train: Any
) -> RunSpec:
    return RunSpec.parse(
        {"name": name, "seed": seed, "train": {"max_steps": steps, "save_steps": save, **train}}
    )


def take(
    store: JobStore, device: str, *, more: Iterable[str] = (),
    wanted: Collection[str] | None = None, **may: Any,
) -> Claim | None:  # fmt: skip
    """Claim the next job that a single slot may start, for this process."""
    return store.claims.claim_next([Slot(device, tuple(more), wanted)], owner=me(), **may)


def begin(store: JobStore, device: str = "cpu", **may: Any) -> Claim:
    """Claim the next job and register its process: this one."""
    claim = take(store, device, **may)
    assert claim is not None
    store.claims.register(claim, me())
    return claim


@contextlib.contextmanager
def held_queue(store: JobStore) -> Iterator[None]:
    """Hold the queue meanwhile, so that the supervisor neither starts nor refuses a job."""
    queue_settings.hold_queue(store)
    try:
        yield
    finally:
        queue_settings.release_queue(store)


def run_one(store: JobStore, state: str = "succeeded", kind: str = "run", **may: Any) -> Claim:
    """Begin the next job and end it at once, in this state and with this kind of error."""
    claim = begin(store, **may)
    store.claims.finish(claim, state, error=(kind, "because") if state == "failed" else None)
    return claim


def end(store: JobStore, job: int, state: str = "succeeded") -> None:
    """Register a job that was claimed, and end it."""
    claim = next(one for one in store.active_claims() if one.job == job)
    store.claims.register(claim, me())
    store.claims.finish(claim, state, error=("run", "because") if state == "failed" else None)


def curve(store: JobStore, job: int, **asked: Any) -> dict[str, list[Any]]:
    """Return the steps (`x`) and losses (`y`) of a run."""
    return store.metrics([job], ["loss"], **asked)["data"]["loss"][str(job)]


def until(true: Callable[[], Any], *, seconds: float = 120) -> Any:
    """Poll until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return value


def run_workers(name: str, home: Home, arguments: list[list[str]]) -> list[Any]:
    """Run programs of `workers.py` at the same time and return what each printed."""
    script = str(Path(__file__).with_name("workers.py"))
    started = [
        subprocess.Popen(
            [sys.executable, script, name, str(home.path), *own],
            stdout=subprocess.PIPE, env=environment(),
        )
        for own in arguments
    ]  # fmt: skip
    answers = [worker.communicate(timeout=90)[0] for worker in started]
    assert [worker.returncode for worker in started] == [0] * len(started)
    return [json.loads(answer) for answer in answers]


@contextlib.contextmanager
def supervising(home: Home, *, spare: bool = False, **options: Any) -> Iterator[Supervisor]:
    """Run a supervisor of fake runners in a thread of this process."""
    command = RUNNER if FORKS else (sys.executable, str(FAKE_RUNNER))
    running = Supervisor(home, slots=["cpu"], command=command, spare=spare, **options)
    thread = threading.Thread(target=running.run)
    with FORKS[0].replaces_spawn() if FORKS else contextlib.nullcontext():
        thread.start()
        try:
            yield running
        finally:
            running.stop()
            thread.join()
            for child in running.runners.children.values():
                child.wait(timeout=60)


def start_supervisor(home: Home) -> subprocess.Popen[bytes] | Born:
    """Start the real supervisor process with fake runners, and wait until it is there."""
    variables, words = environment() | {"STUDIO_SPARE": "1"}, ["--home", str(home.path)]
    if FORKS:
        log = Path(os.devnull)
        child = FORKS[0].born(["jobs.supervisor", *words], log, variables=variables)
    else:
        script = str(Path(__file__).with_name("fake_supervisor.py"))
        child = subprocess.Popen(
            [sys.executable, script, *words], env=variables, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    until(lambda: (found := living(home)) is not None and found.pid == child.pid)
    return child

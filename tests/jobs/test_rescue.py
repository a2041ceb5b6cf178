"""Who is ended and who is left alone: strangers who have a pid now, siblings that are to go on."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from jobs.processes import kill_session, me, of, session_members
from jobs.rescue import Rescue
from jobs.spawning import Runners
from jobs.store import JobStore
from tests.jobs.conftest import a_spec, until

SLEEP = "import time; time.sleep(600)"
WITH_A_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}])"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("other", [{"boot_id": "restored"}, {"started": 1}])
def test_a_stranger_who_has_the_pid_of_a_dead_runner_is_left_alone(
    store: JobStore, sleeper: subprocess.Popen[bytes], other: dict[str, Any]
) -> None:
    job = store.submit(a_spec()).id
    claim = store.claims.claim("cpu", owner=me())
    assert claim is not None
    store.claims.register(claim, replace(of(sleeper.pid), **other))

    Rescue(store, Runners(store.home)).look()

    assert store.get(job).state == "queued"
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.3)


def test_what_a_dead_runner_started_is_ended() -> None:
    leader = subprocess.Popen([sys.executable, "-c", WITH_A_CHILD], start_new_session=True)
    identity = of(leader.pid)
    leader.wait()
    (child,) = session_members(leader.pid)

    kill_session(identity, hard=True)

    until(lambda: not psutil.pid_exists(child) or of(child).started == -1)

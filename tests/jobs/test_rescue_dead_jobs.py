"""Who is ended and who is left alone: strangers who have a pid now, siblings that are to go on."""

import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from jobs import process_identity, rescue_dead_jobs
from jobs.process_identity import kill_session, me, of, session_members
from jobs.rescue_dead_jobs import Rescue
from jobs.runner_processes import Runners
from tests.jobs.conftest import a_spec, until

SLEEP = "import time; time.sleep(600)"
WITH_A_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}])"


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("other", [{"boot_id": "restored"}, {"started": 1}])
def test_a_stranger_who_has_the_pid_of_a_dead_runner_is_left_alone(store, sleeper, other):
    job = store.submit(a_spec()).id
    claim = store.claims.claim("cpu", owner=me())
    assert claim is not None
    store.claims.register(claim, replace(of(sleeper.pid), **other))

    Rescue(store, Runners(store.home)).look()

    assert store.get(job).state == "queued"
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.3)


def test_what_a_dead_runner_started_is_ended():
    leader = subprocess.Popen([sys.executable, "-c", WITH_A_CHILD], start_new_session=True)
    identity = of(leader.pid)
    leader.wait()
    (child,) = session_members(leader.pid)

    kill_session(identity, hard=True)

    until(lambda: not psutil.pid_exists(child) or of(child).started == -1)


@pytest.fixture
def siblings(store, sleeper, monkeypatch):
    """Two runs of one process that obeys nothing; patience is over at once."""
    monkeypatch.setattr(rescue_dead_jobs, "ASK_AGAIN_SECONDS", -1.0)
    monkeypatch.setitem(rescue_dead_jobs.KILL_SECONDS, "cancel", -1.0)
    jobs = [job.id for job in store.submit_many([a_spec(), a_spec()])]
    for device in ("cpu", "cpu#2"):
        claim = store.claims.claim(device, owner=me())
        assert claim is not None
        store.claims.register(claim, of(sleeper.pid))
    return jobs


def test_a_process_is_pressed_only_when_none_of_its_siblings_is_to_go_on(store, sleeper, siblings):
    looking = Rescue(store, Runners(store.home))
    store.cancel(siblings[0])
    looking.look()
    assert [store.get(job).state for job in siblings] == ["stopping", "running"]
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.3)

    store.cancel(siblings[1])
    looking.look()

    assert sleeper.wait(timeout=10) == -signal.SIGKILL


def test_a_process_that_hangs_is_ended_with_its_siblings(store, sleeper, siblings, monkeypatch):
    monkeypatch.setattr(rescue_dead_jobs, "SHARED_KILL_SECONDS", -1.0)
    looking = Rescue(store, Runners(store.home))
    store.cancel(siblings[0])
    looking.look()
    assert sleeper.wait(timeout=10) == -signal.SIGKILL

    looking.look()

    assert [store.get(job).state for job in siblings] == ["cancelled", "queued"]


def test_on_windows_a_process_is_known_by_its_creation_time(monkeypatch):
    """The time since boot differs a little from process to process there."""

    def no_proc(self, *args, **kwargs):
        raise FileNotFoundError(self)

    monkeypatch.setattr(process_identity.Path, "read_text", no_proc)
    monkeypatch.setattr(process_identity.sys, "platform", "win32")
    process_identity.boot_id.cache_clear()
    try:
        seen = []
        for boot in (1_000_299.9, 1_000_300.1):
            monkeypatch.setattr(process_identity.psutil, "boot_time", lambda boot=boot: boot)
            process_identity.boot_id.cache_clear()
            seen.append(process_identity.me())
        assert seen[0] == seen[1] and seen[0].alive()
        assert not replace(seen[0], started=seen[0].started + 1).alive()
    finally:
        process_identity.boot_id.cache_clear()

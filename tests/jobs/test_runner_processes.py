"""Who is ended and who is left alone: strangers who have a pid now, siblings that are to go on."""

import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from jobs import processes, runner_processes
from jobs.processes import kill_session, of, session_members
from jobs.runner_processes import Rescue, Runners
from tests.jobs.conftest import a_spec, take, until

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
    claim = take(store, "cpu")
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
    monkeypatch.setattr(runner_processes, "ASK_AGAIN_SECONDS", -1.0)
    monkeypatch.setitem(runner_processes.KILL_SECONDS, "cancel", -1.0)
    jobs = [job.id for job in store.submit_many([a_spec(), a_spec()])]
    for device in ("cpu", "cpu#2"):
        claim = take(store, device)
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
    monkeypatch.setattr(runner_processes, "SHARED_KILL_SECONDS", -1.0)
    looking = Rescue(store, Runners(store.home))
    store.cancel(siblings[0])
    looking.look()
    assert sleeper.wait(timeout=10) == -signal.SIGKILL

    looking.look()

    assert [store.get(job).state for job in siblings] == ["cancelled", "queued"]


@pytest.fixture
def elsewhere(monkeypatch):
    """A system without `/proc`, whose clock and so time of boot a test moves."""

    def no_proc(self, *args, **kwargs):
        raise FileNotFoundError(self)

    def system(platform, *, clock_moved=0.0):
        """Be a process of this system that imported psutil before its clock was moved."""

        def create_time(self, monotonic=False, fast_only=False):
            # As the system keeps it; that of macOS is adjusted if it is not to be monotonic.
            return created + (clock_moved if platform == "darwin" and not monotonic else 0)

        monkeypatch.setattr(native, "create_time", create_time)
        monkeypatch.setattr(psutil, "boot_time", lambda: 1_000_299.9 + clock_moved)
        monkeypatch.setattr(processes.sys, "platform", platform)
        monkeypatch.setattr(psutil, "WINDOWS", platform == "win32")
        processes.boot_id.cache_clear()
        return processes.me()

    native, created = type(psutil.Process()._proc), psutil.Process().create_time()
    monkeypatch.setattr(processes.Path, "read_text", no_proc)
    yield system
    monkeypatch.undo()
    processes.boot_id.cache_clear()


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_a_clock_that_is_set_changes_no_identity(elsewhere, platform, monkeypatch):
    def sysctl(command, **_):
        assert command[-1] == "kern.bootsessionuuid"
        return SimpleNamespace(stdout="5D2F-BOOT\n")

    monkeypatch.setattr(processes.subprocess, "run", sysctl)
    before = elsewhere(platform)
    for moved in (0.2, -3.0, 3 * 3600.0):  # the time since boot drifts, a clock is set
        after = elsewhere(platform, clock_moved=moved)
        assert after == before and before.alive()
    assert before.boot_id == {"win32": "windows", "darwin": "5D2F-BOOT"}[platform]
    assert not replace(before, started=before.started + 1).alive()


def test_a_mac_that_does_not_say_its_boot_knows_processes_by_their_creation(elsewhere, monkeypatch):
    def no_sysctl(*_, **__):
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(processes.subprocess, "run", no_sysctl)
    before = elsewhere("darwin")
    assert elsewhere("darwin", clock_moved=3 * 3600.0) == before and before.alive()


def test_on_windows_a_stop_that_takes_long_is_no_end(store, sleeper, siblings, monkeypatch):
    """Each signal ends a process at once there, so its request alone asks it."""
    monkeypatch.setattr(processes.sys, "platform", "win32")
    looking = Rescue(store, Runners(store.home))
    for job in siblings:
        store.pause(job)
    looking.look()
    looking.look()
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.3)

    monkeypatch.setitem(runner_processes.KILL_SECONDS, "pause", -1.0)
    looking.look()

    assert sleeper.wait(timeout=10) == -signal.SIGTERM

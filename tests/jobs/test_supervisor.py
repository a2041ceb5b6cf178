"""The supervisor and its runners as real processes; only the training is arithmetic."""

import contextlib
import errno
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs import runner_processes, supervisor, webhook
from jobs.job_queue import JobStore
from jobs.job_record import LEGAL
from jobs.processes import Identity, boot_id, me, of, session_members
from jobs.runner_processes import environment
from jobs.supervisor import living
from studio import offline
from tests.jobs.conftest import (
    FAST,
    SLOW,
    a_spec,
    begin,
    curve,
    start_supervisor,
    supervising,
    until,
)
from tests.jobs.fake_runner import fake_loss


def losses(store: JobStore, job: int) -> list[float]:
    series = curve(store, job)
    assert series["x"] == list(range(1, len(series["x"]) + 1))
    return series["y"]


@contextlib.contextmanager
def another_supervisor(store: JobStore) -> Iterator[subprocess.Popen[bytes]]:
    """Start a supervisor of its own process, which ends with the block."""
    started = start_supervisor(store.home)
    yield started
    started.terminate()
    started.wait(timeout=30)


def undisturbed(seed: int, steps: int) -> list[float]:
    return [fake_loss(seed, step) for step in range(1, steps + 1)]


def test_jobs_run_in_order_to_their_end(store):
    first = store.submit(a_spec(steps=12, seed=1)).id
    second = store.submit(a_spec(steps=5, seed=2)).id
    with supervising(store.home):
        until(lambda: store.get(second).state == "succeeded")
    job = store.get(first)
    assert (job.state, job.step, job.total_steps, job.attempt) == ("succeeded", 12, 12, 1)
    assert losses(store, first) == undisturbed(1, 12)
    assert losses(store, second) == undisturbed(2, 5)
    assert job.result["rows"] == {
        "read": 3, "kept": 2, "dropped": 1, "truncated": 0, "format": "",
    }  # fmt: skip
    assert job.result["first_loss"] == fake_loss(1, 1)
    assert Path(job.result["adapter"]).is_dir()
    assert (store.home.run(first) / "spec.yaml").is_file()
    assert "attempt 1 on cpu" in store.log_tail(first)
    ways = [(event["src"], event["dst"]) for event in store.events(first)]
    assert ways == [
        (None, "queued"), ("queued", "starting"), ("starting", "running"),
        ("running", "succeeded"),
    ]  # fmt: skip
    assert job.finished <= store.get(second).finished


def test_a_killed_runner_goes_on_from_its_checkpoint(store, monkeypatch):
    monkeypatch.setenv("FAKE_PACE", SLOW)
    job = store.submit(a_spec(steps=60, save=5)).id
    with supervising(store.home):
        until(lambda: store.get(job).step >= 20)
        monkeypatch.setenv("FAKE_PACE", FAST)
        os.kill(store.get(job).pid, signal.SIGKILL)
        until(lambda: store.get(job).state == "succeeded")
    assert losses(store, job) == undisturbed(0, 60)
    died, finished = store.attempts(job)
    assert (died["outcome"], finished["outcome"]) == ("interrupted", "succeeded")
    assert "SIGKILL" in died["why"]
    assert finished["from_step"] >= 15
    assert {(e["src"], e["dst"]) for e in store.events(job)} - {(None, "queued")} <= LEGAL


def test_pause_saves_and_resume_goes_on(store):
    job = store.submit(a_spec(steps=400, save=1000)).id
    with supervising(store.home):
        until(lambda: store.get(job).step >= 5)
        pid = store.get(job).pid
        store.pause(job)
        until(lambda: store.get(job).state == "paused")
        until(lambda: not of(pid).started > 0)
        at = store.get(job).step
        assert store.checkpoints(job)[-1]["step"] == at
        store.resume(job)
        until(lambda: store.get(job).step > at + 3)
        store.cancel(job)
        until(lambda: store.get(job).state == "cancelled")
    assert store.attempts(job)[1]["from_step"] == at
    assert losses(store, job) == undisturbed(0, store.get(job).step)


@pytest.mark.parametrize(
    ("fault", "state", "kind", "words"),
    [
        ("crash", "failed", "studio", "ZeroDivisionError: secret detail"),
        ("diverge", "failed", "diverged", "Lower the learning rate"),
        ("full", "paused", "disk_full", "no room for step-3"),
    ],
)
def test_each_fault_ends_in_its_state_with_one_sentence(
    store, monkeypatch, fault, state, kind, words
):
    monkeypatch.setenv("FAKE_FAULT", f"{fault}@3")
    job = store.submit(a_spec(steps=5)).id
    with supervising(store.home):
        # As it ended: where there is room again, a full disk's run is queued at once.
        ended = until(lambda: now if (now := store.get(job)).state == state else None)
    assert ended.error_kind == kind
    assert words in ended.error_text
    assert "Traceback" not in ended.error_text
    assert "second line" not in ended.error_text
    assert ended.step == 2
    if fault == "crash":
        assert "Traceback" in store.log_tail(job)


def test_a_run_that_dies_at_the_same_step_gives_up(store, monkeypatch):
    monkeypatch.setenv("FAKE_FAULT", "die@3")
    job = store.submit(a_spec(steps=5, save=100)).id
    with supervising(store.home, limit=2):
        until(lambda: store.get(job).error_kind == "interrupted")
    ended = store.get(job)
    assert (ended.state, ended.attempt) == ("interrupted", 2)
    assert "ended 2 times" in ended.error_text


def test_a_run_that_does_not_stop_is_killed(store, monkeypatch):
    monkeypatch.setenv("FAKE_FAULT", "hang@3")
    monkeypatch.setattr(runner_processes, "ASK_AGAIN_SECONDS", 0.5)
    monkeypatch.setitem(runner_processes.KILL_SECONDS, "cancel", 1.5)
    job = store.submit(a_spec(steps=5)).id
    with supervising(store.home):
        until(lambda: store.get(job).step >= 2)
        pid = store.get(job).pid
        store.cancel(job)
        until(lambda: store.get(job).state == "cancelled")
        assert session_members(pid) == []


def test_a_runner_that_cannot_start_fails_with_a_sentence(store):
    job = store.submit(a_spec()).id
    broken = supervisor.Supervisor(
        store.home, slots=["cpu"], command=(sys.executable, "-c", "raise SystemExit(9)"),
        spare=False,
    )  # fmt: skip
    broken.look()
    until(lambda: (broken.look(), store.get(job).state == "failed")[1])
    assert "could not start (its process ended with code 9)" in store.get(job).error_text
    broken.store.close()


def test_a_silent_runner_is_not_taken_for_dead(store):
    job = store.submit(a_spec(steps=1000)).id
    with supervising(store.home):
        until(lambda: store.get(job).step >= 3)
        pid = store.get(job).pid
        os.kill(pid, signal.SIGSTOP)  # a laptop that sleeps
        time.sleep(2.5)
        asleep = store.get(job)
        os.kill(pid, signal.SIGCONT)
        assert (asleep.state, asleep.attempt, asleep.pid) == ("running", 1, pid)
        until(lambda: store.get(job).step > asleep.step)
        store.cancel(job)
        until(lambda: store.get(job).state == "cancelled")
    assert store.get(job).attempt == 1


def test_a_spare_takes_the_job(store, monkeypatch):
    def spares():
        return {row["pid"] for row in store.processes() if row["role"] == "spare"}

    monkeypatch.setattr(runner_processes, "SPARE_NEEDS_BYTES", 0)
    with supervising(store.home, spare=True):
        (pid,) = until(spares)
        job = store.submit(a_spec(steps=200)).id
        until(lambda: store.get(job).state == "running")
        assert store.get(job).pid == pid
        store.cancel(job)
        until(lambda: store.get(job).state == "cancelled")
        until(lambda: spares() - {pid})


def test_a_killed_supervisor_is_replaced_and_adopts(store):
    job = store.submit(a_spec(steps=250)).id
    first = start_supervisor(store.home)
    until(lambda: store.get(job).step >= 5)
    before = store.get(job)
    spare = next((row["pid"] for row in store.processes() if row["role"] == "spare"), None)
    first.kill()
    first.wait()
    until(lambda: store.get(job).step > before.step + 5)  # nobody is needed while it runs
    with another_supervisor(store):
        until(lambda: store.get(job).state == "succeeded")
    after = store.get(job)
    assert (after.attempt, after.step) == (1, 250)
    assert losses(store, job) == undisturbed(0, 250)
    if spare is not None:
        until(lambda: of(spare).started == -1)  # a spare ends with its supervisor


def test_both_killed_at_once_go_on(store, monkeypatch):
    monkeypatch.setenv("FAKE_PACE", SLOW)
    job = store.submit(a_spec(steps=60)).id
    first = start_supervisor(store.home)
    until(lambda: store.get(job).step >= 10)
    first.kill()
    os.kill(store.get(job).pid, signal.SIGKILL)
    first.wait()
    monkeypatch.setenv("FAKE_PACE", FAST)
    with another_supervisor(store):
        until(lambda: store.get(job).state == "succeeded")
    assert store.get(job).attempt == 2
    assert losses(store, job) == undisturbed(0, 60)


def test_stopping_the_supervisor_lets_runs_save_and_come_back(store, monkeypatch):
    monkeypatch.setenv("FAKE_PACE", SLOW)
    job = store.submit(a_spec(steps=100, save=1000)).id
    first = start_supervisor(store.home)
    until(lambda: store.get(job).step >= 5)
    assert supervisor.stop(store.home)
    first.wait(timeout=30)
    waiting = store.get(job)
    assert waiting.state in ("interrupted", "queued")
    assert store.checkpoints(job)[-1]["step"] == waiting.step
    assert store.supervisor() is None
    assert not supervisor.stop(store.home)
    monkeypatch.setenv("FAKE_PACE", FAST)
    with another_supervisor(store):
        until(lambda: store.get(job).state == "succeeded")
    assert losses(store, job) == undisturbed(0, 100)


def test_on_windows_stopping_the_supervisor_lets_runs_save_too(store, monkeypatch):
    """Its `os.kill` ends a process at once: no handler runs, and what it started lives on."""
    monkeypatch.setenv("FAKE_PACE", SLOW)
    job = store.submit(a_spec(steps=600, save=1000)).id
    first = start_supervisor(store.home)
    until(lambda: store.get(job).step >= 5)
    pid, kill = store.get(job).pid, os.kill
    monkeypatch.setattr(supervisor.os, "kill", lambda pid, _: kill(pid, signal.SIGKILL))
    threading.Thread(target=first.wait).start()
    assert supervisor.stop(store.home)
    waiting = store.get(job)
    assert waiting.state == "interrupted"
    assert store.checkpoints(job)[-1]["step"] == waiting.step
    until(lambda: of(pid).started == -1)
    assert supervisor.living(store.home) is None


def test_on_windows_a_supervisor_starts_though_a_locked_byte_cannot_be_written(home, monkeypatch):
    windows = Windows()
    monkeypatch.setattr(supervisor, "FileLock", windows.file_locks(monkeypatch).FileLock)
    monkeypatch.setattr(Path, "write_text", windows.writes(Path.write_text))
    monkeypatch.setattr(Path, "read_text", windows.reads(Path.read_text))
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging.Formatter, "converter", logging.Formatter.converter)
    monkeypatch.setenv("STUDIO_SPARE", "0")
    seen = []
    monkeypatch.setattr(supervisor.Supervisor, "look", lambda self: seen.append(living(home)))
    supervisor.main(["--home", str(home.path), "--idle-seconds", "0"])
    assert seen[0] == me()
    assert living(home) is None

    lock, other = (windows.file_locks(monkeypatch).FileLock(home.path / "lock") for _ in range(2))
    assert lock.acquire() and not other.acquire()
    lock.release()
    assert other.acquire() and not lock.acquire()
    other.release()


class Windows:
    """Byte locks as Windows has them: through any other handle, what is locked is out of reach."""

    def __init__(self) -> None:
        self.LK_NBLCK, self.LK_UNLCK = 2, 0
        self.locked: dict[tuple[int, int], int] = {}  # file and byte to handle

    def file_locks(self, monkeypatch):
        """Return our module as it is there."""
        monkeypatch.setattr(sys, "platform", "win32")
        monkeypatch.setitem(sys.modules, "msvcrt", self)
        spec = importlib.util.find_spec("jobs.processes")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "platform", "linux")
        return module

    def locking(self, handle: int, mode: int, count: int) -> None:
        place = os.lseek(handle, 0, os.SEEK_CUR)
        for byte in range(place, place + count):
            key = (os.fstat(handle).st_ino, byte)
            if mode == self.LK_UNLCK:
                assert self.locked.pop(key) == handle
            elif self.locked.setdefault(key, handle) != handle:
                raise PermissionError(errno.EACCES, "Permission denied")

    def refuse(self, path: Path, length: int) -> None:
        file = path.stat().st_ino if path.exists() else None
        if any(inode == file and byte < length for inode, byte in self.locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def writes(self, real):
        def write_text(path, text, *args, **kwargs):
            self.refuse(path, max(len(text), path.stat().st_size if path.exists() else 0))
            return real(path, text, *args, **kwargs)

        return write_text

    def reads(self, real):
        def read_text(path, *args, **kwargs):
            self.refuse(path, path.stat().st_size if path.exists() else 0)
            return real(path, *args, **kwargs)

        return read_text


def test_two_supervisors_cannot_both_run(store):
    script = str(Path(__file__).with_name("fake_supervisor.py"))
    with another_supervisor(store) as first:
        second = subprocess.run(
            [sys.executable, script, "--home", str(store.home.path)],
            env=environment(), capture_output=True, timeout=60, text=True,
        )  # fmt: skip
        assert second.returncode == 0
        assert "already here" in second.stderr
        assert supervisor.ensure_running(store.home) == first.pid


def test_an_idle_supervisor_leaves_unless_a_page_is_open(store):
    idle = supervisor.Supervisor(store.home, slots=["cpu"], idle_seconds=0.2, spare=False)
    idle.run()  # returns by itself
    store.announce("web")
    with supervising(store.home, idle_seconds=0.1):
        until(store.supervisor)
        time.sleep(0.6)
        assert store.supervisor() is not None


@pytest.mark.parametrize("owed", ["webhook", "disk"])
def test_an_idle_supervisor_stays_while_something_is_owed(store, monkeypatch, owed):
    here = supervisor.Supervisor(store.home, slots=["cpu"], idle_seconds=0, spare=False)
    time.sleep(0.01)
    assert here._idle_for() > 0
    if owed == "webhook":
        monkeypatch.setattr(webhook, "send", lambda *_: False)
        webhook.choose(store, "http://127.0.0.1:9/1")
        store.cancel(store.submit(a_spec()).id)
        here.webhook.look()
        here.webhook._thread.join()
    else:
        store.submit(a_spec())
        store.claims.ask_pause(claim := begin(store), why="full")
        store.claims.stopped(claim, error=("disk_full", "The disk is full."))
    before = time.monotonic()
    assert here._idle_for() < 1 and here._busy >= before
    here.wakeup.close()
    here.store.close()


def test_a_supervisor_whose_home_is_gone_leaves(home):
    lost = supervisor.Supervisor(home, slots=["cpu"], spare=False)
    home.path.rename(home.path.with_name("moved"))
    lost.run()  # returns by itself


def test_a_download_waits_for_the_end_of_offline(store, monkeypatch):
    monkeypatch.setattr(offline, "is_offline", lambda _: True)
    job = store.submit({"repo": "org/name"}, kind="download").id
    here = supervisor.Supervisor(store.home, slots=["cpu"], spare=False)
    monkeypatch.setattr(here.runners, "start", lambda *_: None)
    here.look()
    assert (store.get(job).state, store.get(job).waits) == ("queued", supervisor.OFFLINE)
    monkeypatch.setattr(offline, "is_offline", lambda _: False)
    here.look()
    assert store.get(job).state == "starting"
    here.wakeup.close()
    here.store.close()


def test_an_identity_is_no_mere_pid_and_a_zombie_is_dead():
    here = me()
    assert here.alive()
    assert Identity.parse(str(here)) == here
    assert not Identity(here.pid, here.started + 1, here.boot_id).alive(), "a reused pid"
    assert not Identity(here.pid, here.started, "another boot").alive()
    assert boot_id() == here.boot_id
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert of(child.pid).started == -1
    child.wait()


def test_an_import_runs_beside_training(store, monkeypatch):
    monkeypatch.setenv("FAKE_PACE", "0.2")
    run = store.submit(a_spec(steps=600)).id
    with supervising(store.home):
        until(lambda: store.get(run).step >= 1)
        wanted = {"data": {"path": "starter:pirate"}, "dataset": "ahoy"}
        job = store.submit(wanted, kind="import").id
        until(lambda: store.get(job).state == "succeeded")
        assert store.get(run).state == "running"
        assert (
            store.get(job).device_wanted == "files" and store.get(job).result["dataset"] == "ahoy"
        )
        store.cancel(run)
        until(lambda: store.get(run).state == "cancelled")
    assert (store.home.datasets / "ahoy" / "dataset.json").is_file()

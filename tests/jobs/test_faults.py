"""Faults on purpose: full and read-only disks, a busy or spoiled database, clocks that jump."""

import errno
import logging
import os
import random
import re
import resource
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import database, processes, progress_reporter, runner, supervisor
from jobs.disk_usage import shortage
from jobs.job_queue import JobStore
from jobs.job_record import Job, seconds_left
from jobs.run_curves import Progress
from jobs.supervisor import Supervisor
from studio.errors import DiskFull, HomeError
from studio.home import is_whole, open_home, publishing
from studio.training.training_events import Sampled
from tests.jobs.conftest import a_spec, begin, supervising, until


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB, where this machine lets us mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.name == "nt" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, *, leave: int = 0) -> Path:
    ballast = place / "ballast"
    free = os.statvfs(place)
    with ballast.open("wb") as file:
        try:
            for _ in range((free.f_bavail * free.f_frsize - leave) // 4096):
                file.write(b"\0" * 4096)
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast


def test_a_really_full_disk_is_a_sentence_and_loses_nothing(small_disk):
    home = open_home(small_disk / "home")
    store = JobStore(home)
    kept = store.submit(a_spec(name="kept")).id
    claim = begin(store)
    folder = home.run(kept) / "checkpoints" / "step-00000001"
    with publishing(folder) as temporary:
        (temporary / "weights").write_bytes(os.urandom(100_000))
    ballast = fill(small_disk)
    with pytest.raises(DiskFull), publishing(folder.with_name("step-00000002")) as temporary:
        (temporary / "weights").write_bytes(os.urandom(100_000))
    with pytest.raises(DiskFull, match="is full"):
        for step in range(2000):
            rows = [("loss", step * 100 + n, 1.0, 0.0) for n in range(100)]
            store.claims.report(claim, Progress(metrics=rows))
    assert is_whole(folder) and not list(folder.parent.glob(".tmp-*"))
    assert re.match(r"Only [\d.]+ (B|KiB) are free", str(shortage(home.path)))
    ballast.unlink()
    store.submit(a_spec(name="after"))
    with store.database.reading() as db:
        assert db.conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert {job.name for job in store.list()} == {"kept", "after"}
    store.close()


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("I/O error: No space left on device (os error 28)"),  # of safetensors
    OSError(errno.EDQUOT, "Disk quota exceeded"),
])  # fmt: skip
def test_a_job_that_filled_a_disk_waits_for_more_space_than_it_left_there(
    store, tmp_path, monkeypatch, error
):
    """What it could not write is gone again, so the disk is as empty as before it started."""
    other = tmp_path / "other disk"
    other.mkdir()
    free = {store.home.path: 50 << 30, other: 10 << 30}
    monkeypatch.setattr("jobs.disk_usage.free_bytes", lambda folder: free[folder])
    monkeypatch.setattr(
        runner.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder])
    )
    job = store.submit(a_spec()).id
    store.home.run(job).mkdir()

    def fill_up(step: int = 0) -> Job:
        """Make an attempt that saves a step, then fills the disk; look if it may start again."""
        attempt = runner.Attempt(store, begin(store), logging.getLogger("of a test"))
        if step:
            with publishing(store.home.run(job) / "checkpoints" / f"step-{step:08d}") as folder:
                (folder / "state.json").write_text("{}")
        attempt.reporter.start()
        with pytest.raises(DiskFull) as full, publishing(other / "out") as folder:
            (folder / "half").write_bytes(b"1")
            raise error
        attempt.fail(full.value)
        supervisor.resume_paused_by_full_disk(store)
        return store.get(job)

    def make_room() -> str:
        free[other] += 1 << 30
        supervisor.resume_paused_by_full_disk(store)
        return store.get(job).state

    failed = fill_up()
    assert (failed.state, failed.error_kind, failed.attempt) == ("paused", "disk_full", 1)
    free[store.home.path] += 100 << 30
    supervisor.resume_paused_by_full_disk(store)
    assert store.get(job).state == "paused", "that is another disk"
    assert make_room() == "queued"
    assert fill_up(step=5).no_progress == 0
    assert make_room() == "queued"
    for tries in (1, 2):
        assert fill_up().no_progress == tries
        assert make_room() == "queued"
    assert (fill_up().no_progress, make_room()) == (3, "paused"), "only the user resumes it now"
    assert store.resume(job).state == "queued"
    assert fill_up().no_progress == 1


@pytest.fixture
def short_files():
    """Writes behind the first 64 KiB of a file fail, as on a disk with an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("reason", "wanted", "words"),
    [(None, HomeError, "reports an error"), (errno.EDQUOT, DiskFull, "is full")],
)
def test_a_disk_that_fails_at_a_write_of_the_database_is_a_sentence(
    store, monkeypatch, short_files, reason, wanted, words
):
    def refuse(**_):
        raise OSError(reason, "Disk quota exceeded")

    if reason:
        monkeypatch.setattr(database.tempfile, "TemporaryFile", refuse)
    with pytest.raises(wanted, match=words):
        store.submit({"name": "", "notes": "x" * (1 << 20)})
    assert not store.list()


@pytest.mark.parametrize("error", [
    sqlite3.OperationalError("disk I/O error"), HomeError("busy"), OSError(errno.EIO, "I/O error"),
])  # fmt: skip
def test_a_run_and_the_queue_outlive_a_database_that_fails_for_a_while(store, monkeypatch, error):
    monkeypatch.setattr(progress_reporter, "BEAT_SECONDS", 0.01)
    failures = 3

    def failing(real):
        def call(*args, **kwargs):
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise error
            return real(*args, **kwargs)

        return call

    job = store.submit(a_spec(steps=2))
    claim = begin(store)
    reporter = progress_reporter.Reporter(store, claim)
    store.claims.report = failing(store.claims.report)
    reporter.record(Sampled(step=1, prompt="say", text="word"))
    reporter.start()
    until(lambda: store.samples(job.id), seconds=20)
    reporter.close()
    assert failures < 0
    store.claims.finish(claim, "succeeded")  # a supervisor that ends waits for what runs

    failures = 2
    monkeypatch.setattr(supervisor, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(Supervisor, "look", failing(Supervisor.look))
    with supervising(store.home):
        until(lambda: processes.wake(store.home.state) or failures < 0, seconds=20)


WRITES = ("open", "fsync", "replace", "mkdir")


@pytest.mark.parametrize("call", WRITES)
def test_a_disk_that_fills_at_any_write_of_a_checkpoint_never_tears_it(tmp_path, monkeypatch, call):
    """The n-th call of a kind finds no room: the old checkpoint stays whole, or the new is."""
    target, failed = tmp_path / "step-00000001", 0

    def write(content: bytes) -> None:
        with publishing(target) as temporary:
            for name in ("a", "b"):
                handle = os.open(temporary / name, os.O_WRONLY | os.O_CREAT)
                os.write(handle, content)
                os.close(handle)

    write(b"old")
    for number in range(1, 9):
        count = 0
        real: Callable[..., object] = getattr(os, call)

        def full(*arguments: object, real: Callable[..., object] = real, number: int = number,
                 **named: object) -> object:  # fmt: skip
            nonlocal count
            if call == "open" and not int(str(arguments[1])) & (os.O_WRONLY | os.O_RDWR):
                return real(*arguments, **named)  # reading needs no room
            count += 1
            if count == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            try:
                write(b"new")
            except DiskFull:
                failed += 1
        if not target.exists():  # between the two renames: the next start puts the old one back
            from studio.home import sweep

            sweep(tmp_path)
        assert is_whole(target)
        assert (target / "a").read_bytes() in (b"old", b"new")
        assert not list(tmp_path.glob(".tmp-*"))
    assert failed


def test_a_home_that_cannot_be_written_is_refused_in_a_sentence(tmp_path, monkeypatch):
    def read_only(self: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    home = open_home(tmp_path / "home")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", read_only)
        with pytest.raises(HomeError, match=r"cannot be written \(Read-only file system\)"):
            open_home(home.path)
    JobStore(home).close()
    connection = sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)
    with pytest.raises(HomeError, match="Check its permissions"):
        with database.plain_errors(home.database):
            connection.execute("DELETE FROM jobs")
    connection.close()


def test_a_file_system_that_became_read_only_is_refused_in_a_sentence(small_disk):
    home = open_home(small_disk / "home")
    JobStore(home).close()
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    if subprocess.run(remount, capture_output=True, check=False).returncode:
        pytest.skip("it cannot be made read-only here")
    with pytest.raises(HomeError, match="cannot be written"):
        JobStore(open_home(home.path))


@pytest.mark.parametrize("spoil", ["a byte", "a missing file", "a missing manifest", "its end"])
def test_a_spoiled_newest_checkpoint_is_passed_over_for_the_one_before(store, spoil):
    job = store.submit(a_spec()).id
    claim = begin(store)
    store.claims.report(claim, Progress(step=10))
    for step in (5, 10):
        newest = store.home.run(job) / "checkpoints" / f"step-{step:08d}"
        with publishing(newest) as folder:
            (folder / "state.json").write_text(f'{{"step": {step}}}')
    store.pause(job)
    store.claims.stopped(claim)
    state = newest / "state.json"
    if spoil == "a byte":
        raw = state.read_bytes()
        state.write_bytes(raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:])
    elif spoil == "its end":
        state.write_bytes(state.read_bytes()[:-3])
    else:
        (state if spoil == "a missing file" else newest / "MANIFEST.json").unlink()
    assert store.resume(job).why == "goes on from step 5"


def test_a_database_that_stays_busy_is_a_sentence_and_the_queue_goes_on_after(home, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.3)
    store = JobStore(home)
    job = store.submit(a_spec(steps=2)).id
    other = sqlite3.connect(home.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HomeError, match="stayed locked by another program"):
        store.submit(a_spec())
    with supervising(home):
        time.sleep(1.0)  # it looks, cannot write, and stays
        assert store.get(job).state == "queued"
        other.execute("ROLLBACK")
        processes.wake(home.state)
        until(lambda: store.get(job).state == "succeeded")
    other.close()
    store.close()


def test_a_spoiled_page_is_found_and_named(home):
    store = JobStore(home)
    for _ in range(200):
        store.submit({"name": ""})
    store.close()
    with home.database.open("r+b") as file:
        for page in range(2, 30):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(HomeError, match="is damaged .* move it away|studio restore"):
        again = JobStore(home)
        try:
            for job in again.list():
                again.get(job.id)
        finally:
            again.close()


MOUNTS = """/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
//nas/data /mnt/with\\040space cifs rw 0 0
me@box: /home/me/local fuse.sshfs rw 0 0
tmpfs /home/fast tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/home/ann/studio", "nfs4"), ("/mnt/with space/x", "cifs"), ("/home/me/local", "fuse.sshfs"),
     ("/home/fast/x", "tmpfs"), ("/srv/x", "ext4"), ("/homes/x", "ext4")],
)  # fmt: skip
def test_the_file_system_of_a_folder_is_known(tmp_path, monkeypatch, place, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    monkeypatch.setattr(processes, "MOUNTS", mounts)
    assert processes.file_system(Path(place)) == kind


def test_a_home_on_a_network_share_or_without_locks_is_refused(home, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(processes, "file_system", lambda _: "nfs4")
        with pytest.raises(HomeError, match=r"network share \(nfs4\)"):
            JobStore(home)
    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", lambda *_: None)
        with pytest.raises(HomeError, match="without the locks"):
            JobStore(home)
    assert processes.locks_exclude(home.state)
    JobStore(home).close()


def test_a_clock_that_jumps_does_no_harm(home, monkeypatch):
    """Days forwards and backwards at every look: each job still runs exactly once."""
    real, dice = time.time, random.Random(3)
    store = JobStore(home)
    ids = [store.submit(a_spec(steps=8)).id for _ in range(3)]
    monkeypatch.setattr(time, "time", lambda: real() + dice.uniform(-1e6, 1e6))
    with supervising(home):
        until(lambda: store.counts() == {"succeeded": 3}, seconds=60)
    monkeypatch.undo()
    for job in ids:
        assert [event["dst"] for event in store.events(job)] == [
            "queued", "starting", "running", "succeeded",
        ]  # fmt: skip
    store.close()


def test_time_left_does_not_depend_on_the_clock(store, monkeypatch):
    """A laptop slept for a night: 20 seconds of training for 5 of 9 steps."""
    store.submit(a_spec())
    claim = begin(store)
    result = {"training_seconds": 10.0, "training_from_step": 0, "seconds": 30.0}
    store.claims.report(claim, Progress(step=5, total_steps=9, result=result))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30_000)
    assert seconds_left(store.get(claim.job)) == 16.0

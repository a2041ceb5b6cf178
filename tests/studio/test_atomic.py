import errno
import fcntl
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from studio import atomic, home


class Windows(SimpleNamespace):
    """`os` as Windows has it: `fsync` wants a writable handle, open targets cannot be replaced."""

    def __init__(self, busy: int = 0) -> None:
        own = {"fsync", "replace"}
        names = {name: getattr(os, name) for name in dir(os) if name[0] != "_" and name not in own}
        super().__init__(**names)
        self.name, self.busy, self.flushed = "nt", busy, 0

    def fsync(self, handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self.flushed += 1

    def replace(self, source: object, target: object) -> None:
        if self.busy:
            self.busy -= 1
            raise PermissionError(errno.EACCES, "used by another process")
        os.replace(source, target)


@pytest.fixture
def windows(monkeypatch):
    system = Windows()
    monkeypatch.setattr(atomic, "os", system)
    monkeypatch.setattr(atomic, "WAIT_SECONDS", 0.2)
    return system


def test_a_folder_is_published_where_windows_flushes_writable_handles_only(tmp_path, windows):
    target = tmp_path / "adapter"
    with home.publishing(target) as folder:
        (folder / "weights").write_bytes(b"1")
    assert home.is_whole(target)
    assert windows.flushed == 2  # the weights and the manifest


def test_a_rename_waits_while_another_process_reads(tmp_path, windows):
    windows.busy = 2
    atomic.write(tmp_path / "state", "new", durable=True)
    assert (tmp_path / "state").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_rename_that_stays_impossible_leaves_the_old_file(tmp_path, windows):
    atomic.write(tmp_path / "state", "old")
    windows.busy = 10**6
    with pytest.raises(PermissionError):
        atomic.write(tmp_path / "state", "new")
    assert (tmp_path / "state").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_elsewhere_a_refusal_is_one(tmp_path, windows):
    windows.name, windows.busy = "posix", 1
    with pytest.raises(PermissionError):
        atomic.write(tmp_path / "state", "new")


def test_a_read_only_file_is_flushed_where_that_is_allowed(tmp_path, windows):
    file = tmp_path / "tokenizer.json"  # copied from a model that its owner protects
    file.write_text("{}")
    windows.name, modes = "posix", []
    windows.fsync = lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
    atomic.flush(file)
    assert modes == [os.O_RDONLY]


@pytest.mark.parametrize("text", [None, "{", "[1]", "\xff", "[" * 6000])
def test_what_is_not_a_json_object_reads_as_an_empty_one(tmp_path, text):
    file = tmp_path / "state.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    assert atomic.read_object(file) == {}
    file.write_text('{"a": 1}')
    assert atomic.read_object(file) == {"a": 1}


def test_threads_of_one_process_write_the_same_place_at_the_same_time(tmp_path):
    """Each has its own temporary file or folder, also of a name that ends in a number."""
    file, folder, meet = tmp_path / "state-1", tmp_path / "data-1", threading.Barrier(8, timeout=30)

    def write(number: int) -> None:
        for _ in range(20):
            meet.wait()
            atomic.write(file, str(number) * 1000)
            with home.publishing(folder) as made:
                (made / "rows").write_text(str(number) * 1000)
                meet.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert home.is_whole(folder) and len(set((folder / "rows").read_text())) == 1
    assert len(file.read_text()) == 1000 and len(set(file.read_text())) == 1
    assert sorted(tmp_path.iterdir()) == [folder, file]


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_writes_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = atomic.beside(tmp_path / "state-1").name
    for pid in (dead.pid, os.getppid()):
        (tmp_path / mine.replace(f"-{os.getpid()}", f"-{pid}")).mkdir()
    home.sweep(tmp_path)
    assert [one.name.rpartition("-")[2] for one in tmp_path.iterdir()] == [str(os.getppid())]


def test_private_files_are_for_their_user_alone(tmp_path):
    atomic.write(tmp_path / "token", "secret", private=True)
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0

"""The home: safe names, folders that are whole or not there, and clear refusals."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio import atomic
from studio.errors import DiskFull, HomeError
from studio.home import MANIFEST, is_whole, open_home, publishing, slug, sweep


def test_the_layout_is_the_contract(tmp_path, monkeypatch):
    home = open_home(tmp_path / "home")

    assert home.database == tmp_path / "home" / "studio.db"
    for name in ("runs", "adapters", "datasets", "models"):
        assert (tmp_path / "home" / name).is_dir()
    assert home.run(3) == home.runs / "3"
    assert home.path.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "there"))
    assert open_home().path == tmp_path / "there"
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match=r"cannot be written .* --home or STUDIO_HOME"):
        open_home(tmp_path / "file")


@given(st.text())
def test_a_slug_is_always_a_harmless_name(name):
    made = slug(name)
    assert made and len(made) <= 60
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug(made) == made


def test_a_published_folder_is_whole_and_notices_damage(tmp_path):
    target = tmp_path / "thing"
    with publishing(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"1234")
        assert not target.exists()

    assert is_whole(target)
    (target / "inner" / "weights").write_bytes(b"1235")
    assert not is_whole(target)
    (target / MANIFEST).unlink()
    assert not is_whole(target)


def test_a_failed_write_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "thing"
    with publishing(target) as folder:
        (folder / "file").write_text("old")

    with pytest.raises(DiskFull, match="what was saved before is intact"), publishing(target):
        raise OSError(28, os.strerror(28))

    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_an_exchange_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    target, replace = tmp_path / "thing", atomic.replace
    with publishing(target) as folder:
        (folder / "file").write_text("old")

    def held(source, place):
        if source.name.startswith(".tmp-"):
            raise PermissionError("a scanner has it open")
        replace(source, place)

    monkeypatch.setattr(atomic, "replace", held)
    with pytest.raises(PermissionError), publishing(target):
        pass

    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_an_interrupted_exchange_is_put_right(tmp_path):
    (tmp_path / ".old-thing-99999999").mkdir()  # retired, but its successor never came
    (tmp_path / ".tmp-other-99999999").mkdir()  # half written by a process that is gone
    (tmp_path / ".tmp-spec.yaml-99999999").write_text("half")
    mine = tmp_path / f".tmp-third-{os.getppid()}"  # another living process writes it
    mine.mkdir()

    sweep(tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["thing", mine.name])


@pytest.mark.skipif(sys.platform != "linux", reason="zombies as Linux keeps them")
def test_what_a_killed_but_not_yet_buried_process_left_is_swept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = tmp_path / f".tmp-adapter-{child.pid}"
    left.mkdir()
    sweep(tmp_path)
    assert left.exists(), "a living process writes it"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    sweep(tmp_path)
    assert not left.exists()
    child.communicate()

"""A place is the same on a file system and on an object store, and folders arrive whole or not."""

from pathlib import Path

import fsspec
import pytest

from studio.cluster.shared_storage import Storage, open_storage
from studio.errors import ClusterError
from studio.home import is_whole, publishing


@pytest.fixture(params=["a folder", "an object store"])
def place(request, tmp_path):
    if request.param == "a folder":
        yield Storage(str(tmp_path / "storage"))
    else:
        yield Storage("memory://storage-of-a-test")
        fsspec.filesystem("memory").store.clear()


def a_folder(path: Path) -> Path:
    with publishing(path) as inside:
        (inside / "deep").mkdir()
        (inside / "deep" / "weights").write_bytes(b"1234")
        (inside / "state.json").write_text("{}")
    return path


def test_what_is_written_is_read(place):
    place.write("a/b.json", b"[1]")

    assert (place.read("a/b.json"), place.read("a/c.json")) == (b"[1]", None)
    assert place.exists("a/b.json") and not place.exists("a/c.json")
    assert (place.names("a"), place.names("b")) == (["b.json"], [])
    assert place.below("a").read("b.json") == b"[1]"
    for _ in range(2):  # a second time nothing happens
        place.remove("a")
        assert place.names("a") == []


def test_a_folder_goes_and_comes_whole(place, tmp_path):
    place.send(a_folder(tmp_path / "here"), "there")

    assert place.fetch("there", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "weights").read_bytes() == b"1234"
    assert is_whole(tmp_path / "back")
    copy = place.local_path("there", tmp_path / "scratch")
    assert (copy / "deep" / "weights").read_bytes() == b"1234"


def test_a_folder_that_is_damaged_or_without_its_manifest_leaves_nothing(place, tmp_path):
    place.send(a_folder(tmp_path / "here"), "there")
    place.write("there/deep/weights", b"12")
    with pytest.raises(ClusterError, match="damaged or incomplete"):
        place.fetch("there", tmp_path / "back")
    place.remove("there/MANIFEST.json")
    assert not place.fetch("there", tmp_path / "back"), "it is not there yet"
    assert not (tmp_path / "back").exists()


def test_storage_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"file/storage cannot be written \(Not a directory\)"):
        open_storage(str(tmp_path / "file" / "storage"))
    with pytest.raises(ClusterError, match="The storage nonsense://x cannot be used"):
        open_storage("nonsense://x")

"""A place is the same on a file system and on an object store, and folders arrive whole or not."""

from pathlib import Path

import fsspec
import pytest

from studio.cluster import shared_storage
from studio.cluster.shared_storage import EventReader, EventWriter, Storage, open_storage
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


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "storage"))


def numbers(reader: EventReader) -> list[int]:
    return [values["n"] for values in reader.read()]


def test_a_reader_hears_what_is_new_and_goes_on_where_it_was(storage):
    reader, writer = EventReader(storage), EventWriter(storage)
    assert numbers(reader) == []

    writer.add({"n": 1})
    writer.flush()
    assert numbers(reader) == [1]
    back = EventReader(storage, number=reader.number, lines=reader.lines)
    writer.add({"n": 2})
    writer.close()
    assert numbers(reader) == numbers(back) == [2]
    assert numbers(reader) == []
    second = EventWriter(storage)  # its successor goes on behind the first
    second.add({"n": 3})
    second.close()
    assert numbers(EventReader(storage)) == [1, 2, 3]


def test_files_stay_small_and_the_reader_follows(storage, monkeypatch):
    monkeypatch.setattr(shared_storage, "FILE_BYTES", 30)
    writer, reader, heard = EventWriter(storage), EventReader(storage), []
    for n in range(20):
        writer.add({"n": n})
        writer.flush()
        if n % 3 == 0:
            heard += numbers(reader)
    writer.close()

    assert heard + numbers(reader) == list(range(20))
    assert len(storage.names("events")) > 3


def test_a_line_that_is_half_there_is_heard_when_it_is_whole(storage):
    reader = EventReader(storage)
    storage.write("events/000001.jsonl", b'{"n": 1}\n{"n"')
    assert numbers(reader) == [1]
    storage.write("events/000001.jsonl", b'{"n": 1}\n{"n": 2}\n')
    assert numbers(reader) == [2]

"""What is said far away is heard once and in order, whatever is cut short in between."""

import pytest

from studio.cluster import shared_storage
from studio.cluster.shared_storage import EventReader, EventWriter, Storage


@pytest.fixture
def place(tmp_path):
    return Storage(str(tmp_path / "storage"))


def numbers(reader: EventReader) -> list[int]:
    return [values["n"] for values in reader.read()]


def test_a_reader_hears_what_is_new_and_goes_on_where_it_was(place):
    reader, writer = EventReader(place), EventWriter(place)
    assert numbers(reader) == []

    writer.add({"n": 1})
    writer.flush()
    assert numbers(reader) == [1]
    back = EventReader(place, number=reader.number, lines=reader.lines)
    writer.add({"n": 2})
    writer.close()
    assert numbers(reader) == numbers(back) == [2]
    assert numbers(reader) == []
    second = EventWriter(place)  # its successor goes on behind the first
    second.add({"n": 3})
    second.close()
    assert numbers(EventReader(place)) == [1, 2, 3]


def test_files_stay_small_and_the_reader_follows(place, monkeypatch):
    monkeypatch.setattr(shared_storage, "FILE_BYTES", 30)
    writer, reader, heard = EventWriter(place), EventReader(place), []
    for n in range(20):
        writer.add({"n": n})
        writer.flush()
        if n % 3 == 0:
            heard += numbers(reader)
    writer.close()

    assert heard + numbers(reader) == list(range(20))
    assert len(place.names("events")) > 3


def test_a_line_that_is_half_there_is_heard_when_it_is_whole(place):
    reader = EventReader(place)
    place.write("events/000001.jsonl", b'{"n": 1}\n{"n"')
    assert numbers(reader) == [1]
    place.write("events/000001.jsonl", b'{"n": 1}\n{"n": 2}\n')
    assert numbers(reader) == [2]

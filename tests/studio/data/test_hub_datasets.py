"""A hub id is asked for once; nothing of the library's own words reaches the user."""

import logging

import datasets
import huggingface_hub
import pytest

from studio.data import hub_datasets, mapping_preview
from studio.data.column_mapping import Mapping
from studio.data.dataset_requests import ImportRequest
from studio.data.hub_datasets import from_hub, is_reached
from studio.data.prepare_run_data import lens
from studio.data.xray import xray
from studio.errors import DataError, Unreached
from studio.spec import DataSource, ModelSource
from studio.training.training_events import Working
from tests import hub


def test_without_a_network_one_sentence_comes_at_once(monkeypatch, tmp_path, caplog):
    asked = []

    def unreachable(_, path, timeout):
        asked.append((path, timeout))
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was tried"))

    with pytest.raises(Unreached, match='no file or folder "nope", and the hub cannot be reached'):
        from_hub(DataSource(path="nope"))

    assert asked == [("nope", 10.0)] and caplog.records == []
    assert not logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)


def test_without_a_network_what_was_downloaded_is_read_offline(monkeypatch, tmp_path):
    def load(*_, **__):
        assert datasets.config.HF_HUB_OFFLINE and huggingface_hub.constants.HF_HUB_OFFLINE
        assert not datasets.config.TORCH_AVAILABLE
        return datasets.Dataset.from_list([{"text": "kept"}])

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: (_ for _ in ()).throw(OSError())
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "org___rows").mkdir()

    (row,) = from_hub(DataSource(path="org/rows")).rows()

    assert row.values == {"text": "kept"}
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert datasets.config.TORCH_AVAILABLE is True  # another part may hand the library tensors


def test_two_that_read_offline_at_once_leave_the_hub_as_it_was(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    first, second = hub_datasets._offline(), hub_datasets._offline()
    states = []
    for step in (first.__enter__, second.__enter__, first.__exit__, second.__exit__):
        step(*(None,) * 3 if "exit" in step.__name__ else ())
        states.append(huggingface_hub.constants.HF_HUB_OFFLINE)
    assert states == [True, True, True, False]


def test_whole_numbers_beside_empty_cells_are_integers_as_in_a_file(monkeypatch):
    monkeypatch.setattr(hub_datasets, "is_reached", lambda _: True)
    made = datasets.Dataset.from_dict({"n": [1.0, None], "x": [1.5, None]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)

    found = [row.values for row in from_hub(DataSource(path="org/rows")).rows()]

    assert str(found) == "[{'n': 1, 'x': 1.5}, {'n': None, 'x': None}]"


def test_an_id_that_the_hub_does_not_have_is_told(monkeypatch):
    with pytest.raises(DataError, match=r'"a\.\.b" is not a file or folder here'):
        is_reached("a..b")


def test_first_rows_are_streamed_and_nothing_more_is_loaded(monkeypatch):
    taken = []

    def load(*_, streaming, **__):
        assert streaming

        def rows():
            for number in range(10**6):
                taken.append(number)
                yield {"question": f"q{number}", "answer": "a"}

        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr("studio.data.hub_datasets.is_reached", lambda _: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    shown = mapping_preview.preview(DataSource(path="org/rows"), None, count=3)
    assert [one["row"]["question"] for one in shown] == ["q0", "q1", "q2"]
    assert mapping_preview.guess(DataSource(path="org/rows")).mapping.format == "question_answer"
    assert max(taken) < 1000


@pytest.mark.parametrize("streamed", [True, False])
def test_sounds_and_images_are_not_decoded_and_classes_have_their_names(monkeypatch, streamed):
    media = [{"bytes": bytes([n, 255]), "path": None} for n in range(3)]
    rows = datasets.Dataset.from_dict({
        "sentence": ["good", "bad", "new"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]],
        "sound": media, "image": media,
    })  # fmt: skip
    classes = datasets.ClassLabel(names=["negative", "positive"])
    for name, feature in (("label", classes), ("tags", datasets.List(classes)),
                          ("sound", datasets.Audio()), ("image", datasets.Image())):  # fmt: skip
        rows = rows.cast_column(name, feature)

    def load(*_, streaming, **__):
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr("studio.data.hub_datasets.is_reached", lambda _: True)
    monkeypatch.setattr(datasets, "load_dataset", load)

    found = list(from_hub(DataSource(path=f"org/media-{streamed}"), first=3 * streamed).rows())

    assert [row.line for row in found] == [1, 2, 3]
    assert [row.values["label"] for row in found] == ["positive", "negative", None]
    assert [row.values["tags"] for row in found] == [["negative", "positive"], [], ["positive"]]
    assert found[2].values["sound"] == found[2].values["image"] == {"bytes": b"\x02\xff"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub.running() as running:
        hub.use(monkeypatch, running, tmp_path / "cache")
        running.datasets["org/rows"] = hub.dataset(3000)
        yield running


def test_search_and_facts_before_the_download(server):
    (found,) = hub_datasets.search("ROWS")
    assert (found["id"], found["license"]) == ("org/rows", "mit")
    assert hub_datasets.search("nothing like it") == []
    facts = hub_datasets.look_up("org/rows")
    files = server.datasets["org/rows"].files
    assert facts["files"] == 2
    assert facts["bytes"] == sum(len(files[one]) for one in files if one.endswith(".parquet"))
    assert facts["parts"] == [
        {"subset": "main", "split": "train", "rows": 3000, "bytes": 120_000},
        {"subset": "main", "split": "test", "rows": 7, "bytes": 280},
    ]
    server.datasets["org/rows"].card = {
        "configs": [{"config_name": "main", "data_files": "x"},
                    {"config_name": "more", "data_files": [{"split": "test"}]}]
    }  # fmt: skip
    unknown = {"rows": None, "bytes": None}
    assert hub_datasets.look_up("org/rows")["parts"] == [
        {"subset": "more", "split": "test", **unknown}
    ]
    with pytest.raises(DataError, match='"org/none" is not a file or folder here'):
        hub_datasets.look_up("org/none")
    server.fail("/api/datasets", status=503)
    with pytest.raises(Unreached, match="cannot be reached"):
        hub_datasets.search("rows")


def test_rows_of_a_part_are_seen_as_tokens_before_the_download(server, tmp_path):
    part = DataSource(path="org/rows", subset="main", split="test")
    found = mapping_preview.preview(part, mapping_preview.guess(part).mapping, count=1)
    assert found[0]["messages"][1]["content"] == "0"
    columns = {"question": "answer", "answer": "question"}
    swapped = Mapping(format="question_answer", columns=columns)
    seen = lens(ModelSource(), None)
    (row,) = xray(part, seen.backend, context_length=256, rows=[3], mapping=swapped)
    trained = "".join(one.text for one in row.tokens if one.state == "trained")
    assert "What is 2 and 2?" in trained
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_a_broken_download_of_a_dataset_goes_on_where_it_was(server, home, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    request = ImportRequest(data=DataSource(path="org/rows", subset="main"), num_rows=100,
                            pick="random", seed=1)  # fmt: skip
    train = server.datasets["org/rows"].etag("main/train-0.parquet")
    server.fail(f"GET /storage/.*{train}", cut_after=2500, times=1)
    server.fail(f"GET /storage/.*{train}", status=503)
    with pytest.raises(Unreached, match="what has arrived is kept"):
        list(request.perform(home))
    server.faults.clear()
    server.asked.clear()
    events = list(request.perform(home))
    assert events[-1].facts["rows"]["kept"] == 100
    assert any(" of " in event.text for event in events if isinstance(event, Working))
    (first,) = {first for _, path, first in server.asked if train in path}
    assert first >= 2000
    server.asked.clear()
    list(request.perform(home))
    assert not [path for _, path, _ in server.asked if path.startswith("/storage/")]

"""A hub id is asked for once; nothing of the library's own words reaches the user."""

import logging

import datasets
import huggingface_hub
import pytest

from studio.data import hub_search, preview
from studio.data.hub import from_hub, is_reached
from studio.errors import DataError, Unreached
from studio.spec import DataSource
from tests import hub


def test_without_a_network_one_sentence_comes_at_once(monkeypatch, tmp_path, caplog):
    asked = []

    def unreachable(_, path, timeout):
        asked.append((path, timeout))
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was tried"))

    with pytest.raises(Unreached, match='no file or folder "nope", and the hub cannot be reached'):
        from_hub(DataSource(path="nope"))

    assert asked == [("nope", 10.0)] and caplog.records == []
    assert not logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING)


def test_without_a_network_what_was_downloaded_is_read_offline(monkeypatch, tmp_path):
    def load(*_, **__):
        assert datasets.config.HF_HUB_OFFLINE and huggingface_hub.constants.HF_HUB_OFFLINE
        return datasets.Dataset.from_list([{"text": "kept"}])

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: (_ for _ in ()).throw(OSError())
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "org___rows").mkdir()

    (row,) = from_hub(DataSource(path="org/rows")).rows()

    assert row.values == {"text": "kept"}
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


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

    monkeypatch.setattr("studio.data.hub.is_reached", lambda _: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    shown = preview.preview("org/rows", None, count=3)
    assert [one["row"]["question"] for one in shown] == ["q0", "q1", "q2"]
    assert preview.guess("org/rows").mapping.format == "question_answer"
    assert max(taken) < 1000


def test_search_and_facts_before_the_download(monkeypatch, tmp_path):
    splits = [{"name": "train", "num_examples": 7473, "num_bytes": 3963202}]
    card = {"license": "mit", "dataset_info": {"config_name": "main", "splits": splits},
            "configs": [{"config_name": "main", "data_files": "x"},
                        {"config_name": "more", "data_files": [{"split": "test"}]}]}  # fmt: skip
    info = {"id": "org/rows", "_id": "1", "sha": "a" * 40, "downloads": 5, "likes": 1,
            "private": False, "gated": False, "disabled": False, "tags": [], "cardData": card,
            "siblings": [{"rfilename": "main.parquet", "size": 900}, {"rfilename": "README.md"}],
            "lastModified": "2026-09-01T00:00:00.000Z"}  # fmt: skip
    with hub.running() as server:
        hub.use(monkeypatch, server, tmp_path)
        server.datasets["org/rows"] = info
        (found,) = hub_search.search("ROWS")
        assert (found["id"], found["license"]) == ("org/rows", "mit")
        assert hub_search.search("nothing like it") == []
        facts = hub_search.look_up("org/rows")
        assert facts["files"] == 1 and facts["bytes"] == 900
        assert facts["parts"] == [
            {"subset": "main", "split": "train", "rows": 7473, "bytes": 3963202},
            {"subset": "more", "split": "test", "rows": None, "bytes": None},
        ]
        with pytest.raises(DataError, match="org/none"):
            hub_search.look_up("org/none")
        server.fail("/api/datasets", status=503)
        with pytest.raises(Unreached, match="cannot be reached"):
            hub_search.search("rows")

"""A hub id is asked for once; nothing of the library's own words reaches the user."""

import logging

import datasets
import huggingface_hub
import pytest

from studio.data.hub import from_hub, is_reached
from studio.errors import DataError, Unreached
from studio.spec import DataSource


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

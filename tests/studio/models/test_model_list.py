"""One list of all models: folders that vanish, loops and broken models are said, never raised."""

import json
import shutil
from pathlib import Path

import pytest

from jobs import openai_api
from studio.errors import ModelError
from studio.models import model_list
from studio.models.hub_models import repository_folder
from studio.starter import MODEL_DIR
from ui import train_page_facts


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def put(folder, **config):
    shutil.copytree(MODEL_DIR, folder)
    if config:
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
    return folder


def local(home):
    return {row.path: row for row in model_list.models(home) if row.kind != "curated"}


def test_starter_made_registered_and_downloaded_models_are_listed(home, tmp_path):
    put(home.models / "mine")
    put(tmp_path / "shelf" / "deep" / "one")
    broken = put(tmp_path / "shelf" / "odd", architectures=["Odd"])
    (tmp_path / "shelf" / "loop").symlink_to(tmp_path / "shelf")
    (tmp_path / "shelf" / "data").mkdir()
    snapshot = put(repository_folder("Qwen/Qwen3.5-0.8B") / "snapshots" / ("a" * 40))
    put(repository_folder("org/half") / "snapshots" / "b").joinpath("model.safetensors").unlink()
    model_list.register(home, tmp_path / "shelf")

    found = local(home)

    shelf = tmp_path / "shelf"
    folders = [home.models / "mine", shelf / "odd", shelf / "deep" / "one"]
    assert list(found) == ["starter", *map(str, folders), "Qwen/Qwen3.5-0.8B"]
    assert "Odd" in found[str(broken)].why_not and not found["starter"].why_not
    assert found["Qwen/Qwen3.5-0.8B"].parameters == found["starter"].parameters > 10**6
    assert found["Qwen/Qwen3.5-0.8B"].folder == str(snapshot)
    curated = [row.path for row in model_list.models(home) if row.kind == "curated"]
    assert "Qwen/Qwen3.5-2B" in curated and "Qwen/Qwen3.5-0.8B" not in curated


def test_every_list_of_models_offers_the_same_ones(home, tmp_path):
    mine, other = put(home.models / "mine"), put(tmp_path / "shelf" / "mine")
    put(home.models / "odd", architectures=["Odd"])
    put(repository_folder("gpt2") / "snapshots" / ("a" * 40))
    put(repository_folder("org/small") / "snapshots" / ("b" * 40))
    model_list.register(home, tmp_path / "shelf")

    paths = ["starter", str(mine), str(other), "gpt2", "org/small"]
    assert [row.path for row in model_list.usable(home)] == paths
    assert [row.path for row in local(home).values() if not row.why_not] == paths
    assert openai_api.model_names(home) == paths
    choices = train_page_facts.model_choices(home)
    assert [path for _, path in choices] == paths
    assert [label for label, _ in choices[1:]] == [str(mine), str(other), "gpt2", "small"]
    assert [one["path"] for one in train_page_facts.labelled_models(home)] == paths


def test_facts_are_read_once_until_a_file_changes(home, tmp_path, monkeypatch):
    folder = put(home.models / "mine")
    first = local(home)
    monkeypatch.setattr(model_list, "facts", lambda _: pytest.fail("read again"))
    assert local(home) == first
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 99}
    (folder / "config.json").write_text(json.dumps(config))
    assert local(home)[str(folder)].context == 99
    (home.state / "models.json").write_text("[broken")
    assert local(home)[str(folder)].context == 99


def test_folders_that_vanish_or_cannot_be_read_are_said(home, tmp_path):
    shelf = tmp_path / "shelf"
    for gone in (shelf, Path("~nobody-of-this-name/x")):
        with pytest.raises(ModelError, match="There is no folder .*: check the spelling"):
            model_list.register(home, gone)
    put(shelf / "one")
    model_list.register(home, shelf)
    assert model_list.register(home, shelf) == [str(shelf)]
    assert str(shelf / "one") in local(home)
    shutil.move(shelf, tmp_path / "elsewhere")
    assert list(local(home)) == ["starter"]
    assert "its disk is not mounted" in model_list.trouble(shelf)
    assert model_list.forget(home, str(shelf)) == []
    with pytest.raises(ModelError, match="is not registered"):
        model_list.forget(home, str(shelf))


def test_a_shelf_of_many_folders_ends(home, tmp_path):
    for number in range(60):
        (tmp_path / "shelf" / f"{number}").mkdir(parents=True)
        (tmp_path / "shelf" / f"{number}" / "up").symlink_to(tmp_path / "shelf")
    (tmp_path / "shelf" / "itself").symlink_to(tmp_path / "shelf" / "itself")
    model_list.register(home, tmp_path / "shelf")
    assert list(local(home)) == ["starter"]

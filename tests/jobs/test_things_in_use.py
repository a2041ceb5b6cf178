"""What a job or an adapter needs is neither deleted nor moved."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.actions import adapters, datasets, models, queue
from jobs.job_inputs import with_absolute_paths
from jobs.job_queue import JobStore
from studio.adapters.adapter_lineage import built_on
from studio.data.import_dataset import import_dataset
from studio.errors import AdapterError, InputError
from studio.models import find_model
from studio.models.hub_models import repository_folder
from studio.names import Location
from studio.spec import DataSource
from tests.jobs.conftest import a_spec, run_one


def put(folder, name: str, line: list[dict] = []) -> None:  # noqa: B006
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "passport.json").write_text(json.dumps({"name": name, "lineage": line}))
    save_file({"a": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")


def test_what_others_were_trained_on_top_of_stays(store: JobStore):
    home = store.home
    for name in ("first", "second"):
        store.submit(a_spec(name=name))
        run_one(store)
    below, shelf = home.run(1) / "adapter", home.adapters / "kept"
    put(below, "first")
    put(shelf, "kept")
    line = [{"name": "first", "path": "../../1/adapter", "frozen": True},
            {"name": "kept", "path": str(shelf), "frozen": True},
            {"name": "old", "path": "../../9/adapter", "frozen": False}]  # fmt: skip
    put(home.run(2) / "adapter", "second", line)

    assert [one.name for one in built_on(home, below)] == ["second"]
    words = '"second" was trained on top of "first" and needs it'
    for refused in (lambda: adapters.delete(store, "first"), lambda: queue.delete(store, 1)):
        with pytest.raises(AdapterError, match=words):
            refused()
    with pytest.raises(AdapterError, match="needs it"):
        adapters.rename(store, "kept", "other")  # its folder would move
    assert adapters.rename(store, "first", "one")["name"] == "one", "a run's folder stays"
    queue.delete(store, 2)
    queue.delete(store, 1)
    assert adapters.delete(store, "kept")["deleted"] == "kept"


def test_what_a_waiting_run_starts_from_stays(store: JobStore):
    put(store.home.adapters / "start", "start")
    spec = a_spec(name="next").with_values(
        {"train.init_adapter": str(store.home.adapters / "start")}
    )
    job = store.submit(spec)
    with pytest.raises(AdapterError, match='"next" is queued and needs "start"'):
        adapters.delete(store, "start")
    store.cancel(job.id)
    assert adapters.delete(store, "start")["deleted"] == "start"


LANE = {"model": "starter", "stack": [{"name": "kept", "weight": 1.0}]}


@pytest.mark.parametrize(
    ("kind", "spec", "in_use"),
    [
        ("suite", {"lanes": [LANE]}, {"adapter"}),
        ("judge", {"suite": 1, "lanes": ["a"], "lane": LANE}, {"adapter", "run"}),
        ("judge", {"suite": 9, "lane": LANE, "address": "http://localhost"}, set()),
        ("suite", {"lanes": [{"model": "org/base", "stack": []}]}, {"model"}),
        ("suite", {"lanes": [{"model": "starter", "stack": [{"name": "1@100"}]}]}, {"run", "data"}),
        ("promote", {"checkpoint": "1@100"}, {"run", "data"}),
        ("bakeoff", {"runs": [1, 2], "model": {"path": "org/base"}}, {"run", "data", "model"}),
        ("export_adapter", {"adapter": "kept", "model": "org/base"}, {"adapter", "model"}),
        ("download", {"repo": "org/base"}, {"model"}),
        ("evaluate", {"stack": [], "data": {"path": "my-rows"}}, {"data"}),
        ("evaluate", {"stack": [], "general_data": "my-rows"}, {"data"}),
        ("mix_data", {"sources": ["my-rows:2", "starter:pirate"]}, {"data"}),
        ("curate", {"data": {"path": "my-rows"}, "step": {"kind": "dedupe"}}, {"data"}),
        ("train", {"data": {"path": "x", "validation_path": "my-rows"}}, {"data"}),
        ("train", {"train": {"general_data": "my-rows"}}, {"data"}),
        ("train", {"data": {"path": "starter:pirate"}}, set()),
    ],
)  # fmt: skip
def test_what_an_open_job_reads_is_not_deleted(
    store: JobStore, tmp_path, monkeypatch, kind, spec, in_use
):
    home = store.home
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository_folder("org/base").mkdir(parents=True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "q", "answer": "a"}\n' * 4)
    import_dataset(home, DataSource(path=str(rows)), name="my-rows")
    store.submit(a_spec(name="first").with_values({"data.path": "my-rows"}))
    run_one(store)
    put(home.adapters / "kept", "kept")
    store.submit({"name": "reader", **spec}, kind=kind)

    def refused(action, *names) -> bool:
        try:
            action(store, *names)
        except InputError as error:
            assert '"reader" is queued and needs' in error.text
            return True
        return False

    found = {
        "adapter": refused(adapters.delete, "kept"), "run": refused(queue.delete, 1),
        "model": refused(models.remove, "org/base", True),
        "data": refused(datasets.delete, "my-rows"),
    }  # fmt: skip
    assert {what for what, held in found.items() if held} == in_use


def test_local_paths_of_a_request_are_absolute_in_its_job(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mymodel", "rows.jsonl"):
        (tmp_path / name).mkdir()
    put(tmp_path / "exported", "exported")
    lane = {"model": "./mymodel", "stack": [{"name": "exported", "weight": 1.0}]}
    values = {
        "name": "mymodel", "model": {"path": "mymodel", "revision": ""}, "lanes": [lane],
        "data": {"path": "rows.jsonl", "split": "train"}, "general_data": "starter:pirate",
        "source": "some/adapter", "max_rows": 3,
    }  # fmt: skip
    found = with_absolute_paths(values, store.home)

    assert found["name"] == "mymodel" and found["general_data"] == "starter:pirate"
    assert found["model"]["path"] == found["lanes"][0]["model"] == str(tmp_path / "mymodel")
    assert found["lanes"][0]["stack"][0]["name"] == str(tmp_path / "exported")
    assert found["data"] == {"path": str(tmp_path / "rows.jsonl"), "split": "train"}
    assert (found["source"], found["max_rows"]) == ("some/adapter", 3)


def test_names_and_downloaded_models_are_no_paths(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find_model, "origin_of", lambda *_: Location("folder", tmp_path / "cache"))
    put(tmp_path / "mine", "mine")
    for values in (
        {"model": {"path": "org/small"}},  # in the hub's cache
        {"source": str(tmp_path / "mine"), "adapter": "mine"},  # a name to give
        {"model": "mine", "address": "http://127.0.0.1:1/v1"},  # a judge elsewhere
        {"repo": "mine"},
    ):
        assert with_absolute_paths(values, store.home) == values

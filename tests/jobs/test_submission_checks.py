"""Copies and groups are checked as a run that is submitted alone, each as it will start."""

import json

import pytest

from jobs import bakeoff, job_inputs, sweeps
from jobs.actions.registry import ask
from jobs.copy_and_extend_runs import duplicate, extend
from jobs.job_inputs import runs_on
from studio.data import hub_datasets
from studio.data.import_dataset import import_dataset
from studio.data.snapshots import delete_snapshot
from studio.errors import AdapterError, DataError, ModelError, StudioError
from studio.models import find_model
from studio.spec import DataSource, RunSpec
from tests.jobs.conftest import a_spec, run_one


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({"question": w, "answer": w}) + "\n" for w in "abcd"))
    return file


@pytest.fixture(autouse=True)
def no_supervisor(monkeypatch):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)


def test_a_copy_and_a_sweep_find_files_beside_the_user(store, home, rows):
    first = store.submit(a_spec())
    for name, values in (
        ("duplicate", {"job": first.id, "set": ["data.path=new.jsonl"]}),
        ("sweep", {"name": "files", "over": ["data.path=new.jsonl,starter:pirate"]}),
    ):
        job = ask(home, name, values, store=store).jobs[0]
        assert store.get(job.id).spec["data"]["path"] == str(rows), name


def test_a_run_on_a_deleted_dataset_is_neither_copied_nor_trained_longer(store, home, rows):
    import_dataset(home, DataSource(path=str(rows)), name="mine")
    first = store.submit(a_spec().with_values({"data.path": "mine"}))
    assert [job.id for job in runs_on(store, "mine")] == [first.id]
    run_one(store)
    delete_snapshot(home, "mine")
    for again in (lambda: duplicate(store, first.id, {}), lambda: extend(store, first.id, steps=5)):
        with pytest.raises(DataError, match='"mine" was deleted'):
            again()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data.path": "./none.jsonl"}, DataError),
        ({"model.path": "./none"}, ModelError),
        ({"data.split": "other"}, DataError),
        ({"train.init_adapter": "unknown"}, AdapterError),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is_queued(store, rows, change, error):
    first = store.submit(a_spec())
    (field, value), *_ = change.items()
    with pytest.raises(error):
        duplicate(store, first.id, change)
    with pytest.raises(error):
        sweeps.submit_sweep(store, a_spec(), {field: [value]}, name="group")
    with pytest.raises(error):
        bakeoff.submit(store, RunSpec().with_values(change), ["lora", "ia3"], name="duel")
    assert [job.id for job in store.list()] == [first.id]


def test_a_group_asks_the_hub_and_the_disk_once(home, monkeypatch):
    asked = []
    facts = find_model.facts
    monkeypatch.setattr(hub_datasets, "is_reached", lambda path: asked.append(path) or True)
    monkeypatch.setattr(find_model, "facts", lambda source: asked.append(source) or facts(source))
    spec = RunSpec().with_values({"data.path": "someone/rows"})
    specs = [spec.with_values({"method.r": r}) for r in range(1, 21)]
    assert job_inputs.admit_each(specs, home) == specs
    assert asked == ["someone/rows", spec.model]


def test_a_copy_of_another_kind_is_a_request_with_its_fields_changed(store, home):
    spec = {"name": "look", "stack": [], "data": {"path": "starter:pirate"}}
    first = store.submit(spec, kind="evaluate")
    values = {"job": first.id, "name": "again", "set": ["data.path=starter:shop"]}
    copy = ask(home, "duplicate", values, store=store).jobs[0]
    assert (copy.kind, copy.name, copy.parent) == ("evaluate", "again", first.id)
    assert copy.spec["data"]["path"] == "starter:shop" and "data.path" not in copy.spec
    with pytest.raises(StudioError, match="nonsense"):
        ask(home, "duplicate", {"job": first.id, "set": ["nonsense=1"]}, store=store)
    check = store.submit(RunSpec().model_dump(mode="json") | {"name": "c"}, kind="preflight")
    values = {"job": check.id, "set": ["method.r=2"]}
    measured = ask(home, "duplicate", values, store=store).jobs[0]
    assert (measured.kind, measured.spec["method"]["r"]) == ("preflight", 2)

"""What uses space is counted, and only what a rule names can go."""

import json
import os
import time
from pathlib import Path

import pytest

from jobs import disk_usage
from jobs.actions import ask
from jobs.job_queue import JobStore
from studio import trash
from studio.adapters import library
from studio.errors import SpecError
from studio.home import publishing
from tests.jobs.conftest import a_spec, run_one


def checkpoint(
    store: JobStore, job: int, step: int, *, whole: bool = True, best: int | None = None
) -> Path:
    folder = store.home.run(job) / "checkpoints" / f"step-{step:08d}"
    with publishing(folder) as temporary:
        (temporary / "adapter.safetensors").write_bytes(b"x" * 1000)
        state = json.dumps({"progress": {"best_step": best}})
        (temporary / "state.json").write_text(state)
    if not whole:
        (folder / "adapter.safetensors").write_bytes(b"torn")
    return folder


def spare(store: JobStore) -> list[str]:
    return [os.path.relpath(item.path, store.home.path) for item in disk_usage.spare(store)]


def set_rules(store: JobStore, checkpoints: int, days: int) -> None:
    values = {"keep_checkpoints": checkpoints, "keep_days": days}
    ask(store.home, "clean", values, store=store)


def test_a_finished_run_keeps_as_many_as_the_rule_says(store):
    store.submit(a_spec())
    job = run_one(store, "succeeded").job
    folders = [checkpoint(store, job, step) for step in (1, 2, 3)]
    assert spare(store) == [f"runs/{job}/checkpoints/step-0000000{n}" for n in (2, 1)]
    set_rules(store, 0, 0)
    assert len(spare(store)) == 3
    set_rules(store, 3, 7)
    assert spare(store) == []
    with store.database.writing() as db:
        db.conn.execute("UPDATE jobs SET finished = finished - 8 * 86400")
    assert len(spare(store)) == 3
    gone = disk_usage.clean(store)
    assert disk_usage.report(gone)["bytes"] > 3000
    assert not any(folder.exists() for folder in folders)
    with pytest.raises(SpecError, match="keep_checkpoints is -1"):
        set_rules(store, -1, 0)


@pytest.mark.parametrize("state", ["failed", "cancelled", "paused", "queued"])
def test_the_newest_whole_checkpoint_of_a_run_that_can_go_on_stays(store, state):
    job = store.submit(a_spec()).id
    bring = {"failed": lambda: run_one(store, "failed"), "cancelled": lambda: store.cancel(job),
             "paused": lambda: store.pause(job), "queued": lambda: None}  # fmt: skip
    bring[state]()
    set_rules(store, 0, 0)
    old, good, torn = (checkpoint(store, job, step, whole=step < 3) for step in (1, 2, 3))
    disk_usage.clean(store)
    assert good.exists() and torn.exists()
    assert old.exists() is (state not in ("failed", "cancelled"))


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_the_best_checkpoint_stays_beside_the_newest(store, state):
    store.submit(a_spec())
    job = run_one(store, state).job
    folders = [checkpoint(store, job, step, best=2) for step in (1, 2, 3, 4)]
    disk_usage.clean(store)
    assert [folder.exists() for folder in folders] == [False, True, False, True]


def test_a_checkpoint_that_a_waiting_job_names_stays(store):
    store.submit(a_spec())
    job = run_one(store).job
    folders = [checkpoint(store, job, step) for step in (1, 2, 3)]
    store.submit({"name": "", "checkpoint": f"{job}@2"}, kind="promote")
    disk_usage.clean(store)
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_deleted_adapters_go_after_a_month_or_when_the_trash_is_emptied(store):
    for name, days in (("old", 31), ("new", 1)):
        (store.home.trash / name / trash.CONTENT).mkdir(parents=True)
        origin = {"name": name, "path": f"adapters/{name}", "deleted": time.time() - days * 86400}
        (store.home.trash / name / trash.ORIGIN).write_text(json.dumps(origin))
    parts = {part["name"]: part["bytes"] for part in disk_usage.usage(store)["parts"]}
    assert parts["Trash"] > 50
    ask(store.home, "clean", {"yes": True}, store=store)
    assert [one.name for one in library.deleted(store.home)] == ["new"]
    ask(store.home, "clean", {"yes": True, "trash": True}, store=store)
    assert library.deleted(store.home) == []


def test_the_only_copy_of_an_interrupted_exchange_is_put_back(store):
    for name, target in (("a", False), ("b", True)):
        folder = store.home.adapters / f".old-{name}-{2**22 + 1}"
        folder.mkdir()
        (folder / "file").touch()
        os.utime(folder, (0, 0))
        if target:
            (store.home.adapters / name).mkdir()
    disk_usage.clean(store)
    assert {path.name for path in store.home.adapters.iterdir()} == {"a", "b"}
    assert (store.home.adapters / "a" / "file").exists()


def test_leftovers_go_when_their_process_is_gone_and_an_hour_has_passed(store):
    dead, living = 2**22 + 1, os.getpid()
    old = time.time() - 7200
    for name, at in (
        (f".tmp-a-{dead}", old), (f".tmp-b-{living}", old), (f".tmp-c-{dead}", time.time()),
        (".hidden", old), ("kept", old),
    ):  # fmt: skip
        folder = store.home.adapters / name
        folder.mkdir()
        (folder / "file").write_bytes(b"x" * 10)
        os.utime(folder, (at, at))
    gone = store.home.run(99)
    gone.mkdir(parents=True)
    os.utime(gone, (old, old))
    disk_usage.clean(store)
    left = {path.name for path in store.home.adapters.iterdir()}
    assert left == {f".tmp-b-{living}", f".tmp-c-{dead}", ".hidden", "kept"}
    assert not gone.exists()


def test_an_adapter_of_a_run_without_a_job_stays(store):
    folder = store.home.run(99)
    for name in ("adapter", "checkpoints"):
        (folder / name).mkdir(parents=True)
    os.utime(folder, (0, 0))
    disk_usage.clean(store)
    assert (folder / "adapter").exists() and not (folder / "checkpoints").exists()


def test_a_link_is_never_followed(store, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_bytes(b"x" * 10_000)
    store.submit(a_spec())
    job = run_one(store, "succeeded").job
    folder = store.home.run(job) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-00000001").symlink_to(outside)
    checkpoint(store, job, 2)
    set_rules(store, 0, 0)
    disk_usage.clean(store)
    assert (outside / "file").exists()
    assert disk_usage.size(folder) < 10_000


def test_usage_names_the_parts_and_the_largest_runs(store):
    store.submit(a_spec())
    job = run_one(store, "succeeded").job
    checkpoint(store, job, 1)
    (store.home.models / "m").write_bytes(b"x" * 3000)
    (store.home.run(job) / "adapter").mkdir()
    (store.home.run(job) / "adapter" / "weights").write_bytes(b"x" * 2000)
    facts = disk_usage.usage(store)
    parts = {part["name"]: part["bytes"] for part in facts["parts"]}
    assert parts["Models"] == 3000
    assert parts["Checkpoints"] > 1000 and parts["Adapters"] == 2000
    assert facts["runs"][0]["id"] == job
    assert facts["free_bytes"] > 0 and facts["rules"] == {"keep_checkpoints": 1, "keep_days": 0}

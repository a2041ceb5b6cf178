"""An adapter that something else needs is neither deleted nor moved."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.actions import adapters, queue
from jobs.job_queue import JobStore
from studio.adapters.adapter_lineage import built_on
from studio.errors import AdapterError
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

"""The whole machinery with real training: killed in the middle, it ends as if nothing had been."""

import os
import signal
from pathlib import Path

import pytest

from jobs import supervisor
from jobs.store import JobStore
from studio.home import folder_hash
from tests.jobs.conftest import until
from tests.studio.tiny import tiny_spec


@pytest.fixture
def ingredients(tmp_path):
    return tiny_spec(
        tmp_path, method__r=2, method__lora_dropout=0.1, train__max_steps=300,
        train__save_steps=10, train__eval_steps=-1, train__per_device_train_batch_size=4,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_a_run_killed_twice_ends_with_the_same_adapter(home, ingredients):
    store = JobStore(home)
    calm = store.submit(ingredients.with_values({"name": "calm"})).id
    rough = store.submit(ingredients.with_values({"name": "rough"})).id

    def pid_at(attempt: int, step: int) -> int | None:
        job = store.get(rough)
        there = (job.attempt, job.state) == (attempt, "running") and job.step >= step
        return job.pid if there else None

    supervisor.ensure_running(home)
    try:
        until(lambda: store.get(calm).state == "succeeded", seconds=240)
        for kill in (1, 2):
            os.kill(until(lambda kill=kill: pid_at(kill, 35 * kill), seconds=240), signal.SIGKILL)
        until(lambda: store.get(rough).state == "succeeded", seconds=240)
    finally:
        supervisor.stop(home)

    job = store.get(rough)
    assert (job.attempt, job.step) == (3, 300)
    assert [a["outcome"] for a in store.attempts(rough)] == [
        "interrupted", "interrupted", "succeeded",
    ]  # fmt: skip
    assert store.attempts(rough)[1]["from_step"] >= 30
    curves = store.metrics([calm, rough], ["loss"])["data"]["loss"]
    assert curves[str(calm)] == curves[str(rough)], "bit for bit"
    folders = [Path(store.get(number).result["adapter"]) for number in (calm, rough)]
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert all(folder_hash(folder) for folder in folders)
    left = [p.name for p in home.runs.rglob(".tmp-*")] + [p.name for p in home.runs.rglob(".old-*")]
    assert left == []
    store.close()

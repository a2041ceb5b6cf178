"""The whole machinery with real training: killed in the middle, it ends as if nothing had been."""

import json
import os
import signal
from pathlib import Path

import pytest

from jobs import supervisor
from jobs.copy_and_extend_runs import then
from jobs.job_inputs import admit
from jobs.job_queue import JobStore
from studio.adapters.adapter_lineage import frozen_below
from studio.adapters.library import describe
from studio.home import folder_hash
from studio.training.train_run import train
from studio.training.training_events import Step
from tests.jobs.conftest import curve, until
from tests.studio.tiny import tiny_spec

pytestmark = pytest.mark.usefixtures("forked")
STAGE_STEPS = 60


@pytest.fixture
def ingredients(tmp_path):
    return tiny_spec(
        tmp_path, method__r=2, method__lora_dropout=0.1, train__max_steps=160,
        train__save_steps=10, train__eval_steps=-1, train__per_device_train_batch_size=4,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_a_run_killed_twice_ends_with_the_same_adapter(home, ingredients, tmp_path):
    store = JobStore(home)
    rough = store.submit(ingredients.with_values({"name": "rough"})).id

    def pid_at(attempt: int, step: int) -> int | None:
        job = store.get(rough)
        there = (job.attempt, job.state) == (attempt, "running") and job.step >= step
        return job.pid if there else None

    supervisor.ensure_running(home)
    try:
        for kill in (1, 2):
            os.kill(until(lambda kill=kill: pid_at(kill, 25 * kill), seconds=240), signal.SIGKILL)
        until(lambda: store.get(rough).state == "succeeded", seconds=240)
    finally:
        supervisor.stop(home)

    job = store.get(rough)
    assert (job.attempt, job.step) == (3, 160)
    assert [a["outcome"] for a in store.attempts(rough)] == [
        "interrupted", "interrupted", "succeeded",
    ]  # fmt: skip
    assert store.attempts(rough)[1]["from_step"] >= 20
    calm = [e.loss for e in train(ingredients, run_dir=tmp_path, home=home) if isinstance(e, Step)]
    assert curve(store, rough) == {"x": [*range(1, 161)], "y": calm}, "bit for bit"
    folders = [tmp_path / "adapter", Path(job.result["adapter"])]
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert all(folder_hash(folder) for folder in folders)
    left = [p.name for p in home.runs.rglob(".tmp-*")] + [p.name for p in home.runs.rglob(".old-*")]
    assert left == []
    store.close()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_chain_of_three_stages_killed_in_each_ends_with_the_same_adapters(home, tmp_path):
    """Raw text, then answers, then pairs on top: every stage is killed once and goes on."""
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    text, pairs = tmp_path / "book.txt", tmp_path / "pairs.jsonl"
    text.write_text("\n".join(f"The word {a} comes before {b}." for a in words for b in words))
    rows = [{"prompt": f"say {a}", "chosen": f"{a} {a}", "rejected": f"no {a}"} for a in words]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    spec = tiny_spec(
        tmp_path, method__r=2, method__lora_dropout=0.1, train__max_steps=STAGE_STEPS,
        train__save_steps=10, train__eval_steps=-1, train__per_device_train_batch_size=4,
    )  # fmt: skip
    answers = spec.data.path
    store = JobStore(home)

    def chain(name: str) -> list[int]:
        first = spec.with_values({"name": f"{name} 1", "data.path": str(text)})
        jobs = [store.submit(admit(first, home)).id]
        steps = ((answers, "sft", "continue"), (str(pairs), "dpo", "stack"))
        for number, (data, loss, mode) in enumerate(steps, start=2):
            jobs.append(then(store, jobs[-1], data, loss=loss, mode=mode, assignments={},
                             name=f"{name} {number}").id)  # fmt: skip
        return jobs

    def pid_within(number: int) -> int | None:
        job = store.get(number)
        assert job.state not in ("succeeded", "failed"), job
        return job.pid if (job.attempt, job.state) == (1, "running") and job.step >= 15 else None

    rough, calm = chain("rough"), chain("calm")
    supervisor.ensure_running(home)
    try:
        for number in rough:
            os.kill(until(lambda n=number: pid_within(n), seconds=400), signal.SIGKILL)
        for last in (rough[-1], calm[-1]):
            until(lambda n=last: store.get(n).state == "succeeded", seconds=400)
    finally:
        supervisor.stop(home)

    for number, twin in zip(rough, calm, strict=True):
        assert [a["outcome"] for a in store.attempts(number)] == ["interrupted", "succeeded"]
        assert [a["outcome"] for a in store.attempts(twin)] == ["succeeded"]
        assert store.attempts(number)[1]["from_step"] >= 10, "not from the start"
        curves = store.metrics([number, twin], ["loss"])["data"]["loss"]
        assert len(curves[str(number)]["x"]) == STAGE_STEPS
        assert curves[str(number)] == curves[str(twin)], "bit for bit"
        weights = [(home.run(job) / "adapter" / "adapter_model.safetensors").read_bytes()
                   for job in (number, twin)]  # fmt: skip
        assert weights[0] == weights[1]
    last = describe(home.run(rough[-1]) / "adapter")
    assert [(one["name"], one["frozen"]) for one in last.passport["lineage"]] == [
        ("rough 1", False), ("rough 2", True)
    ]  # fmt: skip
    assert [one.name for one in frozen_below(last)] == ["rough 2"]
    store.close()

"""Bake-offs: siblings of one group, one table, and the kinds that make something of adapters."""

import json
from contextlib import closing

import pytest
import torch

from jobs import bakeoff, job_kinds
from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.run_curves import Progress
from studio.adapter_stack import StackItem
from studio.adapters.library import describe
from studio.adapters.merge import MergeRequest, read_certificate
from studio.adapters.mix_adapters import MixRequest
from studio.backbone import Backbone
from studio.errors import AdapterError, InputError, MethodError, QueueError, WeightsTooLarge
from studio.evaluation.bakeoff_measurements import REPORT, BakeoffRequest, step_costs
from studio.models.loading import load
from studio.spec import RunSpec
from studio.training.starting_point import base_model
from studio.training.train_run import train
from tests.jobs.conftest import take
from tests.studio.tiny import tiny_spec, verifying_here


@pytest.fixture
def spec(tmp_path):
    return tiny_spec(
        tmp_path, method__r=4, train__max_steps=3, train__per_device_train_batch_size=4
    )


def test_a_bakeoff_queues_siblings_that_differ_only_in_the_method(store, spec, tmp_path):
    jobs = bakeoff.submit(store, spec, ["lora", "norm_tuning", "bitfit"], name="duel")
    assert [job.kind for job in jobs] == ["train", "train", "train", "bakeoff"]
    specs = [job.spec for job in jobs[:3]]
    assert [s["method"]["name"] for s in specs] == ["lora", "norm_tuning", "bitfit"]
    assert specs[0]["method"]["r"] == 4
    for key in ("model", "data", "train", "seed"):
        assert specs[0][key] == specs[1][key] == specs[2][key]
    with pytest.raises(InputError, match='no method called "lorra"'):
        bakeoff.submit(store, spec, ["lorra"], name="other")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 8)
    dpo = spec.with_values({"train.loss": "dpo", "data.path": str(pairs)})
    with pytest.raises(MethodError, match="full fine-tuning"):
        bakeoff.submit(store, dpo, ["lora", "full"], name="other")
    assert len(store.list()) == 4
    every = [job.spec["method"]["name"] for job in bakeoff.submit(store, dpo, [], name="all")[:-1]]
    assert "lora" in every and "full" not in every


@pytest.mark.parametrize("taken", ["duel bitfit", "duel table"])
def test_a_bakeoff_whose_second_name_is_taken_queues_nothing(store, spec, taken):
    store.submit(spec.with_values({"name": taken}))
    with pytest.raises(QueueError, match=f'already a job called "{taken}"'):
        bakeoff.submit(store, spec, ["lora", "bitfit"], name="duel")
    assert [job.name for job in store.list()] == [taken]


def test_seeds_become_means_with_intervals(store, spec):
    jobs = bakeoff.submit(store, spec, ["lora", "ia3"], name="duel", seeds=3, best_rates=True)
    assert [job.spec["seed"] for job in jobs[:6]] == [0, 1, 2] * 2
    assert all(job.spec["train"]["find_learning_rate"] for job in jobs[:6])
    for job, loss in zip(jobs[:3], (0.5, 0.6, 0.7), strict=True):
        claim = take(store, "cpu")
        assert claim.job == job.id
        store.claims.register(claim, me())
        store.claims.finish(claim, "succeeded", result={"eval_loss": loss, "learning_rate": 0.01})
    lora, ia3 = bakeoff.shown(store, "duel")["rows"]
    assert lora["eval_loss"] == pytest.approx(0.6)
    assert lora["eval_loss_interval"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert (lora["runs"], lora["state"], ia3["state"]) == ([1, 2, 3], "succeeded", "queued")


@pytest.mark.parametrize("end", ["failed", "cancelled", ""])
def test_the_mean_is_that_of_the_seeds_that_succeeded(store, spec, end):
    bakeoff.submit(store, spec, ["lora"], name="duel", seeds=3)
    ends = [(end, 9.0), ("succeeded", 0.5), ("succeeded", 0.7)]
    for state, loss in ends if end else ends[::-1]:  # one that still runs holds the device
        claim = take(store, "cpu")
        store.claims.register(claim, me())
        store.claims.report(claim, Progress(result={"eval_loss": loss}, step=1))
        if state == "cancelled":
            store.cancel(claim.job)
        if state:
            why = ("diverged", "The loss became NaN.") if state == "failed" else None
            store.claims.finish(claim, state, result={"eval_loss": loss}, error=why)
    (row,) = bakeoff.shown(store, "duel")["rows"]
    assert row["eval_loss"] == pytest.approx(0.6) and row["seeds"] == 2
    assert row["eval_loss_interval"] == pytest.approx(12.706 * 0.2 / 2**0.5 / 2**0.5)
    assert row["state"] == ("succeeded" if end else "running")
    assert bool(row["error"]) == (end == "failed")


def test_the_measuring_job_fills_the_table(home, spec):
    with closing(JobStore(home)) as store:
        spec = spec.with_values({"train.measure_forgetting": True})
        jobs = bakeoff.submit(
            store, spec, ["lora", "bottleneck", "full"], name="duel", prompts=["say a"]
        )
        forgot = {}
        for job in jobs[:3]:
            home.run(job.id).mkdir()
            (home.run(job.id) / "spec.yaml").write_text(RunSpec.parse(job.spec).to_yaml())
            events = list(train(RunSpec.parse(job.spec), run_dir=home.run(job.id), home=home))
            forgot[job.spec["method"]["name"]] = events[-1].facts["forgetting"]["forgetting"]
            claim = take(store, "cpu")
            store.claims.register(claim, me())
            result = {"forgetting": events[-1].facts["forgetting"]}
            store.claims.finish(claim, "succeeded", result=result)
        work = job_kinds.Work(
            spec=jobs[3].spec, run_dir=home.run(jobs[3].id), home=home, control=lambda: None
        )
        list(job_kinds.named("bakeoff")(work))
        rows = {row["method"]: row for row in bakeoff.shown(store, "duel")["rows"]}
    assert {name: row["forgetting"] for name, row in rows.items()} == forgot
    assert [row["title"] for row in rows.values()][1:] == ["Bottleneck adapter", "Full fine-tuning"]
    assert all(row["live_ratio"] > 0 and row["size_bytes"] > 0 for row in rows.values())
    assert rows["lora"]["merged_ratio"] == 1
    assert rows["bottleneck"]["merged_ratio"] is None
    assert rows["full"]["size_bytes"] > rows["lora"]["size_bytes"]
    assert all(len(row["answers"]) == 1 for row in rows.values())
    assert all(row["seconds_per_step"] > 0 for row in rows.values())
    assert all(row["memory_bytes"] >= 0 for row in rows.values())


def test_steps_are_measured_alone_and_leave_the_base_as_it_was(tmp_path, home, spec):
    loaded = load(base_model(spec), "cpu")
    backbone = Backbone(loaded.model)
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    methods = ("lora", "full", "prefix_tuning", "bitfit")  # BitFit: a Llama has no biases
    specs = {n: spec.with_values({"method.name": name}) for n, name in enumerate(methods, 1)}
    found = step_costs(specs, base_model(spec), loaded, backbone, home, tmp_path)
    assert set(found) == {1, 2, 3}
    assert all(one["seconds_per_step"] > 0 <= one["memory_bytes"] for one in found.values())
    assert not backbone.adapters
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, before[name])
        assert not weight.requires_grad


def test_a_method_out_of_memory_leaves_the_others(tmp_path, home, spec, monkeypatch):
    from studio.training import train_run

    opened = train_run.open_session

    def open_session(spec, **how):
        own = opened(spec, **how)
        if spec.method.name == "full":
            next(how["loaded"].model.parameters()).data.zero_()
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return own

    monkeypatch.setattr(train_run, "open_session", open_session)
    loaded = load(base_model(spec), "cpu")
    backbone = Backbone(loaded.model)
    weight = next(loaded.model.parameters())
    before = weight.clone()
    specs = {n: spec.with_values({"method.name": name}) for n, name in enumerate(("full", "lora"))}
    assert set(step_costs(specs, base_model(spec), loaded, backbone, home, tmp_path)) == {1}
    assert not backbone.adapters and torch.equal(weight, before)


def test_the_table_is_written_before_steps_are_measured(tmp_path, home, spec, monkeypatch):
    folder = home.run(1)
    list(train(spec, run_dir=folder, home=home))
    monkeypatch.setattr("studio.evaluation.bakeoff_measurements.step_costs", lambda *_: 1 / 0)
    asked = BakeoffRequest(name="x", model=spec.model, runs=(1,))
    with pytest.raises(ZeroDivisionError):
        list(asked.perform(home, tmp_path / "table"))
    (row,) = json.loads((tmp_path / "table" / REPORT).read_text())["rows"]
    assert row["method"] == "lora" and row["live_ratio"] > 0


def test_a_merged_model_that_does_not_fit_leaves_the_row(tmp_path, home, spec, monkeypatch):
    from studio.evaluation.bakeoff_measurements import merged_ratio
    from studio.models import loading

    def too_large(*_):
        raise WeightsTooLarge("too large")

    loaded = load(base_model(spec), "cpu")
    monkeypatch.setattr(loading, "load", too_large)
    source = spec.model.model_copy(update={"quantization": "nf4"})
    assert merged_ratio(source, loaded, Backbone(loaded.model)) is None


def test_what_was_measured_before_a_failure_is_kept(tmp_path, home, spec, monkeypatch):
    from studio.evaluation import bakeoff_measurements

    def measure(loaded, backbone, folder, prompts, merged):
        if folder.parent.name == "2":
            raise ValueError("broken")
        return {"method": "lora", "live_ratio": 1.5}

    monkeypatch.setattr(bakeoff_measurements, "measure", measure)
    for number in (1, 2):
        (home.run(number) / "adapter").mkdir(parents=True)
    with pytest.raises(ValueError, match="broken"):
        list(BakeoffRequest(model=spec.model, runs=(1, 2)).perform(home, tmp_path / "table"))
    (row,) = json.loads((tmp_path / "table" / REPORT).read_text())["rows"]
    assert (row["run"], row["live_ratio"]) == (1, 1.5)


def test_the_time_to_an_equal_loss_is_what_each_needs_alone(store, spec):
    jobs = bakeoff.submit(store, spec, ["lora", "ia3"], name="duel")
    curves = ({10: 0.9, 20: 0.7, 30: 0.8}, {10: 1.5, 20: 1.0, 30: 0.9})
    for curve in curves:
        claim = take(store, "cpu")
        store.claims.register(claim, me())
        points = [("eval_loss", step, loss, 0.0) for step, loss in curve.items()]
        store.claims.report(claim, Progress(metrics=points, step=30))
        store.claims.finish(claim, "succeeded")
    paces = {jobs[0].id: 0.5, jobs[1].id: 0.25}
    report = {"rows": [{"run": run, "seconds_per_step": pace} for run, pace in paces.items()]}
    store.home.run(jobs[2].id).mkdir()
    (store.home.run(jobs[2].id) / REPORT).write_text(json.dumps(report))
    rows = bakeoff.shown(store, "duel")["rows"]
    # 0.9 is what both reached: LoRA after 10 steps of 0.5 s, IA3 after 30 of 0.25 s.
    assert [row["target_loss"] for row in rows] == [0.9, 0.9]
    assert [row["seconds_to_loss"] for row in rows] == [5.0, 7.5]


def test_the_target_loss_is_of_the_mean_curves_of_runs_that_succeeded(store, spec):
    bakeoff.submit(store, spec, ["lora", "ia3"], name="duel", seeds=2)
    for losses in ((0.9, 0.7), (1.1, 0.5), (0.8, 0.4), (9.0,)):
        claim = take(store, "cpu")
        store.claims.register(claim, me())
        points = [("eval_loss", 10 * n, loss, 0.0) for n, loss in enumerate(losses, start=1)]
        store.claims.report(claim, Progress(metrics=points, step=20))
        why = ("diverged", "The loss became NaN.") if len(losses) == 1 else None
        store.claims.finish(claim, "failed" if why else "succeeded", error=why)
    # LoRA's mean falls from 1.0 to 0.6, IA3's one run that succeeded to 0.4.
    assert [row["target_loss"] for row in bakeoff.shown(store, "duel")["rows"]] == [
        pytest.approx(0.6)
    ] * 2


def test_merge_and_mix_are_kinds_of_jobs(home, spec):
    folders = []
    for number, seed in ((1, 0), (2, 1)):
        own = spec.with_values({"seed": seed, "name": f"run {number}"})
        events = list(train(own, run_dir=home.run(number), home=home))
        folders.append(events[-1].adapter)
    stack = (StackItem(name=folders[0], weight=0.5), StackItem(name="run 2"))
    merge = MergeRequest(name="Both", model=spec.model, stack=stack).checked(home)
    run = lambda kind, request: list(  # noqa: E731
        job_kinds.named(kind)(
            job_kinds.Work(
                spec=request.model_dump(mode="json"), run_dir=home.run(9), home=home,
                control=lambda: None,
            )
        )
    )  # fmt: skip
    with verifying_here():
        assert run("merge", merge)[-1].adapter == str(home.models / "both")
    assert read_certificate(home.models / "both")["max_error"] <= 1e-4
    mix = MixRequest(name="blend", model=spec.model, stack=stack).checked(home)
    run("mix", mix)
    assert describe(home.adapters / "blend").parents == ("run 1:0.5", "run 2:1")
    with pytest.raises(InputError, match="exists already"):
        MergeRequest(name="Both", model=spec.model, stack=stack).checked(home)
    for taken in ("blend", "run 1"):  # in the library, of a run
        with pytest.raises(AdapterError, match=f'already an adapter "{taken}"'):
            MixRequest(name=taken, model=spec.model, stack=stack).checked(home)


def test_a_stack_item_reads_its_weight():
    for text, name, weight in (("a", "a", 1.0), ("a:0.5", "a", 0.5), ("a:-1", "a", -1.0),
                               ("/x/y:2", "/x/y", 2.0)):  # fmt: skip
        item = StackItem.read(text)
        assert (item.name, item.weight) == (name, weight)

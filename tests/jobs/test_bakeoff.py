"""Bake-offs: siblings of one group, one table, and the kinds that make something of adapters."""

import json
from contextlib import closing

import pytest

from jobs import bakeoff, kinds
from jobs.store import JobStore
from studio.adapters.library import describe
from studio.adapters.merge import read_certificate
from studio.adapters.requests import MergeRequest, MixRequest
from studio.errors import AdapterError, InputError, QueueError
from studio.spec import ModelSource, RunSpec
from studio.stack import StackItem
from studio.training.run import train
from tests.studio.tiny import tiny_folder


@pytest.fixture
def base(tmp_path):
    return tiny_folder(tmp_path / "base")


@pytest.fixture
def spec(base, tmp_path):
    rows = [
        {"prompt": f"say {word}", "completion": f"{word} it is"}
        for word in ("red", "blue", "green", "black", "white", "brown") * 4
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    return RunSpec.parse(
        {
            "model": {"path": str(base)},
            "data": {"path": str(data)},
            "method": {"name": "lora", "r": 4},
            "train": {"max_steps": 3, "per_device_train_batch_size": 4},
        }
    )


def test_a_bakeoff_queues_siblings_that_differ_only_in_the_method(home, spec):
    with closing(JobStore(home)) as store:
        jobs = bakeoff.submit(store, spec, ["lora", "norm_tuning", "bitfit"], name="duel")
        assert [job.kind for job in jobs] == ["train", "train", "train", "bakeoff"]
        specs = [job.spec for job in jobs[:3]]
        assert [s["method"]["name"] for s in specs] == ["lora", "norm_tuning", "bitfit"]
        assert specs[0]["method"]["r"] == 4
        for one in specs[1:]:
            same = ("model", "data", "train", "seed")
            assert all(one[key] == specs[0][key] for key in same)
        with pytest.raises(QueueError, match='already "duel"'):
            bakeoff.submit(store, spec, ["lora"], name="duel")
        with pytest.raises(InputError, match='no method called "lorra"'):
            bakeoff.submit(store, spec, ["lorra"], name="other")
        assert len(store.list()) == 4
        rows = bakeoff.table(store, "duel")
        assert [row["state"] for row in rows] == ["queued"] * 3


@pytest.mark.parametrize("taken", ["duel bitfit", "duel table"])
def test_a_bakeoff_whose_second_name_is_taken_queues_nothing(home, spec, taken):
    with closing(JobStore(home)) as store:
        store.submit(spec.with_values({"name": taken}))
        with pytest.raises(QueueError, match=f'already a job called "{taken}"'):
            bakeoff.submit(store, spec, ["lora", "bitfit"], name="duel")
        assert [job.name for job in store.list()] == [taken]


def test_the_measuring_job_fills_the_table(home, spec):
    with closing(JobStore(home)) as store:
        jobs = bakeoff.submit(
            store, spec, ["lora", "bottleneck", "full"], name="duel", prompts=["say red"]
        )
        for job in jobs[:3]:
            list(train(RunSpec.parse(job.spec), run_dir=home.run(job.id), home=home))
        work = kinds.Work(
            spec=jobs[3].spec, run_dir=home.run(jobs[3].id), home=home, control=lambda: None
        )
        list(kinds.named("bakeoff")(work))
        rows = {row["method"]: row for row in bakeoff.table(store, "duel")}
    assert all(row["live_ratio"] > 0 and row["size_bytes"] > 0 for row in rows.values())
    assert rows["lora"]["merged_ratio"] > 0
    assert rows["bottleneck"]["merged_ratio"] is None
    assert rows["full"]["size_bytes"] > rows["lora"]["size_bytes"]
    assert all(len(row["answers"]) == 1 for row in rows.values())


def test_merge_and_mix_are_kinds_of_jobs(home, spec):
    folders = []
    for number, seed in ((1, 0), (2, 1)):
        own = spec.with_values({"seed": seed, "name": f"run {number}"})
        events = list(train(own, run_dir=home.run(number), home=home))
        folders.append(events[-1].adapter)
    stack = (StackItem(name=folders[0], weight=0.5), StackItem(name="run 2"))
    merge = MergeRequest(name="Both", model=spec.model, stack=stack).checked(home)
    run = lambda kind, request: list(  # noqa: E731
        kinds.named(kind)(
            kinds.Work(
                spec=request.model_dump(mode="json"), run_dir=home.run(9), home=home,
                control=lambda: None,
            )
        )
    )  # fmt: skip
    assert run("merge", merge)[-1].adapter == str(home.models / "both")
    assert read_certificate(home.models / "both")["max_error"] <= 1e-4
    mix = MixRequest(name="blend", model=spec.model, stack=stack).checked(home)
    run("mix", mix)
    assert describe(home.adapters / "blend").parents == ("run 1:0.5", "run 2:1")
    with pytest.raises(InputError, match="exists already"):
        MergeRequest(name="Both", model=spec.model, stack=stack).checked(home)
    with pytest.raises(AdapterError, match='already an adapter "blend"'):
        MixRequest(name="blend", model=spec.model, stack=stack).checked(home)


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [("a", "a", 1.0), ("a:0.5", "a", 0.5), ("a:-1", "a", -1.0), ("/x/y:2", "/x/y", 2.0)],
)
def test_a_stack_item_reads_its_weight(text, name, weight):
    item = StackItem.read(text)
    assert (item.name, item.weight) == (name, weight)


def test_requests_that_make_no_sense_are_refused(home, base):
    with pytest.raises(AdapterError, match='"heavy" is not a weight'):
        StackItem.read("a:heavy")
    model = ModelSource(path=str(base))
    with pytest.raises(InputError, match="at least one adapter"):
        MergeRequest(model=model).checked(home)
    with pytest.raises(AdapterError, match='no adapter "nobody"'):
        MergeRequest(model=model, stack=(StackItem(name="nobody"),)).checked(home)
    with pytest.raises(InputError, match="needs a name"):
        MixRequest(model=model, stack=(StackItem(name="nobody"),)).checked(home)

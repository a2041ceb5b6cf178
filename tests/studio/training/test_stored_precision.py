"""`model.dtype: auto` on a processor: a bfloat16 file stays bfloat16 where that pays."""

from contextlib import closing
from dataclasses import replace
from importlib import import_module

import pytest

from jobs import bakeoff, copy_and_extend_runs, job_inputs, job_kinds, sweeps
from jobs.job_kinds import Work
from jobs.job_queue import JobStore
from studio import hardware
from studio.models import find_model
from studio.models.find_model import facts
from studio.spec import ModelSource, RunSpec
from studio.training.estimate_memory_and_time import estimate
from studio.training.starting_point import (
    base_model,
    emulation_warning,
    with_stored_precision,
)
from ui import train_page_facts

STARTER = facts(ModelSource(path="starter"))
LARGE = replace(STARTER, weights_dtype="BF16", parameters=400_000_000)


@pytest.fixture
def processor(monkeypatch):
    """Set whether the processor multiplies bfloat16, and no other device."""

    def with_bfloat16(yes: bool) -> None:
        monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: yes)
        monkeypatch.setattr(hardware, "_gpus", list)

    return with_bfloat16


@pytest.mark.parametrize(
    ("known", "fast", "changes", "becomes"),
    [
        (LARGE, True, {}, "bfloat16"),
        (LARGE, False, {}, "auto"),
        (replace(LARGE, weights_dtype="F32"), True, {}, "auto"),
        (replace(LARGE, parameters=49_000_000), True, {}, "auto"),
        (LARGE, True, {"method.name": "full"}, "auto"),
        (LARGE, True, {"model.dtype": "float32"}, "float32"),
        (LARGE, True, {"model.quantization": "nf4"}, "auto"),
    ],
)
def test_auto_keeps_the_stored_precision_where_it_pays(processor, known, fast, changes, becomes):
    processor(fast)
    spec = RunSpec().with_values(changes)
    assert with_stored_precision(spec, known).model.dtype == becomes


def test_a_gpu_decides_for_itself_when_the_run_starts(processor, monkeypatch):
    processor(True)
    card = hardware.Device(name="cuda:0", label="", total_bytes=1 << 34, free_bytes=1 << 34)
    monkeypatch.setattr(hardware, "_gpus", lambda: [card])
    assert with_stored_precision(RunSpec(), LARGE).model.dtype == "auto"
    on_cpu = RunSpec().with_values({"train.device": "cpu"})
    assert with_stored_precision(on_cpu, LARGE).model.dtype == "bfloat16"


@pytest.mark.parametrize("kind", ["train", "preflight", "siblings"])
def test_each_run_resolves_auto_for_its_own_method_when_it_starts(
    processor, home, monkeypatch, kind
):
    processor(True)
    monkeypatch.setattr(find_model, "facts", lambda source: LARGE)
    seen: list[RunSpec] = []
    for module, name, take in (
        ("train_run", "train", lambda spec, **_: seen.append(spec)),
        ("preflight", "preflight", lambda spec, **_: seen.append(spec)),
        ("siblings", "train_siblings", lambda runs, home: seen.extend(one.spec for one in runs)),
    ):
        monkeypatch.setattr(import_module(f"studio.training.{module}"), name, take)

    def starts(spec: RunSpec, device: str) -> str:
        work = Work(
            spec=spec.model_dump(mode="json"), run_dir=home.run(1), home=home,
            control=lambda: None, device=device,
        )  # fmt: skip
        if kind == "siblings":
            job_kinds.train_together([work])
        else:
            job_kinds.named(kind)(work)
        return base_model(seen.pop()).dtype

    full = RunSpec().with_values({"method.name": "full"})
    admitted = job_inputs.admit(RunSpec(), home)
    assert admitted.model.dtype == "bfloat16", "what it became is kept"
    assert job_inputs.admit(RunSpec(), home, here=False).model.dtype == "auto"
    assert starts(RunSpec(), "cpu") == "bfloat16", "its model was not here when it was submitted"
    assert starts(job_inputs.admit(full, home), "cpu") == "float32", "weights are trained"
    assert starts(RunSpec(), "cuda:0") == "auto", "the GPU decides"
    processor(False)
    assert starts(admitted, "cpu") == "bfloat16", "a run that is resumed keeps what it had"


def test_bakeoffs_sweeps_and_copies_resolve_auto_for_each_method(processor, home, monkeypatch):
    processor(True)
    monkeypatch.setattr(find_model, "facts", lambda source: LARGE)
    both = {"method.name": ["lora", "full"]}
    with closing(JobStore(home)) as store:
        jobs = [
            *bakeoff.submit(store, RunSpec(), both["method.name"], name="duel")[:2],
            *sweeps.submit_sweep(store, RunSpec(), both, name="sweep"),
        ]
        jobs.append(copy_and_extend_runs.duplicate(store, jobs[0].id, {"method.name": "full"}))
        found = [(job.spec["method"]["name"], job.spec["model"]["dtype"]) for job in jobs]
        assert {*found} == {("lora", "bfloat16"), ("full", "auto")} and len(found) == 5
        old = store.submit(RunSpec().with_values({"model.dtype": "bfloat16"}))
        copies = [
            copy_and_extend_runs.duplicate(store, old.id, change).spec["model"]["dtype"]
            for change in (
                {"seed": 1}, {"method.name": "full"},
                {"method.name": "full", "model.dtype": "float16"},
            )
        ]  # fmt: skip
    assert copies == ["bfloat16", "auto", "float16"], "that of frozen weights is not for trained"


def test_the_estimate_counts_and_names_the_precision_that_is_loaded(processor, home, monkeypatch):
    import studio.training.estimate_memory_and_time as module

    monkeypatch.setattr(module, "facts", lambda source: LARGE)
    processor(False)
    wide = estimate(RunSpec(), home)
    processor(True)
    half = estimate(RunSpec(), home)
    assert (wide.dtype, half.dtype) == ("float32", "bfloat16")
    assert half.parts["weights"] * 2 == wide.parts["weights"]


def test_precision_that_the_processor_emulates_is_named_and_estimated(processor, home):
    def found(dtype, **changes):
        spec = RunSpec().with_values({"model.dtype": dtype, "train.device": "cpu", **changes})
        return emulation_warning(spec), estimate(spec, home).seconds

    processor(False)
    whole = found("float32")[1]
    for dtype in ("bfloat16", "float16"):
        warning, seconds = found(dtype)
        assert warning.startswith(f"This processor has no instructions for {dtype}: matrix ")
        assert warning.endswith("Set model.dtype=auto.")
        assert seconds > 3 * whole
    assert found("auto")[0] == found("float32")[0] == ""
    assert "dtype=auto" in [*train_page_facts.warnings(
        RunSpec().with_values({"model.dtype": "bfloat16", "train.device": "cpu"}), home
    )][-1]  # fmt: skip
    processor(True)
    assert found("bfloat16") == ("", pytest.approx(whole, rel=0.5))

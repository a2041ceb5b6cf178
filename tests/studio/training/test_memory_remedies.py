"""One list of what makes a run smaller, for all who offer it."""

import weakref

import pytest

from studio import hardware
from studio.errors import MethodError, OutOfMemory, SpecError
from studio.hardware import Device
from studio.spec import RunSpec
from studio.training import memory_remedies as room
from studio.training import train_run
from studio.training.memory_remedies import pick, remedies, runs_on_gpu


def make_spec(**values: object) -> RunSpec:
    return RunSpec().with_values({name.replace("__", "."): v for name, v in values.items()})


@pytest.fixture(autouse=True)
def a_machine(monkeypatch):
    """Without bitsandbytes and without fast half precision on the processor."""
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: False)


def test_what_keeps_the_result_comes_first():
    found = remedies(make_spec(model__dtype="float32"), on_gpu=True)
    assert [one.name for one in found] == [
        "batch", "checkpointing", "offloading", "precision", "quantization", "length"
    ]  # fmt: skip
    assert [one.same_result for one in found] == [True, True, True, False, False, False]
    assert found[0].changes == {
        "train.per_device_train_batch_size": 4, "train.gradient_accumulation_steps": 2
    }  # fmt: skip
    assert found[0].about == "Batch size 4 instead of 8, with gradients accumulated over 2 batches."
    spec = make_spec(train__per_device_train_batch_size=6, train__gradient_accumulation_steps=5)
    for remedy in remedies(spec, on_gpu=True):
        args = spec.with_values(remedy.changes).train
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 30


def names(*, on_gpu: bool, **values: object) -> list[str]:
    return [one.name for one in remedies(make_spec(**values), on_gpu=on_gpu)]


def test_only_what_helps_there_is_offered(monkeypatch):
    assert not {"offloading", "precision"} & set(names(on_gpu=False))
    offloading = next(r for r in remedies(make_spec(), on_gpu=True) if r.name == "offloading")
    assert offloading.changes == {
        "train.gradient_checkpointing": True, "train.activation_offloading": True
    }  # fmt: skip
    recomputing = make_spec(train__gradient_checkpointing=True)
    found = {one.name: one for one in remedies(recomputing, on_gpu=True)}
    assert "checkpointing" not in found
    assert found["offloading"].changes == {"train.activation_offloading": True}
    assert "quantization" not in names(on_gpu=True, method__name="full"), "a base that trains"
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: True)
    assert "precision" in names(on_gpu=False) and "precision" not in names(on_gpu=True)


def test_the_first_that_keeps_the_result_is_taken_else_one_is_named():
    found = remedies(make_spec(), on_gpu=True)
    assert pick(found).name == "batch"
    assert pick(found, "checkpointing").changes == {"train.gradient_checkpointing": True}
    with pytest.raises(SpecError, match="checkpointing"):
        pick(found, "checkpoint")
    with pytest.raises(SpecError, match="pip install bitsandbytes"):
        pick(found, "quantization")
    least = make_spec(
        train__per_device_train_batch_size=1, train__gradient_checkpointing=True,
        train__activation_offloading=True,
    )  # fmt: skip
    with pytest.raises(OutOfMemory, match=r"No remedy that keeps.*length \(shorter rows\)"):
        pick(remedies(least, on_gpu=True))


@pytest.mark.parametrize(
    ("wish", "expected"), [("cpu", False), ("cuda:1", True), ("cuda:0,cuda:1", True)]
)
def test_where_a_run_goes_is_told_from_its_wish(wish, expected):
    assert runs_on_gpu(make_spec(train__device=wish)) is expected


def test_offloading_is_offered_where_it_is_possible(monkeypatch):
    assert "offloading" in names(on_gpu=True, train__device="cuda:0")
    assert "offloading" not in names(on_gpu=True, train__device="xpu:0")
    made = Device(name="xpu:0", label="", total_bytes=8, free_bytes=8)
    monkeypatch.setattr(hardware, "devices", lambda: [made])
    assert "offloading" not in names(on_gpu=True)


def test_a_retry_that_is_not_possible_here_leaves_the_first_error(monkeypatch, tmp_path, home):
    """Such as gradient checkpointing of an architecture that has none."""
    errors = iter([OutOfMemory("no room"), MethodError("no checkpointing"), MethodError("wrong")])

    def fails(*_, **__):
        raise next(errors)
        yield

    monkeypatch.setattr(train_run, "_train", fails)
    spec = make_spec(train__retry_when_out_of_memory=True)
    with pytest.raises(OutOfMemory, match="no room"):
        list(train_run.train(spec, run_dir=tmp_path, home=home))
    with pytest.raises(MethodError, match="wrong"):
        list(train_run.train(spec, run_dir=tmp_path, home=home))


@pytest.mark.parametrize("devices", [{}, {"train__device": "cpu", "train__num_processes": 2}])
def test_a_retry_begins_without_the_model_of_the_failed_attempt(
    monkeypatch, tmp_path, home, devices
):
    class Model:
        pass

    loaded = list[weakref.ref[Model]]()

    def attempt(*_, **__):
        if loaded:
            assert loaded[0]() is None
            return
        model = Model()
        loaded.append(weakref.ref(model))
        try:
            raise MemoryError
        except MemoryError as cause:
            raise OutOfMemory("no room") from cause
        yield

    monkeypatch.setattr(train_run, "_train", attempt)
    spec = make_spec(train__retry_when_out_of_memory=True, **devices)
    (event,) = train_run.train(spec, run_dir=tmp_path, home=home)
    assert "retrying with per_device_train_batch_size 4" in event.text

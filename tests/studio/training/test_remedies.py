"""One list of what makes a run smaller, for all who offer it."""

import pytest

from studio import hardware
from studio.errors import OutOfMemory, SpecError
from studio.spec import RunSpec
from studio.training import remedies as room
from studio.training.remedies import pick, remedies, runs_on_gpu


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


def test_every_remedy_is_a_valid_run_of_the_same_effective_batch():
    spec = make_spec(train__per_device_train_batch_size=6, train__gradient_accumulation_steps=5)
    for remedy in remedies(spec, on_gpu=True):
        args = spec.with_values(remedy.changes).train
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 30


def test_offloading_is_for_a_gpu_and_brings_recomputation_along():
    names = [one.name for one in remedies(make_spec(), on_gpu=False)]
    assert "offloading" not in names and "precision" not in names
    offloading = next(r for r in remedies(make_spec(), on_gpu=True) if r.name == "offloading")
    assert offloading.changes == {
        "train.gradient_checkpointing": True, "train.activation_offloading": True
    }  # fmt: skip
    recomputing = make_spec(train__gradient_checkpointing=True)
    found = {one.name: one for one in remedies(recomputing, on_gpu=True)}
    assert "checkpointing" not in found
    assert found["offloading"].changes == {"train.activation_offloading": True}


def test_a_processor_that_multiplies_bfloat16_is_offered_it(
    monkeypatch,
):
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: True)
    assert "precision" in [one.name for one in remedies(make_spec(), on_gpu=False)]
    assert "precision" not in [one.name for one in remedies(make_spec(), on_gpu=True)]  # is so


def test_a_base_that_trains_is_not_quantized():
    full = make_spec(method__name="full")
    assert "quantization" not in [one.name for one in remedies(full, on_gpu=True)]


def test_the_first_that_keeps_the_result_is_taken_else_one_is_named():
    found = remedies(make_spec(), on_gpu=True)
    assert pick(found).name == "batch"
    assert pick(found, "checkpointing").changes == {"train.gradient_checkpointing": True}
    with pytest.raises(SpecError, match="checkpointing"):
        pick(found, "checkpoint")
    with pytest.raises(SpecError, match="pip install bitsandbytes"):
        pick(found, "quantization")


def test_where_nothing_that_keeps_the_result_is_left_the_rest_is_named():
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

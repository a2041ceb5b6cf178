"""What fits on a device, and remedies: in order, each smaller, and errors that name them."""

import re
import weakref
from datetime import date
from pathlib import Path

import pytest

from studio import hardware
from studio.errors import MethodError, ModelError, OutOfMemory, SpecError
from studio.hardware import Device
from studio.models.find_model import facts, facts_of_config
from studio.models.model_files import read_config
from studio.models.model_list import CURATED, curated
from studio.spec import ModelSource, RunSpec
from studio.starter import MODEL_DIR
from studio.training import fit_in_memory, train_run
from studio.training import fit_in_memory as room
from studio.training.explain_errors import explain_errors
from studio.training.fit_in_memory import pick, remedies, runs_on_gpu
from studio.training.sizes_for_estimates import shape_of


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


def test_a_rank_on_a_card_of_its_own_has_the_remedies_of_its_run(monkeypatch):
    cards = [Device(name=f"cuda:{n}", label="", total_bytes=8, free_bytes=8) for n in range(4)]
    monkeypatch.setattr(hardware, "devices", lambda: cards)
    rank = make_spec(
        train__device="cuda:1", train__num_processes=4, train__retry_when_out_of_memory=True
    )
    assert "sharing" in [one.name for one in remedies(rank)]
    with pytest.raises(OutOfMemory, match="Out of memory at step 3") as error:
        with explain_errors(rank, lambda: "at step 3"):
            raise MemoryError
    assert (fit_in_memory.retry_changes(rank, error.value) or {})[
        "train.per_device_train_batch_size"
    ] == 4


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


GIB = 2**30


def device(size: float, name: str = "cuda:0") -> hardware.Device:
    return hardware.Device(
        name=name, label=name, total_bytes=int(size * GIB), free_bytes=int(size * GIB)
    )


def bytes_of(row: list[fit_in_memory.Fit]) -> list[int]:
    return [one.bytes for one in row]


def weights(config: dict, parameters: int) -> int:
    """The matrices of all layers and the vocabulary, counted from the sizes."""
    shape = shape_of(config, facts_of_config(config, Path("m"), parameters=parameters))
    heads = 1 if shape.tied else 2
    return shape.matrices + heads * shape.vocabulary * shape.hidden


def test_curated_facts_are_dated_and_the_sizes_add_up_to_the_parameters():
    entries = fit_entries()
    assert len(entries) == len({one["id"] for one in entries}) == len(curated()) >= 19
    for one in entries:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", one["id"]) and one["what"]
        assert set(one["facts"]) <= {"parameters", "active", "bytes", "license", "gated",
                                     "context", "template"}  # fmt: skip
        for value, day in one["facts"].values():
            assert value is not None and date(2026, 1, 1) <= date.fromisoformat(day)
    for model in curated():
        if model.config:
            share = weights(model.config, model.parameters) / model.parameters
            assert 0.7 < share < 1.05, model.name  # vision towers and delta rules are not counted
            assert model.config["max_position_embeddings"] == model.context


def fit_entries() -> list[dict]:
    import json

    return json.loads(CURATED.read_text())["models"]


def test_more_tokens_need_more_and_four_bits_less():
    for model in curated():
        if not model.parameters:
            continue
        found = fit_in_memory.fits(model.config, model.parameters, device(1000))
        for row in found.values():
            assert bytes_of(row) == sorted(bytes_of(row)) and {one.state for one in row} == {"fits"}
        full, lora, qlora = (bytes_of(found[way])[0] for way in fit_in_memory.WAYS)
        assert full > 2.5 * lora and full > 16 * model.parameters  # float32: base, gradient, Adam
        assert model.parameters * 2 < lora < model.parameters * 2 + 6 * GIB
        if model.parameters > 2e9:
            assert qlora < 0.75 * lora, model.name


def test_badges_follow_the_memory_of_the_device():
    llama = next(one for one in curated() if "Llama-3.2-1B" in one.name)
    states = [
        fit_in_memory.fits(llama.config, llama.parameters, device(size / 4))["lora"][1].state
        for size in range(64, 4, -1)
    ]
    assert list(dict.fromkeys(states)) == ["fits", "tight", "no"]
    assert fit_in_memory.fits({}, 2_000_000_000, device(8))["full"][0].bytes > 30 * GIB


def test_sizes_are_made_up_where_only_the_parameters_are_known():
    for parameters in (300e6, 1.2e9, 3e9, 8e9, 30e9):
        assert weights(
            fit_in_memory.usual_config(int(parameters)), int(parameters)
        ) == pytest.approx(parameters, rel=0.2)


def test_a_local_model_is_as_its_files_say():
    known, config = facts(ModelSource()), read_config(MODEL_DIR)
    found = fit_in_memory.fits(config, known.parameters, device(16, "cpu"), weights_dtype="F32")
    assert [one.state for one in found["lora"]] == ["fits", "short", "short"]
    with pytest.raises(ModelError, match="Odd"):
        fit_in_memory.fits({"architectures": ["Odd"], "hidden_size": 8}, 10, device(16))
    for strange in ({"text_config": "x"}, {"text_config": [1]}, {"rope_scaling": 7}):
        assert fit_in_memory.fits(config | strange, known.parameters, device(16))["lora"]

"""Memory, devices and leases of resident models; a stand-in plays the GPU."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studio import hardware
from studio.adapter_stack import StackItem
from studio.chat import resident_models
from studio.chat.lanes import Lane, Sampling
from studio.chat.resident_models import ResidentModels
from studio.errors import OutOfMemory
from studio.models import loading
from studio.models.find_model import facts
from studio.spec import ModelSource, RunSpec
from studio.starter import MODEL_DIR
from tests.ui.conftest import put_adapter

GIB, STARTER = 1 << 30, "starter"


@pytest.fixture
def gpu(monkeypatch):
    """A card with `gpu["free"]` bytes; what is loaded on it is on the CPU under its name."""
    state = {"free": 24 * GIB}
    load = loading.load

    def on_cpu(source, device="auto", **options):
        state["loaded"] = (source.quantization, device)
        return load(ModelSource(path=source.path), device="cpu", **options)

    monkeypatch.setattr(loading, "load", on_cpu)
    monkeypatch.setattr(loading, "torch_device", torch.device)
    monkeypatch.setattr(loading, "dtype_for", lambda name, device: (
        torch.bfloat16 if device.type == "cuda" else torch.float32
    ))  # fmt: skip
    monkeypatch.setattr(resident_models, "_free_bytes", lambda device: state["free"])
    return state


def model_of(billions: float, monkeypatch) -> None:
    known = facts(ModelSource(path=STARTER))
    known = type(known)(**{
        **{name: getattr(known, name) for name in known.__slots__},
        "parameters": int(billions * 1e9),
    })  # fmt: skip
    monkeypatch.setattr(resident_models, "facts", lambda source: known)


def ask(models: ResidentModels, *adapters: str, model: str = STARTER) -> list:
    lane = Lane(
        model=model, messages=[{"role": "user", "content": "Hello"}],
        sampling=Sampling(max_new_tokens=2),
        stack=tuple(StackItem(name=name) for name in adapters),
    )  # fmt: skip
    return list(models.stream([lane]))


@pytest.mark.parametrize(
    ("billions", "device", "free_gib", "fits"),
    [(8, "cuda:0", 23.3, True), (3, "cuda:0", 11, True), (14, "cuda:0", 40, True),
     (14, "cuda:0", 24, False), (8, "cpu", 23.3, False)],
)  # fmt: skip
def test_a_base_counts_the_bytes_that_it_loads(
    home, gpu, monkeypatch, billions, device, free_gib, fits
):
    """bfloat16 on a GPU takes 2 bytes a parameter, float32 on a CPU 4."""
    model_of(billions, monkeypatch)
    gpu["free"] = int(free_gib * GIB)
    last = ask(ResidentModels(home, device=device))[-1]
    assert (last.error is None) is fits
    assert fits or isinstance(last.error, OutOfMemory)


def test_a_base_of_adapters_trained_in_4_bits_is_loaded_in_4_bits_on_a_gpu(home, gpu, monkeypatch):
    """8B: 4.5 GB instead of 16. Whole without bitsandbytes, on a CPU, with a value not ours."""
    for name, method in (("q", "qlora"), ("plain", "lora"), ("theirs", "lora")):
        spec = RunSpec.parse({"method": {"name": method}}).model_dump(mode="json")
        if name == "theirs":
            spec["model"]["quantization"] = "int4"
        put_adapter(home.adapters / name, name, spec=spec)
    model_of(8, monkeypatch)
    gpu["free"] = 6 * GIB
    models = ResidentModels(home, device="cuda:0")
    monkeypatch.setattr(models, "_with_adapters", lambda *_: iter(()))
    monkeypatch.setattr(resident_models, "_renumbered", lambda *_: iter(()))
    notes = [delta.note for delta in ask(models, "q")]
    assert gpu["loaded"] == ("nf4", "cuda:0")
    assert any("nf4" in note for note in notes)
    assert isinstance(ask(models, "q", "plain")[-1].error, OutOfMemory)
    gpu["free"] = 24 * GIB
    ask(models, "theirs")
    assert gpu["loaded"] == ("none", "cuda:0")
    models.release()
    gpu.pop("loaded")
    monkeypatch.setattr(resident_models, "can_quantise", lambda: False)
    ask(models, "q")
    assert gpu["loaded"] == ("none", "cuda:0")
    gpu["free"] = 64 * GIB
    for name in ("q", "theirs"):
        gpu.pop("loaded")
        ask(ResidentModels(home, device="cpu"), name)
        assert gpu["loaded"] == ("none", "cpu")


def test_a_base_that_is_dropped_returns_its_memory_before_the_next_is_counted(
    home, gpu, monkeypatch, tmp_path
):
    known = facts(ModelSource(path=STARTER))
    monkeypatch.setattr(resident_models, "facts", lambda source: replace(
        known, path=Path(source.path), parameters=8_000_000_000
    ))  # fmt: skip
    models, other = ResidentModels(home, device="cuda:0"), str(tmp_path / "other")
    monkeypatch.setattr(hardware, "return_cached_memory", lambda: gpu.update(
        free=(24 - 15 * len(models.describe())) * GIB
    ))  # fmt: skip
    shutil.copytree(MODEL_DIR, other)
    gpu["free"] = 9 * GIB  # torch keeps that of earlier answers, too
    assert ask(models)[-1].error is None
    gpu["free"] = 9 * GIB  # torch keeps what is dropped until it is asked
    assert ask(models, model=other)[-1].error is None
    assert [model["model"] for model in sorted(models.describe(), key=str)] == [other]


def test_a_lane_is_answered_on_the_revision_of_the_base_that_its_adapter_was_trained_on(
    home, gpu, monkeypatch
):
    """A lane of the same base beside it too, that the two are compared on one model."""
    put_adapter(home.adapters / "a", "a", base={"path": "org/model", "revision": "v1"})
    known, asked = facts(ModelSource(path=STARTER)), []
    monkeypatch.setattr(resident_models, "facts", lambda source: asked.append(source) or known)
    monkeypatch.setattr(resident_models, "_renumbered", lambda *_: iter(()))
    models = ResidentModels(home, device="cpu")
    monkeypatch.setattr(models, "_with_adapters", lambda *_: iter(()))
    monkeypatch.setattr(models, "_load", lambda base: asked.append(base.source) or "")
    prompt = {"model": "org/model", "messages": [{"role": "user", "content": "Hello"}]}
    stacked = Lane(**prompt, stack=[{"name": "a"}])
    for lanes, revision in (([stacked], "v1"), ([Lane(**prompt), stacked], "v1"),
                            ([Lane(**prompt)], "")):  # fmt: skip
        models.release()
        asked.clear()
        list(models.stream(lanes))
        assert {(one.path, one.revision) for one in asked} == {("org/model", revision)}


def test_a_request_that_was_stopped_while_it_waited_loads_nothing(home):
    models = ResidentModels(home, device="cpu")
    lane = Lane(messages=[{"role": "user", "content": "Hello"}])
    (end,) = models.stream([lane], stopped=lambda: True)
    assert (end.done, end.reason, models.describe()) == (True, "stopped", [])


def test_the_device_is_asked_at_each_question_and_held_before_loading(home, gpu):
    here, held = ["cpu"], []

    def hold(models):
        held.append(([model["device"] for model in models], gpu.get("loaded")))
        gpu.pop("loaded", None)

    models = ResidentModels(home, device=lambda: here[0], hold=hold)
    ask(models)
    assert held == [(["cpu"], None)] and gpu["loaded"] == ("none", "cpu")
    ask(models)
    assert len(held) == 1, "resident and unchanged"
    here[0] = "cuda:0"  # the run that had the card has ended
    ask(models)
    assert held[-1][0] == ["cuda:0"] and gpu["loaded"] == ("none", "cuda:0")
    assert [model["device"] for model in sorted(models.describe(), key=str)] == ["cuda:0"]


def test_an_adapter_that_is_a_whole_model_answers_as_that_model(home):
    whole = home.adapters / "whole"
    shutil.copytree(MODEL_DIR, whole)
    (whole / "passport.json").write_text(json.dumps({"name": "whole", "base": {"path": STARTER}}))
    models = ResidentModels(home, device="cpu")

    said = [one.text for one in ask(models, "whole") if one.text]
    assert said == [one.text for one in ask(models) if one.text]
    assert [one["model"] for one in sorted(models.describe(), key=str)] == [str(whole), STARTER]

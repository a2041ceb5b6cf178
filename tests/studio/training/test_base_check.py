"""The self-test of a base: what it finds, what it keeps, and what a run does with it."""

import json

import pytest
import torch

from studio.adapters.library import PASSPORT
from studio.backbone import Backbone
from studio.chat.lanes import Lane, Sampling
from studio.chat.resident_models import ResidentModels
from studio.errors import ModelError
from studio.methods.lora import Lora
from studio.models.loading import Loaded, load
from studio.spec import ModelSource
from studio.training import base_check
from studio.training.base_check import FILE, check_base
from studio.training.siblings import Sibling, train_siblings
from studio.training.train_run import train
from studio.training.training_events import Finished, Loading, Step
from tests.families import write_family
from tests.studio.tiny import tiny_folder, tiny_spec


def opened(tmp_path, name: str) -> tuple[Backbone, Loaded]:
    loaded = load(ModelSource(path=str(tiny_folder(tmp_path / name, name))), "cpu")
    return Backbone(loaded.model), loaded


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_right_model_passes_and_its_result_is_kept(name, tmp_path, home):
    backbone, loaded = opened(tmp_path, name)
    backbone.attach("mine", Lora(r=2))
    backbone.use([("mine", 0.5)])
    found = check_base(backbone, loaded, home, quantization="none")
    assert set(found["errors"]) == {"adapted", "packed", "cached"}
    assert max(found["errors"].values()) < 1e-4
    assert list(backbone.adapters) == ["mine"]
    assert backbone.active_for_all == (("mine", 0.5),)
    (kept,) = json.loads((home.state / FILE).read_text()).values()
    assert kept == found
    backbone.model.forward = None  # a second check reads the result
    assert check_base(backbone, loaded, home, quantization="none") == found


def test_a_layer_that_leaks_between_packed_rows_is_named(tmp_path, home):
    backbone, loaded = opened(tmp_path, "llama")

    def leak(module, args, output):
        return output + torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)

    assert backbone.anatomy.recording.separable  # before the layer leaks
    backbone.model.model.layers[1].mlp.register_forward_hook(leak)
    with pytest.raises(ModelError, match=r"packed and separate rows differ.*layer 1 \(Llama"):
        check_base(backbone, loaded, home, quantization="none")
    assert not (home.state / FILE).exists()
    assert list(backbone.adapters) == []


def test_siblings_check_their_base_once_and_each_passport_has_the_result(
    tmp_path, home, monkeypatch
):
    spec = tiny_spec(tmp_path, train__max_steps=1, train__device="cpu", train__num_samples=0)
    measured: list[str] = []
    ways = base_check._ways

    def counted(backbone):
        measured.append("once")
        return ways(backbone)

    monkeypatch.setattr(base_check, "_ways", counted)
    specs = [spec.with_values({"method.r": r}) for r in (2, 4)]
    runs = [Sibling(one, tmp_path / str(n), lambda: None) for n, one in enumerate(specs)]
    events = list(train_siblings(runs, home=home))
    assert [n for n, event in events if isinstance(event, Finished)] == [0, 1]
    passports = [json.loads((run.run_dir / "adapter" / PASSPORT).read_text()) for run in runs]
    assert passports[0]["self_test"] == passports[1]["self_test"]
    assert set(passports[0]["self_test"]["errors"]) == {"adapted", "packed", "cached"}
    assert measured == ["once"]


def test_siblings_of_a_base_that_fails_end_before_their_first_step(tmp_path, home, monkeypatch):
    spec = tiny_spec(tmp_path, train__max_steps=1, train__device="cpu", train__num_samples=0)
    monkeypatch.setattr(base_check, "_compared", lambda *ways: 0.5)
    specs = [spec.with_values({"seed": n, "train.self_test": n == 0}) for n in range(2)]
    runs = [Sibling(one, tmp_path / str(n), lambda: None) for n, one in enumerate(specs)]
    events = list(train_siblings(runs, home=home))
    ends = {n: event for n, event in events if isinstance(event, Exception | Finished)}
    assert isinstance(ends[0], ModelError) and "failed its self-test" in str(ends[0])
    assert not [event for n, event in events if n == 0 and isinstance(event, Step)]
    assert isinstance(ends[1], Finished), "the switch in Advanced trains anyway"


@pytest.mark.filterwarnings("error:`past_key_values` is deprecated")
def test_chat_answers_and_says_what_the_self_test_found(tmp_path, home, monkeypatch):
    base = str(tiny_folder(tmp_path / "base"))
    lane = Lane(model=base, messages=[{"role": "user", "content": "hello"}],
                sampling=Sampling(max_new_tokens=2))  # fmt: skip

    def notes() -> str:
        deltas = list(ResidentModels(home, device="cpu").stream([lane]))
        assert deltas[-1].done and deltas[-1].error is None
        return " ".join(delta.note for delta in deltas)

    with monkeypatch.context() as broken:
        broken.setattr(base_check, "_compared", lambda *ways: 0.5)
        assert "base failed its self-test with transformers" in notes()
        assert not (home.state / FILE).exists()
    assert "self-test" not in notes()
    (kept,) = json.loads((home.state / FILE).read_text()).values()
    monkeypatch.setattr(base_check, "_compared", lambda *ways: 0.5)
    assert "self-test" not in notes(), "the kept result was read"
    assert max(kept["errors"].values()) < 1e-4


def test_a_model_that_reads_both_ways_is_trained_from_left_to_right_and_says_so(tmp_path, home):
    spec = tiny_spec(tmp_path, train__max_steps=1, train__device="cpu", train__num_samples=0)
    folder = write_family("bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text()) | {"is_decoder": False}
    (folder / "config.json").write_text(json.dumps(config))
    spec = spec.with_values({"model.path": str(folder), "method.r": 4})
    events = list(train(spec, run_dir=tmp_path / "run", home=home))
    said = [event.text for event in events if isinstance(event, Loading)]
    assert [text for text in said if "is_decoder is false in its config.json" in text]
    assert isinstance(events[-1], Finished)

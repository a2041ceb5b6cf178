"""A checkpoint answers as the adapter it was, and can become the run's adapter."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from studio import starter
from studio.adapter_stack import StackItem
from studio.adapters.library import describe
from studio.backbone import Backbone
from studio.chat import checkpoint_adapters
from studio.chat.lanes import Delta, Lane, Message, Sampling
from studio.chat.resident_models import ResidentModels
from studio.errors import AdapterError, GateFailed, SpecError
from studio.evaluation.promote_checkpoint import BEFORE, PromoteRequest
from studio.home import is_whole, publishing
from studio.methods import named
from studio.models.loading import load
from studio.spec import ModelSource, RunSpec
from ui.cli.main import main


@pytest.fixture
def run(home, tmp_path):
    """Run 7 on a tiny base, with the checkpoint of step 4, and the adapter that was saved there."""
    import shutil

    base = tmp_path / "base"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=3072, max_position_embeddings=64,
    )).save_pretrained(base)  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(starter.MODEL_DIR / name, base / name)
    spec = RunSpec.parse({"model": {"path": str(base)}, "method": {"name": "lora", "r": 4}})
    home.run(7).mkdir()
    (home.run(7) / "spec.yaml").write_text(spec.to_yaml())
    backbone = Backbone(LlamaForCausalLM.from_pretrained(base))
    adapter = backbone.attach("x", spec.method)
    for parameter in adapter.parameters():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with publishing(home.run(7) / "checkpoints" / "step-00000004") as folder:
        save_file({k: v.contiguous().clone() for k, v in adapter.state().items()},
                  folder / "adapter.safetensors")  # fmt: skip
        progress = {"step": 4, "first_loss": 3.0, "last_loss": 2.0, "eval_loss": 2.5}
        origin = {"data_hash": "d", "evaluated": {"rows": 4, "hash": "h"}}
        (folder / "state.json").write_text(json.dumps({"progress": progress, "origin": origin}))
    return base, adapter


def test_the_command_chat_finds_the_base_of_a_checkpoint(home, run, monkeypatch, capsys):
    asked: list[Lane] = []
    done = Delta(lane=0, done=True, reason="stop")
    monkeypatch.setattr(ResidentModels, "stream", lambda _, lanes: asked.extend(lanes) or [done])
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--adapter", "7@4", "--prompt", "Hi", "--home", str(home.path), "--json"])
    assert not ended.value.code and [lane.model for lane in asked] == [str(run[0])]


def test_a_checkpoint_acts_like_the_adapter_it_holds(home, run):
    base, trained = run
    backbone = Backbone(LlamaForCausalLM.from_pretrained(base))

    checkpoint_adapters.attach(backbone, checkpoint_adapters.find(home, "7@4"))

    loaded = backbone.adapters["7@4"].state()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in trained.state().items())


def test_what_is_no_checkpoint_is_said(home, run):
    assert checkpoint_adapters.find_if_named(home, "7@4")
    assert not checkpoint_adapters.find_if_named(home, "pirate")
    assert not checkpoint_adapters.find_if_named(home, "9@4")  # an adapter may be called so
    with pytest.raises(AdapterError, match="has no checkpoint of step 5"):
        checkpoint_adapters.find_if_named(home, "7@5")
    with pytest.raises(AdapterError, match="RUN@STEP"):
        checkpoint_adapters.find(home, "last")
    (home.run(7) / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    with pytest.raises(AdapterError, match="damaged"):
        checkpoint_adapters.attach(
            Backbone(LlamaForCausalLM.from_pretrained(run[0])),
            checkpoint_adapters.find(home, "7@4"),
        )
    with pytest.raises(AdapterError, match="damaged"):
        PromoteRequest(checkpoint="7@4").checked(home)


def test_a_checkpoint_is_hashed_when_it_is_loaded_and_not_at_every_question(home, run, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        checkpoint_adapters, "is_whole", lambda path: hashed.append(path.name) or is_whole(path)
    )
    models = ResidentModels(home, device="cpu")
    lane = Lane(
        model=str(run[0]), stack=(StackItem(name="7@4"),), sampling=Sampling(max_new_tokens=1),
        messages=(Message(role="user", content="Hi"),),
    )  # fmt: skip
    for _ in range(3):
        last = [*models.stream([lane])][-1]
        assert last.active is not None, last.error
    assert hashed == ["step-00000004"]


def test_a_checkpoint_of_another_shape_of_model_is_refused(home, run):
    backbone = Backbone(load(ModelSource(path="starter"), "cpu").model)

    with pytest.raises(AdapterError, match="does not fit this model"):
        checkpoint_adapters.attach(backbone, checkpoint_adapters.find(home, "7@4"))
    assert not backbone.adapters


def test_a_promoted_checkpoint_is_the_runs_adapter_and_the_old_one_stays(home, run):
    base, trained = run
    old = home.run(7) / "adapter"
    backbone = Backbone(LlamaForCausalLM.from_pretrained(base))
    backbone.attach("y", named("lora")(r=2))
    with publishing(old) as folder:
        backbone.save("y", folder)
        (folder / "passport.json").write_text('{"forgetting": {"forgetting": 2000}}')

    gate = {"min": ("token_accuracy=0",), "max": ("eval_loss=0",)}
    with pytest.raises(GateFailed, match=r"Checkpoint 7@4 failed its gate: eval_loss is .*above 0"):
        list(PromoteRequest(checkpoint="7@4", **gate).checked(home).perform(home))
    assert not (home.run(7) / BEFORE).exists()
    with pytest.raises(SpecError, match="A promotion cannot measure regex"):
        PromoteRequest(checkpoint="7@4", min=("pattern=0.5",)).checked(home)
    gate["max"] = ("forgetting=1000",)
    request = PromoteRequest(checkpoint="7@4", **gate)
    finished = list(request.checked(home).perform(home))[-1]

    assert finished.adapter == str(old) and is_whole(old)
    found = describe(old, source="run")
    assert (found.steps, found.ended, found.last_loss) == (4, "promoted", 2.0)
    assert 0 < found.forgetting < 1000  # the checkpoint's own, as measured for the gate
    backbone.load("again", old)
    again = backbone.adapters["again"].state()
    assert all(torch.allclose(again[key], tensor) for key, tensor in trained.state().items())
    assert describe(home.run(7) / BEFORE).method == "lora"
    list(PromoteRequest(checkpoint="7@4").perform(home))
    assert describe(old).forgetting is None  # not measured again
    assert describe(old).section("data", "evaluated")["hash"] == "h"


def test_a_promotion_that_cannot_be_is_refused_before_it_is_queued(home, run):
    with pytest.raises(AdapterError, match="step 9"):
        PromoteRequest(checkpoint="7@9").checked(home)
    with pytest.raises(SpecError, match="checkpoint"):
        PromoteRequest.parse({"checkpoint": "7" * 50})

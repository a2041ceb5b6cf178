"""Adapters in and out of the library."""

import json
import os
import pickle

import peft
import pytest
import torch

from studio.adapters.import_adapter import import_adapter
from studio.adapters.library import adapters, resolve
from studio.backbone import Backbone, adapter_files
from studio.errors import AdapterError
from studio.methods.bottleneck import Bottleneck
from studio.methods.lora import Lora
from studio.spec import ModelSource
from tests import hub as hubs
from tests.studio.tiny import tiny_folder, tiny_model


@pytest.fixture
def peft_folder(tmp_path):
    model = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(tmp_path / "from-peft")
    return tmp_path / "from-peft"


@pytest.fixture
def hub_folder(tmp_path):
    backbone = Backbone(tiny_model("llama"))
    adapter = backbone.attach("b", Bottleneck(bottleneck_dim=4))
    (tmp_path / "from-hub").mkdir()
    adapter_files.write_adapterhub(adapter, tmp_path / "from-hub", backbone.anatomy, name="b")
    return tmp_path / "from-hub"


def test_peft_and_adapterhub_folders_are_told_apart_by_content(home, peft_folder, hub_folder):
    one = import_adapter(home, str(peft_folder))
    two = import_adapter(home, str(hub_folder), name="Their Bottleneck")
    assert (one.name, one.method, one.ended) == ("from-peft", "lora", "imported")
    assert (two.name, two.method) == ("their-bottleneck", "bottleneck")
    assert {a.name for a in adapters(home)} == {"from-peft", "their-bottleneck"}
    backbone = Backbone(tiny_model("llama"))
    for name in ("from-peft", "their-bottleneck"):
        backbone.load(name, resolve(home, name))


def test_an_adapter_of_the_hub_is_copied_whole(home, peft_folder, tmp_path, monkeypatch):
    with hubs.running() as hub:
        hub.repos["org/sea"] = hubs.repo_of(peft_folder)
        hubs.use(monkeypatch, hub, tmp_path / "cache")
        one = import_adapter(home, "org/sea")
    assert (one.name, one.method) == ("sea", "lora")
    assert not any(file.is_symlink() for file in one.path.iterdir())
    Backbone(tiny_model("llama")).load("sea", resolve(home, "sea"))


def test_a_mismatch_with_the_chosen_base_is_explained_and_nothing_is_kept(
    home, peft_folder, tmp_path
):
    base = tiny_folder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(
        AdapterError, match="do not belong to LoRA on this model, for example .*q_proj"
    ):
        import_adapter(home, str(peft_folder), model=ModelSource(path=str(base)))
    assert adapters(home) == [] and list(home.adapters.iterdir()) == []


def test_the_right_base_is_remembered(home, peft_folder, tmp_path):
    base = tiny_folder(tmp_path / "llama")
    spec = {"model": {"path": str(base), "revision": "v1", "quantization": "nf4"}}
    (peft_folder / "passport.json").write_text(json.dumps({"spec": spec}))
    found = import_adapter(home, str(peft_folder), model=ModelSource(path=str(base)))
    assert found.base == str(base) and found.base_fingerprint
    assert found.base_revision == ""  # the one that it was checked on


def test_unsafe_folders_are_refused(home, peft_folder, tmp_path):
    weights = peft_folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    (peft_folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(AdapterError, match="pickle"):
        import_adapter(home, str(peft_folder))
    os.mkfifo(weights)
    with pytest.raises(AdapterError, match="not a regular file"):
        import_adapter(home, str(peft_folder))
    weights.unlink()
    weights.symlink_to(tmp_path / "nothing")
    with pytest.raises(AdapterError, match="link to nothing"):
        import_adapter(home, str(peft_folder))
    weights.unlink()
    weights.write_bytes(content)
    (peft_folder / "passport.json").write_text("not json")
    found = import_adapter(home, str(peft_folder), name="../../etc/passwd")
    assert found.path == home.adapters / "etc-passwd"
    assert sorted(p.name for p in found.path.iterdir()) == [
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "passport.json",
    ]  # fmt: skip


def test_the_picture_measures_what_changed():
    """A rank-1 change of one layer, worked out by hand: relative norm 2/‖W‖, effective rank 1."""
    from studio.adapters.weight_changes import effective_rank, measure

    backbone = Backbone(tiny_model("llama"))
    method = Lora(r=1, lora_alpha=1, target_modules=("layers.0.self_attn.q_proj",))
    adapter = backbone.attach("a", method)
    p = adapter.params["model.layers.0.self_attn.q_proj"]
    p["lora_A"].data.zero_()[0, 0] = 2.0
    p["lora_B"].data.zero_()[0, 0] = 1.0
    (change,) = measure(backbone, "a")
    weight = backbone.model.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert (change.layer, change.module) == (0, "self_attn.q_proj")
    assert change.relative and change.norm == pytest.approx(2 / float(weight.norm()), rel=1e-5)
    assert change.effective_rank == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0, rel=1e-5)
    assert effective_rank(torch.zeros(3, 3)) == 0

"""Adapters made on a wrapper, on its text class, or with older names load on each other."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.backbone import Backbone
from studio.backbone.adapter_files import own_keys
from studio.backbone.equalities import attach_random
from studio.methods.lora import Lora
from tests.families import family_model

TEXT = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
WRAPPED = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight"
OLDER = "base_model.model.language_model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("given", [TEXT, WRAPPED, OLDER])
@pytest.mark.parametrize("wanted", [TEXT, WRAPPED])
def test_a_key_takes_the_name_of_the_loaded_model(given, wanted):
    module = wanted.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    assert own_keys({given: 1}, ["model.visual.layers.1.q_proj", module]) == {wanted: 1}


def test_keys_of_another_tower_stay():
    key = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"
    assert own_keys({key: 1}, ["model.language_model.layers.0.q_proj"]) == {key: 1}


def test_an_adapter_of_the_text_class_works_on_the_wrapper(tmp_path):
    backbone = Backbone(family_model("qwen3-vl"))
    attach_random(backbone, "a", Lora(r=4, target_modules="attention"))
    folder = tmp_path / "a"
    folder.mkdir()
    backbone.save("a", folder)
    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    assert all("model.language_model.layers" in key for key in saved)  # what plain PEFT expects
    save_file({key.replace("language_model.", ""): t for key, t in saved.items()}, file)

    backbone.load("text", folder)

    ids = torch.arange(3, 12)[None]
    logits = []
    for name in ("a", "text"):
        backbone.use([(name, 1.0)])
        logits.append(backbone.model(input_ids=ids).logits)
    assert torch.equal(*logits)


def test_plain_peft_loads_it_on_the_wrapper_class(tmp_path):
    from peft import PeftModel

    backbone = Backbone(family_model("qwen3-vl"))
    attach_random(backbone, "a", Lora(r=4, target_modules="all-linear"))
    backbone.save("a", tmp_path)
    backbone.use([("a", 1.0)])
    ids = torch.arange(3, 12)[None]
    ours = backbone.model(input_ids=ids).logits

    theirs = PeftModel.from_pretrained(family_model("qwen3-vl"), tmp_path).eval()

    assert torch.allclose(theirs(input_ids=ids).logits, ours, atol=1e-5)

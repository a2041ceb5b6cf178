"""PEFT is the oracle: what is saved here loads there with equal logits, and the reverse."""

import peft
import pytest
import torch

from studio.backbone import Backbone
from tests.studio.methods.cases import ADAPTERS, fits
from tests.studio.methods.test_matrix import IDS, attached, logits
from tests.studio.tiny import tiny_model

PEFT_KNOWS = {
    label: method for label, method in ADAPTERS.items()
    if method.peft_type in peft.PEFT_TYPE_TO_CONFIG_MAPPING
}  # fmt: skip
LINEAR_ONLY = ("LOHA", "LOKR")  # PEFT has these for nn.Linear, not for GPT-2's Conv1D

MADE_BY_PEFT = {
    "LORA": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    "LORA-rslora": dict(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear"),
    "LORA-dora": dict(r=4, use_dora=True, target_modules=["q_proj", "up_proj"]),
    "LORA-layers": dict(r=2, target_modules=["q_proj"], layers_to_transform=[1]),
    "LORA-regex": dict(r=2, target_modules=r".*\.(q|k)_proj"),
    "LORA-head": dict(r=2, target_modules=["lm_head", "q_proj"]),
    "LOHA": dict(r=4, alpha=8, target_modules=["q_proj", "down_proj"]),
    "LOKR": dict(r=2, alpha=8, target_modules=["q_proj", "down_proj"]),
    "LOKR-both": dict(r=1, decompose_both=True, decompose_factor=8, target_modules=["q_proj"]),
    "LOKR-one": dict(r=2, alpha=8, decompose_factor=0, target_modules=["q_proj"]),
    "VERA": dict(r=8, target_modules=["q_proj"]),
    "IA3": dict(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "IA3-other": dict(
        target_modules=["q_proj", "o_proj", "up_proj", "down_proj"],
        feedforward_modules=["o_proj", "up_proj"],
    ),
    "LN_TUNING": dict(target_modules=["input_layernorm", "post_attention_layernorm"]),
    "PREFIX_TUNING": dict(num_virtual_tokens=5),
    "PREFIX_TUNING-mlp": dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16),
    "PROMPT_TUNING": dict(num_virtual_tokens=5),
    "P_TUNING": dict(num_virtual_tokens=5, encoder_hidden_size=16),
}


@pytest.mark.parametrize("model_name", ["llama", "gpt2", "qwen2", "gemma"])
@pytest.mark.parametrize("label", PEFT_KNOWS)
def test_what_we_save_loads_in_plain_peft(label, model_name, tmp_path):
    backbone, adapter = attached(label, model_name, trained=True)
    if model_name == "gpt2" and adapter.method.peft_type in LINEAR_ONLY:
        pytest.skip("PEFT has no such layer for Conv1D")
    backbone.save("a", tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(model_name), tmp_path).eval()
    with torch.no_grad():
        expected = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    virtual = expected.shape[1] - IDS.shape[1]
    torch.testing.assert_close(logits(backbone), expected[:, virtual:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("label", MADE_BY_PEFT)
def test_what_peft_saves_loads_here(label, tmp_path):
    kind = label.partition("-")[0]
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **MADE_BY_PEFT[label])
    torch.manual_seed(5)
    theirs = peft.get_peft_model(tiny_model("llama"), config)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    backbone = Backbone(tiny_model("llama"))
    backbone.load("a", tmp_path)
    backbone.use([("a", 1.0)])
    virtual = expected.shape[1] - IDS.shape[1]
    torch.testing.assert_close(logits(backbone), expected[:, virtual:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
@pytest.mark.parametrize("label", ["lora-r=4", "lora-r=4-use_rslora=True"])
def test_gradients_equal_pefts(label, model_name):
    method = fits(ADAPTERS[label], model_name)
    names = Backbone(tiny_model(model_name)).anatomy.linear_names()
    config = peft.LoraConfig(
        r=method.r, lora_alpha=method.lora_alpha, use_rslora=method.use_rslora,
        target_modules=names, task_type="CAUSAL_LM", fan_in_fan_out=model_name == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(tiny_model(model_name), config).eval()
    backbone, adapter = attached(label, model_name, trained=True)
    own = {k: p for k, p in theirs.named_parameters() if p.requires_grad}
    for site in adapter.sites:
        for name, tensor in adapter.params[site.key].items():
            own[f"base_model.model.{site.key}.{name}.default.weight"].data.copy_(tensor)
    theirs(input_ids=IDS, labels=IDS).loss.backward()
    backbone.train("a")
    backbone.model(input_ids=IDS, labels=IDS).loss.backward()
    for site in adapter.sites:
        for name, tensor in adapter.params[site.key].items():
            expected = own[f"base_model.model.{site.key}.{name}.default.weight"].grad
            largest = float(expected.abs().max())  # what rounds is a sum of numbers of that size
            torch.testing.assert_close(
                tensor.grad, expected, atol=max(1e-5, 5e-5 * largest), rtol=1e-4
            )

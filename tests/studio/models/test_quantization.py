"""Checkpoints in 4 and 8 bit load as their dequantised values, which are computed here by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from studio.errors import ModelError
from studio.models.loading import load
from studio.models.sources import facts
from studio.spec import ModelSource
from tests.studio.tiny import tiny_folder, tiny_tokenizer

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # e2m1, positive half


def rewritten(folder: Path, tensors: dict[str, Tensor], quantization: dict[str, object]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def test_fp8_weights_are_dequantised_block_by_block(tmp_path):
    folder = tiny_folder(tmp_path)
    tensors, name = (
        load_file(folder / "model.safetensors"),
        "model.layers.0.self_attn.q_proj.weight",
    )
    stored = {}
    for key, tensor in tensors.items():
        stored[key] = tensor
        if ".layers." in key and tensor.dim() == 2:
            stored[key] = (tensor / 0.25).to(torch.float8_e4m3fn)
            stored[f"{key}_scale_inv"] = torch.full((1, 1), 0.25)
    expected = stored[name].float() * 0.25
    rewritten(folder, stored, {"quant_method": "fp8", "weight_block_size": [128, 128],
                               "activation_scheme": "dynamic"})  # fmt: skip
    model = load(ModelSource(path=str(folder)), "cpu").model
    assert (expected - tensors[name]).abs().max() > 0
    torch.testing.assert_close(model.get_parameter(name), expected)
    assert not model.get_parameter(name).requires_grad


def test_mxfp4_experts_are_dequantised_and_counted(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8,
             "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
             "num_local_experts": 2, "num_experts_per_tok": 1}  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    whole = sum(tensor.numel() for tensor in tensors.values())
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for name, out in (("gate_up_proj", 64), ("down_proj", 32)):
        key = f"model.layers.0.mlp.experts.{name}"
        low, high = torch.randint(0, 16, (2, 2, out, 1, 16), generator=generator).unbind(0)
        scales = torch.randint(125, 130, (2, out, 1), generator=generator)
        values = torch.stack([low, high], -1).flatten(-2)  # the low half of a byte comes first
        signed = FP4[values % 8] * torch.where(values >= 8, -1.0, 1.0)
        expected[key] = (signed * 2.0 ** (scales[..., None] - 127)).flatten(2).transpose(1, 2)
        del tensors[key]
        tensors[f"{key}_blocks"] = (low + 16 * high).to(torch.uint8)
        tensors[f"{key}_scales"] = scales.to(torch.uint8)
    rewritten(tmp_path, tensors, {"quant_method": "mxfp4"})
    source = ModelSource(path=str(tmp_path))
    assert facts(source).parameters == whole
    model = load(source, "cpu").model
    for key, values in expected.items():
        torch.testing.assert_close(model.get_parameter(key).float(), values)
    with pytest.raises(ModelError, match=r"stored in mxfp4.*set it to none"):
        load(source.model_copy(update={"quantization": "nf4"}), "cpu")


def test_a_format_with_a_library_of_its_own_is_named(tmp_path):
    folder = tiny_folder(tmp_path)
    rewritten(folder, load_file(folder / "model.safetensors"), {"quant_method": "awq"})
    with pytest.raises(ModelError, match=r"stored in awq.*use the original model"):
        load(ModelSource(path=str(folder)), "cpu")

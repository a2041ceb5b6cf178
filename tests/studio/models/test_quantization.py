"""Checkpoints in 4 and 8 bit load as their dequantised values, which are computed here by hand,
and may be quantised again; at most one parameter is whole at a time."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from studio.backbone import Backbone
from studio.backbone.dense_weights import dequantised
from studio.backbone.equalities import attach_random, require_packing, require_training
from studio.errors import ModelError
from studio.methods.lora import Lora
from studio.models import quantization
from studio.models.find_model import facts, linear_modules
from studio.models.loading import load
from studio.models.model_files import read_headers
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
    again = load(source.model_copy(update={"quantization": "nf4"}), "cpu").model
    for key, values in expected.items():
        weight = again.get_parameter(key)
        assert (dequantised(weight).float() - values).abs().max() <= 0.16 * values.abs().max()
        assert weight.numel() < values.numel()


@pytest.mark.parametrize("scales", ["_scale_inv", "_scale"])
def test_fp8_blocks_need_not_divide_a_matrix_and_rows_may_have_scales_of_their_own(
    tmp_path, scales
):
    folder = tiny_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"  # (48, 32)
    stored, factors = tensors[key].to(torch.float8_e4m3fn), torch.tensor([[0.5, 2], [1, 4], [8, 1]])
    expected = stored.float()
    if scales == "_scale":
        tensors[key + scales] = torch.linspace(0.5, 2, 48)[:, None]
        expected = expected * tensors[key + scales]
    else:
        tensors[key + scales] = factors  # blocks of 20 × 20: the last are cut off
        for row in range(48):
            for column in range(32):
                expected[row, column] *= factors[row // 20, column // 20]
    tensors[key] = stored
    rewritten(folder, tensors, {"quant_method": "fp8", "weight_block_size": [20, 20]})
    model = load(ModelSource(path=str(folder)), "cpu").model
    torch.testing.assert_close(model.get_parameter(key), expected)


def nibbles(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """Pack eight 4-bit numbers of the last axis into an integer; the first given lies lowest."""
    groups = rows.unflatten(-1, (-1, 8)).long()
    whole = sum(groups[..., column] << (4 * place) for place, column in enumerate(order))
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", "awq"])
def test_packed_integers_are_unpacked_with_their_zeros_and_scales(tmp_path, kind):
    folder = tiny_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    path, plain = "model.layers.1.self_attn.q_proj", tuple(range(8))  # (32, 32)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 16, (32, 32), generator=generator)  # (inputs, outputs)
    zeros = torch.randint(0, 16, (2, 32), generator=generator)
    scales = torch.rand(2, 32, generator=generator) + 0.1
    groups = torch.arange(32) // 16 if kind == "awq" else torch.arange(32) % 2  # act-order
    expected = ((numbers - zeros[groups]) * scales[groups]).T
    whole = sum(tensor.numel() for tensor in tensors.values())
    del tensors[f"{path}.weight"]
    if kind == "awq":
        shuffled = (0, 2, 4, 6, 1, 3, 5, 7)
        own = {"qweight": nibbles(numbers, shuffled), "qzeros": nibbles(zeros, shuffled)}
    else:
        less = (zeros - 1) % 16 if kind == "gptq" else zeros  # the first layout stores one less
        own = {"qweight": nibbles(numbers.T, plain).T.contiguous(), "qzeros": nibbles(less, plain),
               "g_idx": groups.int()}  # fmt: skip
    tensors |= {f"{path}.{name}": tensor for name, tensor in (own | {"scales": scales}).items()}
    method = {"quant_method": kind.removesuffix("_v2"), "bits": 4, "group_size": 16}
    rewritten(folder, tensors, method | ({} if kind == "awq" else {"checkpoint_format": kind}))
    source = ModelSource(path=str(folder))
    model = load(source, "cpu").model
    torch.testing.assert_close(model.get_parameter(f"{path}.weight"), expected)
    assert facts(source).parameters == whole
    assert path in {module.key for module in linear_modules(source)}
    assert not hasattr(model.config, "quantization_config"), "so that it is saved as it is"


def test_a_checkpoint_of_bitsandbytes_is_read_and_quantised_again(tmp_path):
    from transformers import BitsAndBytesConfig

    folder, out = tiny_folder(tmp_path / "plain"), tmp_path / "four"
    quantising = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantising).save_pretrained(
        out
    )
    tiny_tokenizer().save_pretrained(out)
    source = ModelSource(path=str(out))
    plain, four = (load(each, "cpu").model for each in (ModelSource(path=str(folder)), source))
    again = load(source.model_copy(update={"quantization": "nf4"}), "cpu").model
    for name, weight in four.named_parameters():
        own = plain.get_parameter(name)
        assert (weight - own).abs().max() < 0.4 * own.abs().max()
        if name.endswith("q_proj.weight"):
            found = dequantised(again.get_parameter(name))
            torch.testing.assert_close(found.float(), weight, atol=0.02, rtol=0.05)
    assert facts(source).parameters == facts(ModelSource(path=str(folder))).parameters
    assert linear_modules(source) == linear_modules(ModelSource(path=str(folder)))


def test_weights_of_other_shapes_than_the_configurations_are_named(tmp_path):
    folder = tiny_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 56}))
    with pytest.raises(ModelError, match=r"fit its config.json: model\S+_proj.weight is"):
        load(ModelSource(path=str(folder)), "cpu")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_eight_bit_is_nearly_exact_trains_and_takes_a_quarter(tmp_path, name):
    folder = tiny_folder(tmp_path, name)
    plain, eight = (
        Backbone(load(ModelSource(path=str(folder), quantization=kind), "cpu").model)
        for kind in ("none", "int8")
    )
    ids = torch.arange(3, 35)[None]
    wanted, found = (backbone.model(ids).logits for backbone in (plain, eight))
    assert 0 < (found - wanted).norm() < 0.03 * wanted.norm()
    sites = [*eight.anatomy.all_linears(), *eight.anatomy.experts()]
    stored = [site for site in sites if hasattr(site.parameter, "quant_state")]
    assert stored and all(site.parameter.element_size() == 1 for site in stored)
    attach_random(eight, "a", Lora(r=2))
    require_training(eight, "a")
    require_packing(eight, "a")


def test_one_expert_parameter_is_whole_at_a_time(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path, "mixtral")
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if ".experts." in key]:
        tensors[f"{key}_scale_inv"] = torch.ones(1, 1)
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
    rewritten(folder, tensors, {"quant_method": "fp8"})
    living, most = set(), [0]
    plain = quantization._scaled

    def counted(*given):
        tensor = plain(*given)
        number = id(tensor)
        living.add(number)
        most[0] = max(most[0], len(living))
        weakref.finalize(tensor, living.discard, number)
        return tensor

    monkeypatch.setattr(quantization, "_scaled", counted)
    load(ModelSource(path=str(folder), quantization="nf4"), "cpu")
    assert 0 < most[0] <= 2 * 4 + 1, "gate and up of four experts, of 24 matrices"


@pytest.mark.parametrize(
    ("config", "named"),
    [({"quant_method": "aqlm"}, "aqlm"), ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
     ({"quant_method": "awq", "version": "GEMV"}, "awq in the layout gemv")],
)  # fmt: skip
def test_a_format_that_cannot_be_read_is_named(tmp_path, config, named):
    folder = tiny_folder(tmp_path)
    rewritten(folder, load_file(folder / "model.safetensors"), config)
    with pytest.raises(ModelError, match=rf"stored in {named}, .*use the original model"):
        facts(ModelSource(path=str(folder)))


def test_parameters_of_a_model_that_are_called_scales_are_no_companions(tmp_path):
    folder = tiny_folder(tmp_path)
    key = "model.layers.0.mlp.up_proj.weight"
    own = {"model.router.scale": torch.ones(2), "model.per_expert_scale": torch.ones(2)}
    tensors = load_file(folder / "model.safetensors") | own
    beside = {f"{key}_scale_inv": torch.ones(1, 1), key.replace("weight", "input_scale"): own}
    tensors |= {name: torch.ones(1, 1) for name in beside}
    method = {"quant_method": "fp8"}
    rewritten(folder, tensors, method)
    found = quantization.open_stored(folder, method)
    assert set(found) == tensors.keys() - beside.keys()
    (header,) = read_headers(folder)
    assert {t.name for t in quantization.whole_weights(header.tensors, method)} == set(found)

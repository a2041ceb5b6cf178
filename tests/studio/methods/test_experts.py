"""LoRA on routed experts: formula, PEFT's files both ways, rows, packing, merging, memory."""

import copy
import gc
import json
import warnings
import weakref

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from studio.adapters.mix_adapters import mix
from studio.backbone import Anatomy, Backbone, experts
from studio.backbone.dense_weights import fold, stored_weight
from studio.backbone.experts import not_adapted
from studio.errors import AdapterError, MethodError
from studio.methods.lora import Lora
from studio.models import quantization
from studio.models.loading import load
from studio.spec import ModelSource
from tests.families import random_model, type_config
from tests.studio.tiny import SIZES, tiny_tokenizer

MIXTURE = {**SIZES, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
          "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 2,
          "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
          "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "shared_expert_intermediate_size": 24, "num_experts": 4, "head_dim": 8}  # fmt: skip
GEMMA = {"num_experts": 4, "top_k_experts": 2, "enable_moe_block": True, "head_dim": 8,
         "global_head_dim": 16, "sliding_window": 8, "num_kv_shared_layers": 0,
         "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 64,
         "hidden_size_per_layer_input": 0}  # fmt: skip
FAMILIES = {
    "qwen3_moe": {**MIXTURE, "num_experts": 4, "head_dim": 8},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**MIXTURE, **LATENT},
    "glm4_moe": {**MIXTURE, "n_routed_experts": 4, "n_group": 2, "topk_group": 2, "head_dim": 8,
                 "n_shared_experts": 1, "first_k_dense_replace": 1},
    "glm4_moe_lite": {**MIXTURE, **LATENT},
    "ernie4_5_moe": {**MIXTURE, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
                     "moe_num_shared_experts": 1},
    "qwen3_5_moe_text": {**MIXTURE, **LINEAR},
    "gpt_oss": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
                "sliding_window": 8},
    "gemma4_text": {**MIXTURE, **GEMMA},
    "llama4_text": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
                    "intermediate_size_mlp": 48, "moe_layers": [0, 1]},
}  # fmt: skip
IDS = torch.randint(3, 64, (3, 11), generator=torch.Generator().manual_seed(5))
TARGETS = ("o_proj", "experts")


def tiny(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **copy.deepcopy(FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def adapted(family: str, method: Lora | None = None, *names: str) -> Backbone:
    """Return a tiny mixture with random adapters."""
    backbone = Backbone(tiny(family))
    generator = torch.Generator().manual_seed(1)
    for name in names or ("a",):
        method = method or Lora(r=4, expert_r=2, target_modules=TARGETS)
        for parameter in backbone.attach(name, method).parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    backbone.use([((names or ("a",))[0], 1.0)])
    return backbone


def logits(backbone: Backbone, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return backbone.model(input_ids=ids).logits


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("targets", [TARGETS, "all-linear"], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_our_experts_with_equal_logits(family, targets, tmp_path):
    """Of all linear layers, a shared expert's `down_proj` has another rank than the experts'."""
    backbone = adapted(family, Lora(r=4, expert_r=2, target_modules=targets))
    ours = logits(backbone)
    backbone.save("a", tmp_path)
    again = Backbone(tiny(family))
    again.load("a", tmp_path)
    again.use([("a", 1.0)])
    close(logits(again), ours)
    plain = tiny(family)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern")  # applied, though
        base = plain(input_ids=IDS).logits
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()(input_ids=IDS).logits
    assert (base - theirs).abs().max() > 0.01
    close(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["gate_up_proj"], ["down_proj"]])
def test_we_load_the_experts_of_peft_with_equal_logits(family, names, tmp_path):
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["o_proj"], use_rslora=len(names) == 1,
        target_parameters=[f"experts.{name}" for name in names],
    )  # fmt: skip
    theirs = get_peft_model(tiny(family), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        expected = theirs(input_ids=IDS).logits
    theirs.save_pretrained(tmp_path)
    backbone = Backbone(tiny(family))
    backbone.load("a", tmp_path)
    backbone.use([("a", 1.0)])
    close(logits(backbone), expected)


def by_loop(family: str, params: dict[str, dict[str, Tensor]], scale: float) -> Tensor:
    """Return logits with each expert's own delta added to its matrix, one expert at a time."""
    model = tiny(family)
    with torch.no_grad():
        for key, p in params.items():
            module = model.get_submodule(key.rpartition(".")[0])
            if "experts" not in key:
                model.get_submodule(key).weight += scale * p["lora_B"] @ p["lora_A"]
                continue
            weight = getattr(module, key.rpartition(".")[2])
            for expert in range(len(weight)):
                change = scale * p["lora_B"][expert] @ p["lora_A"][expert]
                weight[expert] += change.T if getattr(module, "is_transposed", True) else change
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("family", "block"), [("qwen3_moe", "mlp"), ("llama4_text", "feed_forward")]
)
def test_each_expert_has_its_own_low_rank_delta(family, block):
    backbone = adapted(family)
    params = backbone.adapters["a"].params
    assert params[f"model.layers.0.{block}.experts.gate_up_proj"]["lora_A"].shape == (4, 2, 32)
    close(logits(backbone), by_loop(family, params, 8.0))  # lora_alpha 32 / r 4


@pytest.mark.parametrize("family", ["olmoe", "llama4_text"])
@pytest.mark.parametrize("joined", [True, False])
def test_gradients_of_experts_are_those_of_their_matrices(joined, family, monkeypatch):
    monkeypatch.setattr(experts.JoinedFactors, "fits", lambda x, a_ERI: joined)
    backbone = adapted(family)
    parameters = backbone.train("a")
    loss = backbone.model(input_ids=IDS).logits.square().mean()
    ours = torch.autograd.grad(loss, parameters)
    backbone.checkpointing(True)
    again = torch.autograd.grad(backbone.model(input_ids=IDS).logits.square().mean(), parameters)
    dense = tiny(family)
    adapter = backbone.adapters["a"]
    leaves, changed = {}, {}
    for name, parameter in adapter.named_parameters():
        leaves[name] = parameter.detach().clone().requires_grad_()
    for site in adapter.sites:
        delta = 8.0 * leaves[f"{site.key}/lora_B"] @ leaves[f"{site.key}/lora_A"]
        delta = delta.mT if site.num_experts and site.transposed else delta
        changed[site.parameter_key] = dense.get_parameter(site.parameter_key) + delta
    out = torch.func.functional_call(dense, changed, kwargs={"input_ids": IDS}).logits
    theirs = torch.autograd.grad(out.square().mean(), list(leaves.values()))
    for one, two, three in zip(ours, theirs, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "glm4_moe", "llama4_text"])
def test_rows_with_experts_of_their_own_answer_as_each_alone(family):
    backbone = adapted(family, None, "a", "b")
    alone = []
    for row, stack in enumerate(([("a", 1.0)], [], [("b", 0.5), ("a", -1.0)])):
        backbone.use(stack)
        alone.append(logits(backbone, IDS[row : row + 1]))
    backbone.use_rows([[("a", 1.0)], [], [("b", 0.5), ("a", -1.0)]])
    close(logits(backbone), torch.cat(alone))
    packed = backbone.packed_logits(IDS.reshape(-1), (11, 11, 11), torch.arange(33))
    close(packed.detach(), torch.cat(alone).flatten(0, 1))


def test_experts_fold_into_their_matrices(tmp_path):
    backbone = adapted("mixtral", None, "a", "b")
    backbone.use([("a", 1.0), ("b", 0.5)])
    live = logits(backbone)
    folded = fold(backbone, (("a", 1.0), ("b", 0.5)))
    assert folded.left == ()
    merged = tiny("mixtral")
    missing = merged.load_state_dict(folded.tensors, strict=False).unexpected_keys
    assert not missing
    with torch.no_grad():
        close(merged(input_ids=IDS).logits, live)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_files_with_one_lora_per_expert_load_as_peft_converts_them(tmp_path):
    """transformers 4 kept experts in a list; 24 is the experts' inner size, 2 the rank."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(2):
        for expert in range(4):
            for name, (inputs, outputs) in {
                "gate_proj": (32, 24), "up_proj": (32, 24), "down_proj": (24, 32),
            }.items():  # fmt: skip
                key = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(2, inputs, generator=generator)
                tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "task_type": "CAUSAL_LM",
              "target_modules": ["gate_proj", "up_proj", "down_proj"]}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    backbone = Backbone(tiny("qwen3_moe"))
    backbone.load("a", tmp_path)
    backbone.use([("a", 1.0)])
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny("qwen3_moe"), tmp_path)(input_ids=IDS).logits
    close(logits(backbone), theirs)


def test_an_adapter_of_other_experts_is_refused(tmp_path):
    adapted("qwen3_moe").save("a", tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    save_file({**tensors, key: tensors[key][:6].clone()}, weights, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="experts"):
        Backbone(tiny("qwen3_moe")).load("a", tmp_path)


def test_experts_are_in_all_linear_with_the_rank_of_one_expert():
    adapter = Backbone(tiny("qwen3_moe")).attach("a", Lora(r=8))
    p = adapter.params["model.layers.1.mlp.experts.down_proj"]
    assert p["lora_A"].shape == (4, 2, 24)  # 8 / 4 experts
    assert p["lora_B"].shape == (4, 32, 2)


def test_experts_have_no_dora():
    backbone = Backbone(tiny("qwen3_moe"))
    adapter = backbone.attach("a", Lora(r=4, use_dora=True))
    assert not [site for site in adapter.sites if site.num_experts]
    with pytest.raises(MethodError, match="DoRA is not defined for routed experts"):
        backbone.attach("b", Lora(r=4, use_dora=True, target_modules=("experts",)))


def test_experts_in_4_bit_compute_with_their_dequantised_matrices(tmp_path):
    """The reference loads the dequantised weights; at most one parameter is whole while loading."""
    model = tiny("qwen3_moe")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    source = ModelSource(path=str(tmp_path / "model"), quantization="nf4", dtype="float32")
    backbone = Backbone(load(source, "cpu").model)
    plain = tiny("qwen3_moe")
    own = Anatomy(backbone.model)
    weights = {s.parameter_key: stored_weight(s) for s in (*own.all_linears(), *own.experts())}
    drift = 0.0
    for site in own.experts():
        assert site.parameter.dtype == torch.uint8
        drift = max(drift, (weights[site.key] - model.get_parameter(site.key)).abs().max().item())
    assert 0 < drift < 0.12  # a sixth of the largest weights, near 0.7
    plain.load_state_dict(weights, strict=False)
    reference = Backbone(plain)
    for bb in (backbone, reference):
        generator = torch.Generator().manual_seed(1)
        adapter = bb.attach("a", Lora(r=4, expert_r=2, target_modules=("experts",)))
        for parameter in adapter.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        bb.use([("a", 1.0)])
    close(logits(backbone), logits(reference))
    one = IDS[:1, :1]  # few experts: each alone
    close(logits(backbone, one), logits(reference, one))
    for bb in (backbone, reference):
        bb.train("a")
        bb.model(input_ids=IDS).logits.square().mean().backward()
    pairs = zip(
        backbone.adapters["a"].parameters(), reference.adapters["a"].parameters(), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_loading_experts_in_4_bit_holds_one_parameter_in_full_at_a_time(tmp_path, monkeypatch):
    """Counts the full-precision experts that are alive whenever another one is quantised."""
    tiny("qwen3_moe").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    alive, most = weakref.WeakSet(), [0]
    quantise = quantization.quantised

    def watched(value: Tensor, bits: int) -> Tensor:
        alive.add(value)
        gc.collect()
        most[0] = max(most[0], len(alive))
        return quantise(value, bits)

    monkeypatch.setattr(quantization, "quantised", watched)
    load(ModelSource(path=str(tmp_path), quantization="nf4"), "cpu")
    assert most == [1]


@pytest.mark.parametrize("how", ["concatenate", "svd"])
def test_experts_of_two_adapters_mix_into_one(how):
    backbone = adapted("qwen3_moe", None, "a", "b")
    backbone.use([("a", 1.0), ("b", -0.5)])
    live = logits(backbone)
    mix(backbone, [("a", 1.0), ("b", -0.5)], "c", how=how, r=16)
    backbone.use([("c", 1.0)])
    close(logits(backbone), live)  # 16 / 4 experts hold both ranks of 2


def test_experts_in_a_layout_that_is_not_read_are_named():
    backbone = Backbone(random_model(type_config("dbrx")))
    adapter = backbone.attach("a", Lora(r=4))

    assert not_adapted(backbone.anatomy.modules.items(), adapter.sites) == ["DbrxExpertGLU"]

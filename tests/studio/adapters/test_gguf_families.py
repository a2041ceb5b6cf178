"""Files of every family hold what llama.cpp computes with: orders, splits, stacks and adapters.

Orders are proven by computing with the file's tensors as llama.cpp does, not by undoing them.
"""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="the extra gguf is not installed")

import gguf
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from studio.adapters.gguf import halves_of
from studio.adapters.gguf_write import (
    KEEPS_MERGES,
    RULES,
    placed_halves,
    pre_tokenizer,
    read_tensors,
    verify_tensors,
    write,
    write_adapter,
)
from studio.backbone import Backbone
from studio.backbone.equalities import attach_random
from studio.errors import AdapterError, ModelError
from studio.methods.lora import Lora
from tests.families import family_model, write_family


@pytest.fixture
def written(tmp_path):
    """Write a family's file; return its tensors and the model."""

    def write_one(name, precision="f32"):
        folder = write_family(name, tmp_path / name)
        file = tmp_path / f"{name}.gguf"
        write(folder, file, precision=precision, name=name)
        verify_tensors(file, folder, precision)
        return {key: torch.from_numpy(t.copy()) for key, t in read_tensors(file).items()}

    return write_one


@pytest.mark.parametrize("own", [True, False], ids=["own", "equal"])
@pytest.mark.parametrize("name", ["ministral3-vl", "gemma3-vl"])
def test_a_head_is_written_if_the_folder_has_its_own_whatever_the_configurations_say(
    tmp_path, name, own
):
    folder, file = write_family(name, tmp_path / name), tmp_path / "a.gguf"
    tensors = load_file(folder / "model.safetensors")
    (embeddings,) = (one for key, one in tensors.items() if key.endswith("embed_tokens.weight"))
    head = embeddings + own
    tensors["language_model.lm_head.weight"] = head
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write(folder, file, precision="f32", name=name)
    there = read_tensors(file)
    assert ("output.weight" in there) is own
    assert not own or np.array_equal(there["output.weight"], head.numpy())


def turned_in_pairs(x_TD, frequencies):
    """Rotate neighbouring numbers, as llama.cpp's first rotary kind does."""
    angles = torch.arange(len(x_TD))[:, None] * frequencies
    even, odd = x_TD[:, ::2], x_TD[:, 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(1)


@pytest.mark.parametrize("name", ["llama", "granite", "ministral3", "smollm3"])
def test_attention_scores_from_the_files_rows_are_the_models(written, name):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    there, model = written(name), family_model(name)
    layer = model.model.layers[0].self_attn
    x_TD = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    size, heads, rotary = layer.head_dim, 4, model.model.rotary_emb

    def heads_of(weight, count):
        return (x_TD @ weight.T).view(9, count, size).transpose(0, 1)

    q, k = heads_of(layer.q_proj.weight, heads), heads_of(layer.k_proj.weight, 2)
    cos, sin = (t / rotary.attention_scaling for t in rotary(x_TD[None], torch.arange(9)[None]))
    q, k = (t[0] for t in apply_rotary_pos_emb(q[None], k[None], cos, sin))
    ours_q = heads_of(there["blk.0.attn_q.weight"], heads)
    ours_k = heads_of(there["blk.0.attn_k.weight"], 2)
    for head in range(heads):
        turned_q = turned_in_pairs(ours_q[head], rotary.inv_freq)
        ours = turned_q @ turned_in_pairs(ours_k[head // 2], rotary.inv_freq).T
        assert torch.allclose(ours, q[head] @ k[head // 2].T, atol=1e-4)


def test_the_delta_rules_value_heads_meet_their_keys_in_turn(written):
    """ggml repeats key heads as 0, 1, 0, 1; transformers as 0, 0, 1, 1."""
    there, model = written("qwen3.5"), family_model("qwen3.5")
    layer, config = model.model.layers[0].linear_attn, model.config
    keys, values, size = 2, 4, config.linear_value_head_dim
    x = torch.randn(32)
    before = 2 * keys * config.linear_key_head_dim
    own = (layer.in_proj_qkv.weight @ x)[before:].view(values, size)
    found = (there["blk.0.attn_qkv.weight"] @ x)[before:].view(values, size)
    own_decay = -layer.A_log.exp()
    for head in range(values):
        theirs = [h for h in range(values) if torch.allclose(found[head], own[h])]
        assert [h // (values // keys) for h in theirs] == [head % keys]
        assert torch.allclose(there["blk.0.ssm_a"][head], own_decay[theirs[0]])
        gate = there["blk.0.attn_gate.weight"].view(values, size, 32)[head]
        assert torch.equal(gate, layer.in_proj_z.weight.view(values, size, 32)[theirs[0]])
        out = there["blk.0.ssm_out.weight"].view(32, values, size)[:, head]
        assert torch.equal(out, layer.out_proj.weight.view(32, values, size)[:, theirs[0]])


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss", "lfm2-moe", "granite-moe"])
def test_each_expert_of_the_file_computes_as_the_models(written, name):
    there, model = written(name), family_model(name)
    layer, module = next(
        (number, part)
        for number, block in enumerate(model.model.layers)
        for part in block.modules()
        if hasattr(part, "gate_up_proj") and part.gate_up_proj.dim() == 3
    )
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    for expert in range(4):
        index, weight = torch.tensor([[expert]]), torch.ones(1, 1)
        wanted = module(x, index, weight)
        gate = x @ there[f"blk.{layer}.ffn_gate_exps.weight"][expert].T
        up = x @ there[f"blk.{layer}.ffn_up_exps.weight"][expert].T
        if name == "gpt-oss":
            gate = (gate + there[f"blk.{layer}.ffn_gate_exps.bias"][expert]).clamp(max=7.0)
            up = (up + there[f"blk.{layer}.ffn_up_exps.bias"][expert]).clamp(-7.0, 7.0)
            inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        else:
            inner = torch.nn.functional.silu(gate) * up
        ours = inner @ there[f"blk.{layer}.ffn_down_exps.weight"][expert].T
        if name == "gpt-oss":
            ours = ours + there[f"blk.{layer}.ffn_down_exps.bias"][expert]
        assert torch.allclose(ours, wanted.view_as(ours), atol=1e-5)


# Half a step of each block, a little more for its 16-bit scale: 255 steps; 31 from the smallest to
# the largest; 15, where the largest may be a whole step off.
STEPS = {"q8_0": 0.6 / 127, "q5_1": 0.6 * 2 / 31, "q4_0": 1.05 / 8}


@pytest.mark.parametrize("precision", STEPS)
def test_quantised_rows_are_within_half_a_step(written, precision):
    exact, rounded = written("llama"), written("llama", precision)
    weight, close = exact["blk.0.ffn_gate.weight"], rounded["blk.0.ffn_gate.weight"]
    largest = weight.view(-1, 32).abs().amax(1, keepdim=True)

    assert ((weight - close).view(-1, 32).abs() <= largest * STEPS[precision]).all()
    assert not torch.equal(weight, close)
    assert torch.equal(exact["blk.0.attn_norm.weight"], rounded["blk.0.attn_norm.weight"])


def bpe(*patterns, ignore_merges):
    inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytewise])
    return json.loads(inner.to_str())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("ignore_merges", [True, False])
def test_each_rule_is_told_from_the_others_by_its_splits(name, ignore_merges):
    found, otherwise = pre_tokenizer(bpe(*RULES[name], ignore_merges=ignore_merges))
    assert (found, otherwise) == (name if ignore_merges else KEEPS_MERGES.get(name, name), 0)


def test_a_rule_that_gguf_does_not_have_is_counted():
    assert pre_tokenizer(bpe(r"[aeiou]", ignore_merges=False))[1] > 0


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen3.5", "granite"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_gguf_adapter_changes_the_files_weights_as_a_merge_does(tmp_path, name, use_rslora):
    from studio.backbone.dense_weights import fold

    folder = write_family(name, tmp_path / "base")
    backbone = Backbone(family_model(name))
    attach_random(backbone, "a", Lora(r=4, use_rslora=use_rslora, target_modules=targets(name)))
    halves, alpha = halves_of(backbone.adapters["a"])
    write_adapter(folder, tmp_path / "a.gguf", halves, alpha=alpha, name="a")
    write(folder, tmp_path / "base.gguf", precision="f32", name="base")
    model = backbone.model
    model.load_state_dict(fold(backbone, (("a", 1.0),)).tensors, strict=False)
    merged = tmp_path / "merged"
    model.save_pretrained(merged)
    (merged / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    tokenizer = (folder / "tokenizer_config.json").read_bytes()
    (merged / "tokenizer_config.json").write_bytes(tokenizer)
    write(merged, tmp_path / "merged.gguf", precision="f32", name="merged")

    adapter, base = read_tensors(tmp_path / "a.gguf"), read_tensors(tmp_path / "base.gguf")
    wanted = read_tensors(tmp_path / "merged.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    changed = 0
    for key, weight in base.items():
        if f"{key}.lora_a" in adapter:
            a, b = adapter[f"{key}.lora_a"], adapter[f"{key}.lora_b"]
            weight = weight + alpha / a.shape[0] * (b @ a)  # as llama.cpp applies it
            changed += 1
        assert np.allclose(weight, wanted[key], atol=1e-5), key
    assert changed == len(adapter) // 2 > 0


def targets(name):
    if name == "qwen3.5":
        return ("q_proj", "in_proj_qkv", "in_proj_z", "out_proj", "gate_proj")
    return "all-linear"


def test_what_a_gguf_adapter_cannot_hold_is_a_sentence(tmp_path):
    backbone = Backbone(family_model("llama"))
    attach_random(backbone, "dora", Lora(r=4, use_dora=True))
    with pytest.raises(AdapterError, match=r"cannot hold DoRA: export it merged \(gguf\)"):
        halves_of(backbone.adapters["dora"])
    whole = Lora(r=2, target_modules=("q_proj",), modules_to_save=("up_proj",))
    attach_random(backbone, "whole", whole)
    with pytest.raises(AdapterError, match="cannot hold modules trained in full: export it merged"):
        halves_of(backbone.adapters["whole"])
    stream = {"model.altup_projections.0.weight": (np.ones((2, 32)), np.ones((32, 2)))}
    folder = write_family("gemma3n", tmp_path / "gemma3n")
    with pytest.raises(ModelError, match=r"cannot change altup_proj\.weight: merge"):
        placed_halves(folder, stream)
    folder = write_family("gpt2", tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel has no entry in the GGUF export"):
        write(folder, tmp_path / "x.gguf", precision="f32", name="x")

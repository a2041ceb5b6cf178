"""What one recorded pass tells of a model, and rows that stay apart in every kind of layer."""

import pytest
import torch

from studio.backbone import Backbone
from studio.errors import MethodError
from studio.methods.lora import Lora
from studio.methods.norm_tuning import NormTuning
from studio.methods.prefix_tuning import PrefixTuning
from tests.families import family_model

LENGTHS = (11, 5, 14)
IDS = torch.randint(3, 120, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
ALL = torch.arange(sum(LENGTHS))


def kinds_of(family):
    backbone = Backbone(family_model(family))
    found = {}
    for block in backbone.anatomy.recording.blocks:
        found.setdefault(backbone.anatomy.layer_of(block.key), []).append(block.kind)
    return list(found.values())


def test_the_mixer_and_the_feed_forward_of_every_layer_are_found():
    assert kinds_of("llama") == [["attention", "mlp"]] * 4
    assert kinds_of("qwen3.5") == [["mixer", "mlp"]] * 3 + [["attention", "mlp"]]
    assert all(kinds == ["mixer"] for kinds in kinds_of("mamba"))
    assert all({"mixer", "attention", "mlp"} == set(kinds) for kinds in kinds_of("falcon-h1"))


@pytest.mark.parametrize(
    "family", ["llama", "qwen3.5", "lfm2", "falcon-h1", "bloom", "mamba", "opt"]
)
def test_packed_rows_have_the_gradients_of_rows_alone(family):
    backbone = Backbone(family_model(family))
    adapter = backbone.attach("a", Lora(r=4))
    backbone.use([("a", 1.0)])
    parameters = backbone.train("a")
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)

    def gradients(*batches):
        for ids, lengths in batches:
            logits = backbone.packed_logits(ids, lengths, torch.arange(len(ids)))
            logits.float().logsumexp(-1).square().sum().backward()
        found = [parameter.grad.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

    packed = gradients((IDS, LENGTHS))
    alone = gradients(*((ids, (len(ids),)) for ids in IDS.split(LENGTHS)))
    assert len(packed) == 2 * len(adapter.sites)
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * float(other.abs().max()), rtol=1e-3)


def kernels_of_rows(monkeypatch):
    """Give Qwen3.5's mixers what the packages of their kernels add: rows as an argument."""
    from transformers.models.qwen3_5 import modeling_qwen3_5 as own

    delta, convolution, batches = own.torch_chunk_gated_delta_rule, own.causal_conv1d_fn, []

    def delta_by_row(q, k, v, *, g, beta, cu_seqlens=None, seq_idx=None, **how):
        batches.append(len(q))
        sizes = [q.shape[1]] if cu_seqlens is None else cu_seqlens.diff().tolist()
        rows = zip(*(x.split(sizes, 1) for x in (q, k, v, g, beta)), strict=True)
        found = [delta(*row[:3], g=row[3], beta=row[4], **how)[0] for row in rows]
        return torch.cat(found, 1), None

    def convolution_by_row(x, weight, bias, *, activation, seq_idx=None, **how):
        sizes = [x.shape[-1]] if seq_idx is None else seq_idx[0].bincount().tolist()
        rows = [convolution(row, weight, bias, activation) for row in x.split(sizes, -1)]
        return torch.cat(rows, -1)

    monkeypatch.setattr(own, "torch_chunk_gated_delta_rule", delta_by_row)
    monkeypatch.setattr(own, "causal_conv1d_fn", convolution_by_row)
    return batches


@pytest.mark.parametrize("installed", [True, False])
def test_a_mixer_keeps_rows_apart_itself_where_its_kernel_does(installed, monkeypatch):
    batches = kernels_of_rows(monkeypatch) if installed else []
    backbone = Backbone(family_model("qwen3.5"))
    ways = {way.__name__ for way in backbone.anatomy.recording.isolated.values()}
    batches.clear()
    with torch.no_grad():
        packed = backbone.packed_logits(IDS, LENGTHS, ALL)
        assert set(batches) <= {1}
        alone = [
            backbone.packed_logits(ids, (len(ids),), torch.arange(len(ids)))
            for ids in IDS.split(LENGTHS)
        ]
    assert ways == {"pass_rows" if installed else "isolate"}
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_a_wrapper_is_adapted_in_its_text_tower_only():
    backbone = Backbone(family_model("qwen3-vl"))
    adapter = backbone.attach("a", Lora(r=4))
    assert adapter.sites and all("language_model.layers" in site.key for site in adapter.sites)


def test_groups_leave_out_helper_matrices_and_narrow_layers():
    anatomy = Backbone(family_model("qwen3.5")).anatomy
    names = {site.key.rpartition(".")[2] for site in Lora(r=16).sites(anatomy)}
    assert "in_proj_qkv" in names and not names & {"in_proj_a", "in_proj_b"}
    assert {"in_proj_a", "in_proj_b"} <= set(anatomy.left_out(16))
    with pytest.raises(MethodError, match="larger than .*in_proj_b"):
        Lora(r=16, target_modules=("in_proj_b",)).sites(anatomy)


def test_dead_projections_of_layers_with_shared_keys_are_left_out():
    anatomy = Backbone(family_model("gemma3n")).anatomy
    used = {site.key for site in Lora(r=4).sites(anatomy)}
    shared = [keys for n, keys in enumerate(anatomy.recording.keys) if keys.source != n]
    assert shared and not any(f"{keys.module}.k_proj" in used for keys in shared)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4", "qwen3.5", "gpt-oss", "deepseek-v3"])
def test_a_prefix_sits_in_the_layers_that_have_keys_of_their_own(family):
    backbone = Backbone(family_model(family))
    backbone.attach("p", PrefixTuning(num_virtual_tokens=3))
    backbone.use([("p", 1.0)])
    table = backbone.adapters["p"].params[""]["embedding"]
    assert table.shape == (3, backbone.anatomy.key_width)
    with torch.no_grad():
        packed = backbone.packed_logits(IDS, LENGTHS, ALL)
        alone = [
            backbone.packed_logits(ids, (len(ids),), torch.arange(len(ids)))
            for ids in IDS.split(LENGTHS)
        ]
        backbone.use([])
        base = backbone.packed_logits(IDS, LENGTHS, ALL)
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-3, rtol=1e-3)
    assert (packed - base).abs().max() > 1e-3


def test_what_gets_no_gradient_is_left_out():
    anatomy = Backbone(family_model("qwen4")).anatomy
    used = {site.key for site in Lora(r=4).sites(anatomy)}
    assert any(key.endswith("self_attn.q_proj") for key in used)
    assert any("indexer" in site.key for site in anatomy.inner_linears())
    assert not any("indexer" in key for key in used)
    normed = NormTuning().sites(Backbone(family_model("bart")).anatomy)
    assert normed and not any("encoder_attn" in site.key for site in normed)


def test_a_linear_layer_with_a_forward_of_its_own_is_one_if_it_computes_the_same():
    anatomy = Backbone(family_model("falcon")).anatomy
    assert {site.tail for site in anatomy.group("all-linear")} == {
        "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["xlstm", "llama4"])  # xLSTM swallows logits_to_keep
def test_some_positions_have_the_logits_that_they_have_among_all(family):
    backbone = Backbone(family_model(family))
    some = torch.tensor([2, 5, len(IDS) - 1])
    with torch.no_grad():
        every = backbone.packed_logits(IDS, LENGTHS, ALL)
        torch.testing.assert_close(backbone.packed_logits(IDS, LENGTHS, some), every[some])

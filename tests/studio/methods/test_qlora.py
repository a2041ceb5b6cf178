"""QLoRA: training over an NF4 base equals training over its dequantised weights, evals included."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig

from studio.backbone import Backbone
from studio.backbone.dense_weights import dense_weight, fold
from studio.evaluation.bakeoff_measurements import merged_ratio
from studio.methods.lora import Lora
from studio.models.loading import load
from studio.spec import ModelSource
from tests.studio import tiny

pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
IDS = torch.arange(3, 47)
KEEP = torch.arange(43)


@pytest.fixture(params=[32, 64], ids=["rows cut blocks", "rows of whole blocks"])
def pair(tmp_path, request, monkeypatch):
    """The NF4 base, and a plain model holding its dequantised weights."""
    size = {"hidden_size": request.param, "intermediate_size": {32: 48, 64: 128}[request.param]}
    monkeypatch.setitem(tiny.CONFIGS, "llama", LlamaConfig(**tiny.SIZES | size))
    folder = tiny.tiny_folder(tmp_path / "base")
    quantised = Backbone(load(ModelSource(path=str(folder), quantization="nf4"), "cpu").model)
    plain = Backbone(load(ModelSource(path=str(folder)), "cpu").model)
    with torch.no_grad():
        own = {site.key: site for site in plain.anatomy.all_linears()}
        for site in quantised.anatomy.all_linears():
            own[site.key].module.weight.copy_(dense_weight(site))
    import bitsandbytes

    guarded = [m for m in quantised.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert bool(guarded) == (request.param == 64)
    assert not any(m.support_avx512bf16_for_cpu for m in guarded)
    assert any(hasattr(s.module.weight, "quant_state") for s in quantised.anatomy.all_linears())
    return quantised, plain


def train(backbone: Backbone, steps: int) -> list[float]:
    parameters = backbone.train("a")
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(backbone.packed_logits(IDS, [44], KEEP), IDS[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def evaluate(backbone: Backbone) -> torch.Tensor:
    with backbone.evaluating():
        return backbone.model(IDS[None]).logits


def test_train_evaluate_train_merge_equals_the_dequantised_reference(pair):
    """bitsandbytes 0.50 repacks weights at the first eval forward on some CPUs, after which
    gradients and merges are silently wrong; `models.loading` prevents it."""
    quantised, plain = pair
    curves, logits, merged = [], [], []
    for backbone in (quantised, plain):
        backbone.attach("a", Lora(r=4), seed=1)
        backbone.use([("a", 1.0)])
        before = train(backbone, 4)
        evaluate(backbone)
        after = train(backbone, 4)
        curves.append(before + after)
        logits.append(evaluate(backbone))
        merged.append(fold(backbone, (("a", 1.0),)).tensors)
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(
        torch.tensor(curves[0]), torch.tensor(curves[1]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(logits[0], logits[1], atol=2e-3, rtol=1e-3)
    for key, tensor in merged[1].items():
        torch.testing.assert_close(merged[0][key], tensor, atol=1e-4, rtol=1e-3)


def test_a_bake_off_measures_it_merged(tmp_path):
    base = tiny.tiny_folder(tmp_path / "base")
    loaded = load(source := ModelSource(path=str(base), quantization="nf4"), "cpu")
    backbone = Backbone(loaded.model)
    assert merged_ratio(source, loaded, backbone) > 0


def test_a_weight_in_4_bit_is_near_its_own(pair, tmp_path):
    quantised, _ = pair
    own = Backbone(load(ModelSource(path=str(tmp_path / "base")), "cpu").model)
    for ours, theirs in zip(
        quantised.anatomy.all_linears(), own.anatomy.all_linears(), strict=True
    ):
        weight = dense_weight(theirs)
        # Half of the widest step, between 0.70 and 1 of a block's largest number.
        assert (dense_weight(ours) - weight).abs().max() < 0.17 * weight.abs().max()


def test_the_trained_adapter_is_an_ordinary_lora(pair, tmp_path):
    quantised, plain = pair
    quantised.attach("a", Lora(r=4), seed=1)
    quantised.use([("a", 1.0)])
    train(quantised, 3)
    folder = tmp_path / "adapter"
    folder.mkdir()
    quantised.save("a", folder)
    plain.load("a", folder)
    plain.use([("a", 1.0)])
    with torch.no_grad():
        torch.testing.assert_close(
            evaluate(quantised), plain.model(IDS[None]).logits, atol=2e-3, rtol=1e-3
        )

"""Stacks: the composition rule, against a toy site worked out by hand and a whole model."""

import itertools
from pathlib import Path

import pytest
import torch

from studio.backbone import Backbone
from studio.backbone.dense_weights import fold
from studio.chat.decoding import cache_argument
from studio.errors import MethodError
from studio.methods.bitfit import BitFit
from studio.methods.bottleneck import Bottleneck
from studio.methods.full import Full
from studio.methods.ia3 import IA3
from studio.methods.lora import Lora
from studio.methods.norm_tuning import NormTuning
from studio.methods.prefix_tuning import PrefixTuning
from studio.methods.prompt_tuning import PromptTuning
from studio.methods.vera import Vera
from tests.studio.methods import by_hand
from tests.studio.tiny import tiny_model

IDS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(2))
FAMILIES = {
    "lora": Lora(r=3),
    "bitfit": BitFit(),
    "norm": NormTuning(),
    "ia3": IA3(),
    "bottleneck": Bottleneck(bottleneck_dim=5),
    "parallel": Bottleneck(placement="parallel", bottleneck_dim=5),
    "prefix": PrefixTuning(num_virtual_tokens=4),
    "prompt": PromptTuning(num_virtual_tokens=3),
}


def bank(*names: str, model_name: str = "gpt2") -> Backbone:
    backbone = Backbone(tiny_model(model_name))
    for seed, name in enumerate(names):
        adapter = backbone.attach(name, FAMILIES[name.partition("-")[0]], seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone


def run(backbone: Backbone, *stack: tuple[str, float]) -> torch.Tensor:
    backbone.use(stack)
    with torch.no_grad():
        return backbone.model(IDS).logits


def test_one_site_follows_the_rule_with_every_phase_at_once():
    """x~ = x·g_in; y = ((W x~ + b) + w₁ΔW x~ + w₂Δb)·g_out, all read off one Conv1D by hand."""
    backbone = bank("lora", "bitfit", "ia3")
    backbone.use([("lora", 0.5), ("ia3", 0.25), ("bitfit", -2.0)])
    key = "transformer.h.0.mlp.c_proj"
    module = backbone.model.get_submodule(key)
    p = {name: backbone.adapters[name].params[key] for name in ("lora", "bitfit", "ia3")}
    x = torch.randn(2, 5, module.nx)
    scaled = x * (1 + 0.25 * (p["ia3"]["gain_in"] - 1))
    by_rule = scaled @ module.weight + module.bias
    by_rule += 0.5 * (32 / 3) * (scaled @ p["lora"]["lora_A"].T @ p["lora"]["lora_B"].T)
    by_rule += -2.0 * p["bitfit"]["bias"]
    torch.testing.assert_close(module(x), by_rule, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pair", list(itertools.combinations(FAMILIES, 2)), ids="+".join)
def test_every_pair_of_families_acts_together(pair):
    """Both edits act, in one stack as in nested application by hand on a second copy."""
    one, two = pair
    backbone = bank(one, two)
    both = run(backbone, (one, 1.0), (two, 1.0))
    assert not torch.allclose(both, run(backbone, (one, 1.0)), atol=1e-3)
    assert not torch.allclose(both, run(backbone, (two, 1.0)), atol=1e-3)
    expected = _nested_by_hand(backbone, pair)
    torch.testing.assert_close(both, expected, atol=2e-4, rtol=1e-3)


def _nested_by_hand(backbone: Backbone, pair: tuple[str, ...]) -> torch.Tensor:
    """Weights and sub-layers first on a fresh copy (deltas before gains), virtual tokens around."""
    model = tiny_model("gpt2")
    order = {"lora": 0, "bitfit": 0, "norm": 0, "ia3": 1, "bottleneck": 2, "parallel": 2}
    how = {
        "lora": by_hand._lora, "bitfit": by_hand._bitfit, "norm_tuning": by_hand._norm,
        "ia3": by_hand._ia3, "bottleneck": by_hand._bottleneck,
    }  # fmt: skip
    before = []
    with torch.no_grad():
        for name in sorted(pair, key=lambda n: order.get(n, 3)):
            adapter = backbone.adapters[name]
            if name in ("prefix", "prompt"):
                continue
            for key, p in adapter.params.items():
                values = {n: t.detach() for n, t in p.items()}
                module = model.get_submodule(key)
                how[adapter.method.name](module, values, adapter.method, model, key)
        before = [n for n in pair if n in ("prefix", "prompt")]
        return _with_virtual(backbone, model, before)


def _with_virtual(backbone: Backbone, model, names: list[str]) -> torch.Tensor:
    if not names:
        return model(IDS).logits
    if names == ["prefix"]:
        adapter = backbone.adapters["prefix"]
        return by_hand._prefix(model, adapter.method, adapter.params[""], IDS)
    prompt = backbone.adapters["prompt"].params[""]["embedding"].detach()
    whole = torch.cat([prompt[None].expand(2, -1, -1), model.get_input_embeddings()(IDS)], dim=1)
    if names == ["prompt"]:
        return model(inputs_embeds=whole).logits[:, 3:]
    cache = by_hand.DynamicCache()
    table = backbone.adapters["prefix"].params[""]["embedding"].detach().reshape(4, 2, 2, 4, 8)
    for layer in range(2):
        keys, values = table[:, layer].permute(1, 2, 0, 3)
        cache.update(keys[None].expand(2, -1, -1, -1), values[None].expand(2, -1, -1, -1), layer)
    mask = torch.ones(2, 4 + whole.shape[1])
    return model(inputs_embeds=whole, attention_mask=mask, **{cache_argument(model): cache}).logits[
        :, 3:
    ]


def test_deltas_commute_and_bottlenecks_apply_in_stack_order():
    backbone = bank("lora-1", "lora-2", "norm", "bottleneck-1", "bottleneck-2")
    stacks = itertools.permutations([("lora-1", 0.3), ("lora-2", -1.5), ("norm", 2.0)])
    results = [run(backbone, *stack) for stack in stacks]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=2e-5, rtol=1e-4)
    one, other = (
        run(backbone, *((f"bottleneck-{n}", 1.0) for n in order)) for order in ((1, 2), (2, 1))
    )
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_second_adapter_copies_nothing_and_what_sites_share_is_placed_once():
    backbone = bank("lora", model_name="llama")
    before = {name: p.data_ptr() for name, p in backbone.model.named_parameters()}
    adapter = backbone.attach("second", Vera(r=4))
    assert {name: p.data_ptr() for name, p in backbone.model.named_parameters()} == before
    shared = [own["__A"] for own in adapter.params.values()]
    assert len(shared) > 1 and len({id(tensor) for tensor in shared}) == 1


def test_adapters_of_one_name_are_told_apart_whatever_else_is_called_so(monkeypatch):
    backbone = Backbone(tiny_model("llama"))
    monkeypatch.setattr(backbone, "load", lambda name, _: backbone.adapters.setdefault(name, None))
    names = ["x (2)", "x", "x", "x"]
    stack = backbone.load_stack((name, Path(), 1.0) for name in names)
    assert [name for name, _ in stack] == ["x (2)", "x", "x (3)", "x (4)"]


def test_weight_zero_is_the_base_and_weights_change_live():
    backbone = bank("lora", "prefix")
    base = run(backbone)
    assert torch.equal(run(backbone, ("lora", 0.0), ("prefix", 0.0)), base)
    distances = [
        (run(backbone, ("lora", w), ("prefix", 0.5)) - base).abs().mean() for w in (0.1, 0.5, 1)
    ]
    assert distances[0] < distances[1] < distances[2]


def test_a_prefix_weight_near_zero_fades_it_out():
    backbone = bank("prefix")
    near = run(backbone, ("prefix", 1e-6))
    # the positions of the row stay shifted, which learned positions notice: compare with a
    # forward at the shifted positions
    backbone.use([])
    with torch.no_grad():
        shifted = backbone.model(IDS, position_ids=torch.arange(4, 13)[None]).logits
    torch.testing.assert_close(near, shifted, atol=1e-3, rtol=1e-3)


def test_six_rows_with_six_different_stacks_equal_six_runs():
    backbone = bank("lora", "bottleneck", "prefix", "bitfit", "prompt", "ia3")
    stacks = [
        [("lora", 1.0)], [("prefix", 1.0)], [("bottleneck", 1.0), ("ia3", 0.5)], [],
        [("prefix", 0.5), ("prompt", 1.0), ("lora", 1.0)], [("bitfit", -1.0), ("lora", 0.3)],
    ]  # fmt: skip
    ids = IDS[:1].expand(6, -1)
    backbone.use_rows(stacks)
    with torch.no_grad():
        together = backbone.model(ids).logits
    for row, stack in enumerate(stacks):
        torch.testing.assert_close(together[row], run(backbone, *stack)[0], atol=1e-4, rtol=1e-3)


def test_a_mixed_stack_folds_what_it_can_and_names_what_stays():
    backbone = bank("lora", "ia3", "bottleneck", "norm", "prefix")
    stack = tuple((name, 0.8) for name in ("lora", "ia3", "bottleneck", "norm", "prefix"))
    live = run(backbone, *stack)
    folded = fold(backbone, stack)
    assert folded.merged == ("lora", "ia3", "norm")
    assert folded.left == ("bottleneck", "prefix")
    backbone.use([])
    backbone.model.load_state_dict(folded.tensors, strict=False)
    torch.testing.assert_close(
        run(backbone, ("bottleneck", 0.8), ("prefix", 0.8)), live, atol=2e-4, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("stack", "says"),
    [
        ([("lora", 1.0), ("lorra", 1.0)], 'No adapter "lorra" is loaded. Did you mean "lora"?'),
        ([("prefix", -1.0)], "not negatively"),
        ([("whole", 1.0), ("lora", 1.0)], "whole.*cannot be stacked with lora"),
    ],
)
def test_an_impossible_stack_is_refused_and_changes_nothing(stack, says):
    backbone = bank("lora", "prefix")
    backbone.attach("whole", Full())
    backbone.use([("lora", 1.0)])
    with pytest.raises(MethodError, match=says.replace("?", r"\?")):
        backbone.use(stack)
    assert backbone.active == [(("lora", 1.0),)]


def test_dropout_acts_only_while_training():
    backbone = Backbone(tiny_model("llama"))
    adapter = backbone.attach("a", Lora(r=4, lora_dropout=0.5))
    torch.nn.init.normal_(adapter.params["model.layers.0.mlp.up_proj"]["lora_B"])
    assert torch.equal(run(backbone, ("a", 1.0)), run(backbone, ("a", 1.0)))
    backbone.train("a")
    backbone.use([("a", 1.0)])
    one, two = backbone.model(IDS).logits, backbone.model(IDS).logits
    assert not torch.equal(one, two)
    with backbone.evaluating():
        assert torch.equal(backbone.model(IDS).logits, backbone.model(IDS).logits)


def test_a_prompt_from_text_starts_at_the_words_embeddings():
    backbone = Backbone(tiny_model("llama"))
    method = PromptTuning(
        num_virtual_tokens=5, prompt_tuning_init="TEXT", prompt_tuning_init_text="x"
    )
    adapter = backbone.attach("p", method, tokenize=lambda text: [7, 9])
    table = backbone.model.get_input_embeddings().weight
    assert torch.equal(adapter.params[""]["embedding"], table[torch.tensor([7, 9, 7, 9, 7])])
    no_text = method.model_copy(update={"prompt_tuning_init_text": ""})
    of_data = backbone.attach("q", no_text, tokenize=lambda text: [7, 9], example=[3, 4])
    assert torch.equal(of_data.params[""]["embedding"], table[torch.tensor([3, 4, 3, 4, 3])])


@pytest.mark.parametrize("model_name", ["gpt2", "llama", "qwen2"])
def test_a_prefix_from_text_starts_as_if_the_text_stood_there(model_name):
    backbone = Backbone(tiny_model(model_name))
    text = torch.tensor([[5, 11, 7, 3]])
    whole = backbone.model(torch.cat([text, IDS[:1]], dim=1)).logits[:, 4:]
    backbone.attach("p", PrefixTuning(num_virtual_tokens=4), example=text[0].tolist())
    backbone.use([("p", 1.0)])
    assert torch.allclose(backbone.model(IDS[:1]).logits, whole, atol=1e-5)

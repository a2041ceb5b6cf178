"""Mixes: exact where they say so, with the error shown where they are not."""

import json

import pytest
import torch

from studio.adapters.adapter_lineage import OTHER_BASE
from studio.adapters.library import describe
from studio.adapters.merge import MergeRequest
from studio.adapters.mix_adapters import MixRequest, mix, publish_mix
from studio.backbone import Backbone
from studio.errors import AdapterError, MethodError
from studio.home import publishing
from studio.methods.ia3 import IA3
from studio.methods.lora import Lora
from tests.studio.tiny import tiny_folder, tiny_model

IDS = torch.arange(12)[None]


@pytest.fixture
def backbone():
    backbone = Backbone(tiny_model("llama"))
    methods = {
        "a": Lora(r=3, lora_alpha=6),
        "b": Lora(r=5, use_rslora=True, target_modules=("q_proj", "down_proj")),
        "dora": Lora(r=2, use_dora=True),
        "ia3": IA3(),
    }
    for seed, (name, method) in enumerate(methods.items()):
        adapter = backbone.attach(name, method, seed=seed)
        for parameter in adapter.parameters():
            parameter.data += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(seed)
            )
    return backbone


def answer(backbone: Backbone, *stack) -> torch.Tensor:
    backbone.use(stack)
    with torch.no_grad():
        return backbone.model(IDS).logits


def test_concatenation_is_the_exact_weighted_sum(backbone):
    """Unequal ranks, targets and scalings, and a negative weight."""
    mixed = mix(backbone, [("a", 0.7), ("b", -1.3)], "mix")
    assert mixed.method.r == 8 and mixed.error < 1e-6
    expected = answer(backbone, ("a", 0.7), ("b", -1.3))
    torch.testing.assert_close(answer(backbone, ("mix", 1.0)), expected, atol=5e-5, rtol=1e-4)


def test_svd_at_full_rank_is_exact_and_below_says_its_error(backbone):
    full = mix(backbone, [("a", 1.0), ("b", 0.5)], "full", how="svd", r=8)
    low = mix(backbone, [("a", 1.0), ("b", 0.5)], "low", how="svd", r=2)
    assert full.error < 1e-5 < 0.1 < low.error < 1
    expected = answer(backbone, ("a", 1.0), ("b", 0.5))
    torch.testing.assert_close(answer(backbone, ("full", 1.0)), expected, atol=2e-4, rtol=1e-3)


def test_ties_keeps_what_agrees_in_sign():
    """One layer by hand: weights 1 and 1, everything kept (density 1)."""
    from studio.adapters.mix_adapters import _ties

    one = torch.tensor([[2.0, -1.0, 3.0]])
    two = torch.tensor([[4.0, 3.0, -1.0]])
    # signs of the sums (6, 2, 2) are +; agreeing entries average: (2+4)/2, 3, 3
    assert torch.equal(_ties([(one, 1.0), (two, 1.0)], 1.0, None), torch.tensor([[3.0, 3.0, 3.0]]))
    # density 1/3 keeps each one's largest entry: 3 and 4
    third = _ties([(one, 1.0), (two, 1.0)], 1 / 3, None)
    assert torch.equal(third, torch.tensor([[4.0, 0.0, 3.0]]))


def test_dare_keeps_the_mean_and_the_seed_decides(backbone):
    from studio.adapters.mix_adapters import _dare

    delta = torch.ones(400, 400)
    dropped = _dare([(delta, 1.0)], 0.25, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert abs(dropped.mean() - 1) < 0.02
    mix(backbone, [("a", 1.0)], "one", how="dare", r=4, seed=1)
    mix(backbone, [("a", 1.0)], "same", how="dare", r=4, seed=1)
    mix(backbone, [("a", 1.0)], "other", how="dare", r=4, seed=2)
    assert torch.equal(answer(backbone, ("one", 1.0)), answer(backbone, ("same", 1.0)))
    assert not torch.equal(answer(backbone, ("one", 1.0)), answer(backbone, ("other", 1.0)))


def rich(backbone: Backbone, name: str, seed: int, **options) -> None:
    """Attach a LoRA that changes more than A and B: tokens, whole modules, biases."""
    adapter = backbone.attach(name, Lora(r=2, **options), seed=seed)
    for site in adapter.sites:
        if site.key not in adapter.beside and getattr(site.module, "bias", None) is not None:
            adapter.params[site.key]["lora_bias"] = torch.nn.Parameter(
                torch.zeros(site.out_features)
            )
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_what_loras_train_beside_their_products_is_mixed_too(model, tmp_path):
    """Tokens, modules in full, biases; some at a site where the other has a low-rank product."""
    backbone = Backbone(tiny_model(model))
    rich(backbone, "a", 1, trainable_token_indices=(3, 5, 9), target_modules=("q_proj", "up_proj"))
    rich(backbone, "b", 2, trainable_token_indices=(5, 2), target_modules=("q_proj",),
         modules_to_save=("up_proj", "norm", "lm_head"))  # fmt: skip
    stack = [("a", 0.7), ("b", -0.5)]
    expected = answer(backbone, *stack)

    for how, options in (("concatenate", {}), ("svd", {"r": 4})):
        mixed = mix(backbone, stack, how, how=how, **options)
        assert mixed.error < 1e-5
        torch.testing.assert_close(answer(backbone, (how, 1.0)), expected, atol=2e-4, rtol=1e-3)
        (tmp_path / how).mkdir()
        backbone.save(how, tmp_path / how)
        backbone.load(f"{how} again", tmp_path / how)
        again = answer(backbone, (f"{how} again", 1.0))
        torch.testing.assert_close(again, expected, atol=2e-4, rtol=1e-3)
    assert mix(backbone, stack, "ties", how="ties", r=4).error > 0.1
    mix(backbone, stack, "dare", how="dare", r=4)


def test_adapters_of_one_name_on_their_own_base_are_mixed_by_default(home, tmp_path):
    """Two adapters called alike; nothing says on which base but their passports."""
    base = tiny_folder(tmp_path / "base")
    own = Backbone(tiny_model("llama"))
    own.attach("a", Lora(r=2))
    for folder in ("one", "two"):
        with publishing(home.adapters / folder) as temporary:
            own.save("a", temporary, base=str(base))
            known = {"name": "same", "base": {"path": str(base), "fingerprint": "0-0"}}
            (temporary / "passport.json").write_text(json.dumps(known))
    stack = [{"name": "one"}, {"name": "two", "weight": 0.5}]

    request = MixRequest.parse({"name": "blend", "stack": stack}).checked(home)
    assert request.model.path == str(base)
    assert MergeRequest.parse({"stack": stack}).checked(home).model.path == str(base)
    list(request.perform(home))
    found = describe(home.adapters / "blend")
    assert found.parents == ("same:1", "same:0.5")
    assert found.passport["mix"]["notes"] == [OTHER_BASE.format(adapter="same", model=base)] * 2


@pytest.mark.parametrize(
    ("stack", "options", "says"),
    [
        ([("a", 1.0), ("ia3", 1.0)], {}, '"ia3" is IA³; only LoRAs'),
        ([("dora", 1.0)], {}, "DoRA"),
        ([("a", 0.0)], {}, "weight other than 0"),
        ([("a", 1.0)], {"how": "svd", "r": 99}, "larger than the smallest layer"),
        ([("b", 1.0)] * 205, {}, "ranks add up to 1025"),
    ],
)
def test_what_cannot_be_mixed_is_refused(backbone, stack, options, says):
    with pytest.raises(MethodError, match=says):
        mix(backbone, stack, "mix", **options)
    assert "mix" not in backbone.adapters


def test_a_published_mix_names_its_parents(backbone, tmp_path):
    mixed = mix(backbone, [("a", 0.7), ("b", 0.3)], "mix")
    parents = []
    for name, weight, template in (("a", 0.7, "auto"), ("b", 0.3, "alpaca")):
        (tmp_path / name).mkdir()
        backbone.save(name, tmp_path / name)
        own = {"data": {"template": template}, "spec": {"data": {"chat_template_kwargs": "x: 1"}}}
        (tmp_path / name / "passport.json").write_text(json.dumps(own))
        parents.append((describe(tmp_path / name), weight))
    options = dict(base={"path": "starter"}, parents=parents, mixed=mixed, how="concatenate")
    publish_mix(backbone, "mix", tmp_path / "both", **options)
    found = describe(tmp_path / "both")
    assert found.parents == ("a:0.7", "b:0.3") and found.ended == "mixed"
    assert (found.chat_template, found.chat_template_kwargs) == ("alpaca", "x: 1")
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["r"] == 8
    with pytest.raises(AdapterError, match="already an adapter"):
        publish_mix(backbone, "mix", tmp_path / "both", **options)

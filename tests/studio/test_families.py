"""Tiny families are built from their configuration and differ from row to row of the matrix."""

import pytest
import torch

from studio.backbone import Backbone
from studio.backbone.dense_weights import fold
from studio.methods.norm_tuning import NormTuning
from tests.families import FAMILIES, LAYERS, VOCABULARY, family_config, family_model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_built_small_and_answers_every_token(name):
    model = family_model(name)
    ids = torch.arange(3, 20)[None]

    with torch.no_grad():
        logits_BTV = model(input_ids=ids, use_cache=False).logits

    assert sum(p.numel() for p in model.parameters()) < 300_000
    assert logits_BTV.isfinite().all()
    assert logits_BTV.shape[-1] <= VOCABULARY
    assert (logits_BTV[0, 1:] - logits_BTV[0, :-1]).abs().amax(-1).min() > 1e-3


WRAPPED = [name for name, family in FAMILIES.items() if family.wrapper is not None]


@pytest.mark.parametrize("name", WRAPPED)
def test_both_towers_of_a_wrapper_have_as_many_layers(name):
    config = family_config(name)
    vision = config.vision_config
    count = getattr(vision, "num_hidden_layers", None) or vision.depth
    assert config.get_text_config().num_hidden_layers == count == LAYERS


@pytest.mark.parametrize("name", ["cohere2", "qwen4"])
def test_norms_with_a_formula_of_their_own_fold_as_they_answer(name):
    backbone = Backbone(model := family_model(name))
    ids = torch.arange(3, 20)[None]
    for parameter in backbone.attach("a", NormTuning()).parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    with torch.no_grad():
        base = model(input_ids=ids, use_cache=False).logits
        backbone.use([("a", 1.0)])
        live = model(input_ids=ids, use_cache=False).logits
        folded = fold(backbone, (("a", 1.0),))
        backbone.use([])
        model.load_state_dict(folded.tensors, strict=False)
        merged = model(input_ids=ids, use_cache=False).logits
    assert (merged - live).abs().max() < 1e-3 * (merged - base).abs().max()

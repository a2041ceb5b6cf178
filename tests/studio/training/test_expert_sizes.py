"""Sizes of routed experts from a configuration equal those of the model that it makes."""

import pytest

from studio.backbone.sites import Anatomy
from studio.methods.lora import Lora
from studio.training.sizes_for_estimates import read_mixture
from tests.families import family_config, family_model

FAMILIES = ["mixtral", "qwen3-moe", "gpt-oss", "glm4-moe", "deepseek-v3", "gemma4-moe", "lfm2-moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_and_their_adapters_have_the_counted_sizes(family):
    config = family_config(family).get_text_config()
    found = read_mixture(
        config.to_dict(), hidden=config.hidden_size, layers=config.num_hidden_layers
    )
    sites = Anatomy(family_model(family)).experts()
    assert found is not None and found.layers == len({site.layer for site in sites})
    assert found.parameters == sum(site.parameter.numel() for site in sites)
    assert found.largest_parameter == max(site.parameter.numel() for site in sites)
    method = Lora(r=4, expert_r=2)
    ranks = [s.num_experts * method.rank(s) * (s.in_features + s.out_features) for s in sites]
    assert found.trained(method) == sum(ranks)
    assert found.trained(Lora(r=4, target_modules="attention")) == 0


def test_a_dense_model_has_no_mixture():
    config = family_config("llama")
    assert read_mixture(config.to_dict(), hidden=32, layers=4) is None

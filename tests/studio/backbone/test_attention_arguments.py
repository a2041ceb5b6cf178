"""Arguments of architectures: computed as their own eager attention does, or refused by name."""

import pytest
import torch
from torch import nn

from studio.backbone import Backbone, attention
from studio.backbone.attention import studio_attention
from studio.errors import MethodError
from tests.families import family_model

IDS = torch.arange(10, 34)[None]


@pytest.mark.parametrize(
    "family", ["gpt-oss", "gemma2", "vaultgemma", "granite-swa", "granite-moe-swa", "inkling"]
)
def test_the_result_is_that_of_the_family_s_own_attention(family):
    model, plain = family_model(family), family_model(family)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        expected = plain(input_ids=IDS, use_cache=False).logits
        found = Backbone(model).model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_sink_takes_its_part_of_the_softmax():
    # One head, one query, keys that give logits 0 and 0, a sink of log 2: weights 1/4, 1/4, 2/4.
    query = torch.zeros(1, 1, 2, 8)
    value = torch.arange(1.0, 3.0).view(1, 1, 2, 1).expand(1, 1, 2, 8)
    sinks = torch.tensor([2.0]).log()
    output, _ = studio_attention(nn.Module(), query, query, value, None, s_aux=sinks)
    torch.testing.assert_close(output[0, :, 0, 0], torch.tensor([1 / 3, (1 + 2) / 4]))


def test_chosen_keys_hide_the_others():
    query = torch.zeros(1, 1, 2, 8)
    value = torch.arange(1.0, 3.0).view(1, 1, 2, 1).expand(1, 1, 2, 8)
    chosen = torch.tensor([[[0], [1]]])
    output, _ = studio_attention(nn.Module(), query, query, value, None, indices=chosen)
    torch.testing.assert_close(output[0, :, 0, 0], torch.tensor([1.0, 2.0]))


def test_an_unknown_argument_is_refused_by_name():
    x = torch.zeros(1, 1, 3, 8)
    studio_attention(nn.Module(), x, x, x, None, new_bias=None, use_cache=True)
    with pytest.raises(MethodError, match="passes new_bias to its attention"):
        studio_attention(nn.Module(), x, x, x, None, new_bias=torch.ones(1))


def test_every_class_with_the_interface_is_loaded_under_our_name(monkeypatch):
    from transformers import Gemma2ForCausalLM, MptForCausalLM

    from studio.models.loading import attention_of

    monkeypatch.setattr(Gemma2ForCausalLM, "_supports_sdpa", False)
    assert attention_of(Gemma2ForCausalLM) == attention.NAME
    assert attention_of(MptForCausalLM) == "eager"

"""Rows alone: a packed row as a padded batch with a mask of its own, and its own rotary factors."""

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from studio.backbone import Backbone
from studio.backbone.attention import AttentionState
from studio.backbone.row_isolation import isolate, undo, unpack
from studio.models.find_model import facts_of_config
from studio.training.sizes_for_estimates import shape_of
from tests.studio.chat.tiny import greedy, reference


class Running(torch.nn.Module):
    """A running sum over tokens: the smallest causal mixer."""

    def forward(self, x):
        return x.cumsum(1), x.shape


def test_an_isolated_module_sees_rows_padded_on_the_right():
    state, module = AttentionState(), Running()
    isolate(module, state)
    x = torch.arange(1.0, 7.0).view(1, 6, 1)
    state.lengths = (2, 1, 3)
    output, shape = module(x)
    assert tuple(shape) == (3, 3, 1)
    assert output.flatten().tolist() == [1, 3, 3, 4, 9, 15]
    assert state.lengths == (2, 1, 3)
    undo([module])
    assert module(x)[0].flatten().tolist() == [1, 3, 6, 10, 15, 21]


def test_a_mask_is_divided_into_those_of_its_rows():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    first, second = unpack(mask, (2, 1))[:, 0].tolist()
    assert first == [[True, False], [True, True]]
    assert second == [[True, False], [True, False]]  # the second query is padding


def test_other_tensors_stay_as_they_are():
    x = torch.zeros(5, 6)
    assert unpack(x, (2, 4)) is x


CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONG = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
TYPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "yarn": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "rope_theta": 10000.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
        "factor": 4.0, **LONG,
    },
}  # fmt: skip
# Rows below, across and above the 16 positions at which the factors change.
PROMPTS = [[5, 6, 7], list(range(3, 15)), list(range(20, 40))]


def model_of(kind):
    torch.manual_seed(0)
    if kind == "phi3":
        config = Phi3Config(
            **SIZES, max_position_embeddings=64, original_max_position_embeddings=16,
            rope_parameters=TYPES["longrope"] | {"partial_rotary_factor": 1.0},
        )  # fmt: skip
        return Phi3ForCausalLM(config).eval()
    longest = 16 if kind == "dynamic" else 64
    config = LlamaConfig(**SIZES, max_position_embeddings=longest, rope_parameters=TYPES[kind])
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", [*TYPES, "phi3"])
def test_a_lane_answers_as_generate_does_alone_and_in_company(kind):
    if kind == "phi3" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("its generate differs where the factors change")
    expected = [reference(model_of(kind), prompt, 12) for prompt in PROMPTS]
    model = model_of(kind)
    Backbone(model)
    assert [greedy(model, [prompt], 12)[0] for prompt in PROMPTS] == expected
    assert greedy(model, PROMPTS, 12) == expected
    assert greedy(model, [PROMPTS[2], PROMPTS[0]], 12) == [expected[2], expected[0]]


@pytest.mark.parametrize("kind", [*TYPES, "phi3"])
def test_packed_and_padded_rows_have_the_logits_of_rows_alone(kind):
    plain = model_of(kind)
    with torch.no_grad():
        alone = []
        for prompt in PROMPTS:
            fresh = model_of(kind)
            alone.append(fresh(torch.tensor([prompt]), use_cache=False).logits[0])
    del plain
    backbone = Backbone(model_of(kind))
    lengths = [len(prompt) for prompt in PROMPTS]
    ids = torch.tensor([token for prompt in PROMPTS for token in prompt])
    mask = torch.zeros(3, max(lengths), dtype=torch.long)
    padded = torch.zeros_like(mask)
    for row, prompt in enumerate(PROMPTS):
        mask[row, : len(prompt)], padded[row, : len(prompt)] = 1, torch.tensor(prompt)
    with torch.no_grad():
        packed = backbone.packed_logits(ids, lengths, torch.arange(len(ids)))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        together = backbone.model(
            input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(together[mask.bool()], torch.cat(alone), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [*TYPES, "phi3"])
def test_an_estimate_knows_from_the_configuration_where_prompts_are_shared(kind):
    model = model_of(kind)
    config = model.config.to_dict()
    own = config.pop("rope_parameters")
    expected = Backbone(model).shares_prompts
    for rope in (
        {"rope_parameters": own}, {"rope_scaling": {**own, "type": own["rope_type"]}},
        {"rope_parameters": {"sliding_attention": None, "full_attention": own}},
    ):  # fmt: skip
        known = facts_of_config({**config, **rope}, Path("m"), parameters=1)
        assert shape_of({**config, **rope}, known).only_attends is expected

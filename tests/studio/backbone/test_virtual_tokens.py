"""Prompts on models that carry states: as tokens before every row, in training and in answers."""

import pytest
import torch

from studio.backbone import Backbone
from studio.chat.decoding import Batch
from studio.errors import MethodError
from studio.methods.prompt_tuning import PromptTuning
from tests.families import family_model

ROWS = [[5, 6, 7, 8, 9], [11, 12, 13], [21, 22, 23, 24, 25, 26, 27]]
LENGTHS = [len(row) for row in ROWS]
IDS = torch.tensor([token for row in ROWS for token in row])
FAMILIES = ["qwen3.5", "falcon-h1", "mamba", "bloom", "dory"]


def with_prompt(family):
    backbone = Backbone(family_model(family))
    method = PromptTuning(num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    adapter = backbone.attach("p", method, seed=1)
    backbone.use([("p", 1.0)])
    return backbone, adapter.params[""]["embedding"].detach()


def expected(family, prompt, row):
    """The logits of a row behind the prompt's embeddings, on the bare model."""
    model = family_model(family)
    own = model.get_input_embeddings()(torch.tensor([row]))
    embedded = torch.cat([prompt[None].to(own.dtype), own], dim=1)
    with torch.no_grad():
        return model(inputs_embeds=embedded, use_cache=False).logits[0, len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_see_the_prompt_as_tokens(family):
    backbone, prompt = with_prompt(family)
    with torch.no_grad():
        packed = backbone.packed_logits(IDS, LENGTHS, torch.arange(len(IDS)))
        plain = backbone.model(input_ids=torch.tensor(ROWS[:1]), use_cache=False).logits[0]
    wanted = torch.cat([expected(family, prompt, row) for row in ROWS])
    torch.testing.assert_close(packed, wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(plain, wanted[: LENGTHS[0]], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_the_prompt_trains(family):
    backbone, _ = with_prompt(family)
    (parameter,) = backbone.train("p")
    backbone.packed_logits(IDS, LENGTHS, torch.arange(len(IDS))).logsumexp(-1).sum().backward()
    assert parameter.grad is not None and (parameter.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("family", ["qwen3.5", "mamba", "bloom"])
def test_answers_are_those_of_the_whole_text_read_again(family):
    backbone, prompt = with_prompt(family)
    batch = Batch(backbone.model, ROWS, torch.device("cpu"))
    logits, _ = batch.prefill()
    rows = [list(row) for row in ROWS]
    for _ in range(6):
        wanted = torch.stack([expected(family, prompt, row)[-1] for row in rows])
        torch.testing.assert_close(logits, wanted, atol=2e-3, rtol=1e-3)
        tokens = logits.argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        logits = batch.step(tokens)


def test_a_prompt_in_a_state_has_no_weight():
    backbone, _ = with_prompt("mamba")
    with pytest.raises(MethodError, match="its weight must be 0 or 1"):
        backbone.use([("p", 0.5)])

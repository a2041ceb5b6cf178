"""The decode loop says what transformers' generate says, whatever shares the batch."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from studio.backbone import Backbone
from studio.chat.decoding import Batch, use_transposed_products
from tests.studio.chat.tiny import VOCABULARY, greedy, make_model, reference

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [50]]


def sliding(kind):
    torch.manual_seed(0)
    config = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "sliding_window": 6, "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**config)).eval()
    return Gemma2ForCausalLM(Gemma2Config(head_dim=8, **config)).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2"])
@pytest.mark.parametrize("layer", [False, True])
def test_left_padded_rows_equal_generate(kind, layer):
    model = make_model(kind) if kind in ("llama", "gpt2") else sliding(kind)
    expected = [reference(model, prompt, 20) for prompt in PROMPTS]
    if layer:
        Backbone(model)

    assert greedy(model, PROMPTS, 20) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_rows_that_leave_do_not_disturb_those_that_stay(kind):
    model = make_model(kind) if kind != "mistral" else sliding(kind)
    expected = reference(model, PROMPTS[0], 16)

    batch = Batch(model, PROMPTS, CPU)
    logits, _ = batch.prefill()
    row, kept, tokens = 0, [0, 1, 2], []
    for step in range(16):
        picked = logits.argmax(-1).tolist()
        tokens.append(picked[row])
        if step == 4:
            kept = [0, 2]
        if step == 9:
            kept = [0]
        if len(batch) != len(kept):
            gone = [place for place in range(len(batch)) if place < len(kept)]
            batch.keep([0, 2] if step == 4 else gone)
            picked = [picked[0], picked[2]] if step == 4 else picked[:1]
        logits = batch.step(picked)

    assert tokens == expected


def test_probe_logits_are_those_of_the_row_alone():
    model = make_model("llama")
    batch = Batch(model, PROMPTS, CPU)

    _, probed = batch.prefill([2, 4, 0])

    with torch.no_grad():
        alone = model(torch.tensor([PROMPTS[1][:5]])).logits[0, -1]
    torch.testing.assert_close(probed[1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 9])
def test_quick_products_are_the_same_products(rows):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(128, 8192), torch.nn.Linear(8192, 128, bias=False), torch.nn.Linear(128, 8)
    )
    x = torch.randn(rows, 1, 128)
    expected = model(x)

    use_transposed_products(model)

    with torch.no_grad():
        torch.testing.assert_close(model(x), expected.detach(), atol=1e-5, rtol=1e-5)
    assert model(x).requires_grad
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "2.weight", "2.bias"]
    assert ["forward" in vars(layer) for layer in model] == [True, True, False]

"""A beginning that packed rows share is computed once, and every row is as if it had its own."""

import pytest
import torch

from studio.backbone import Backbone, attention_kernels
from studio.methods.lora import Lora
from studio.methods.prefix_tuning import PrefixTuning
from studio.methods.prompt_tuning import PromptTuning
from tests.families import family_model

IDS = torch.randint(3, 120, (60,), generator=torch.Generator().manual_seed(0))
ROWS = [IDS[:16], torch.cat([IDS[:9], IDS[16:30]]), torch.cat([IDS[:12], IDS[30:33]]), IDS[33:41],
        torch.cat([IDS[33:40], IDS[50:60]])]  # fmt: skip
SHARED, LEADERS = (0, 9, 12, 0, 7), (0, 0, 0, 3, 3)
METHODS = {
    "lora": Lora(r=4), "prefix": PrefixTuning(num_virtual_tokens=5),
    "prompt": PromptTuning(num_virtual_tokens=4, prompt_tuning_init="RANDOM"),
}  # fmt: skip


def trained(family, method, dtype=torch.float32):
    backbone = Backbone(family_model(family).to(dtype))
    backbone.attach("a", method)
    backbone.use([("a", 1.0)])
    parameters = backbone.train("a")
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backbone, parameters


def passed(backbone, parameters, *, shared):
    """Return the logits of every token of every row, and the gradients of a loss of them."""
    lengths = [len(row) for row in ROWS]
    if not shared:
        logits = backbone.packed_logits(torch.cat(ROWS), lengths, torch.arange(sum(lengths)))
    else:
        own = [length - n for length, n in zip(lengths, SHARED, strict=True)]
        starts = [sum(own[:row]) for row in range(len(own))]
        keep = [
            torch.cat([torch.arange(n) + starts[leader], torch.arange(own[row]) + starts[row]])
            for row, (n, leader) in enumerate(zip(SHARED, LEADERS, strict=True))
        ]
        ids = torch.cat([row[n:] for row, n in zip(ROWS, SHARED, strict=True)])
        logits = backbone.packed_logits(ids, own, torch.cat(keep), lengths, SHARED)
    weights = torch.arange(len(logits))[:, None] / len(logits)  # rows count differently
    (logits.float().logsumexp(-1, keepdim=True).square() * weights).sum().backward()
    gradients = [p.grad.float() for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return [logits.detach().float(), *gradients]


def check(backbone, parameters, tolerance=1e-3):
    apart, once = (passed(backbone, parameters, shared=shared) for shared in (False, True))
    assert len(apart) == len(once) > 1
    for one, other in zip(once, apart, strict=True):
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "family", ["llama", "mistral", "gemma2", "gemma3n", "gpt2", "gpt-oss", "deepseek-v3"]
)
def test_logits_and_gradients_are_those_of_rows_apart(family, method):
    backbone, parameters = trained(family, METHODS[method])
    assert backbone.shares_prompts
    check(backbone, parameters)
    if method == "lora" and family in ("llama", "mistral"):
        backbone.checkpointing(True)
        check(backbone, parameters)


@pytest.mark.parametrize("method", METHODS)
def test_products_in_bfloat16_too(method, monkeypatch):
    monkeypatch.setattr("studio.hardware.has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(attention_kernels, "BLOCK_WEIGHTS", 2_000)  # several blocks of queries
    check(*trained("llama", METHODS[method], torch.bfloat16), tolerance=0.06)


@pytest.mark.parametrize(
    "family", ["bloom", "llama4", "hrm", "qwen3.5", "lfm2", "mamba", "zaya", "inkling", "qwen4"]
)
def test_a_beginning_is_computed_apart_where_more_than_attention_reads_it(family):
    assert not Backbone(family_model(family)).shares_prompts


def test_a_model_that_cannot_run_with_a_shared_beginning_runs_without():
    backbone, parameters = trained("llama", METHODS["lora"])
    expected = passed(backbone, parameters, shared=False)

    def refuse(module, args, kwargs):
        positions = kwargs["position_ids"][0]
        if positions[1:][positions.diff() != 1].any():  # a row that begins after position 0
            raise IndexError("positions out of range")

    backbone.anatomy.tower.register_forward_pre_hook(refuse, with_kwargs=True)
    assert not backbone.shares_prompts
    for one, other in zip(passed(backbone, parameters, shared=False), expected, strict=True):
        assert torch.equal(one, other)

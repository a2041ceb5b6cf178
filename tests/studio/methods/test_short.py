"""Short rows as plain products give what torch's fused kernel gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from studio import hardware
from studio.backbone import attention_kernels
from studio.backbone.attention import AttentionShape, attend
from studio.methods.lora import Lora
from tests.studio.methods.cases import adapted


def passed(how: Any, inputs: list[Tensor], outer: Tensor) -> list[Tensor]:
    own = [tensor.clone().requires_grad_() for tensor in inputs]
    result = how(*own)
    result.backward(outer)
    return [result.detach(), *(tensor.grad for tensor in own if tensor.grad is not None)]


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 100, 256])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_a_row(tokens, heads, scaling):
    made = torch.Generator().manual_seed(tokens)
    wanted = [(1, heads[0], tokens, 8), *[(1, heads[1], tokens, 8)] * 2]
    # As the layers give it: tokens before heads, seen the other way.
    inputs = [
        torch.randn(a, c, b, d, generator=made, dtype=torch.float64).transpose(1, 2)
        for a, b, c, d in wanted
    ]
    outer = torch.randn(wanted[0], generator=made, dtype=torch.float64)
    plain = passed(lambda *x: attend(*x, None, AttentionShape(scaling)), inputs, outer)
    products = passed(lambda *x: attention_kernels.attend_row(*x, scaling), inputs, outer)
    assert len(plain) == 4
    for one, other in zip(products, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_only_short_rows_of_bfloat16_on_a_cpu():
    row = torch.zeros(1, 2, attention_kernels.LONGEST, 8, dtype=torch.bfloat16)
    longer = torch.zeros(1, 2, attention_kernels.LONGEST + 1, 8, dtype=torch.bfloat16)
    assert attention_kernels.short_row_fits(row, row)
    assert not attention_kernels.short_row_fits(row.float(), row.float())
    assert not attention_kernels.short_row_fits(row.to("meta"), row.to("meta"))
    assert not attention_kernels.short_row_fits(longer, longer)
    assert not attention_kernels.short_row_fits(
        row, longer
    )  # the keys of a prefix before the row's own


@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen3"])
def test_a_packed_pass_is_that_of_the_fused_kernel(model, monkeypatch):
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: True)
    rows: list[int] = []
    own = attention_kernels.attend_row
    monkeypatch.setattr(
        attention_kernels, "attend_row", lambda *x: rows.append(x[0].shape[2]) or own(*x)
    )
    backbone, parameters = adapted(model, Lora(r=4), dtype=torch.bfloat16)
    found = {}
    for how in ("auto", "sdpa"):
        backbone.set_attention(how)
        logits = backbone.packed_logits(torch.arange(3, 20), (5, 3, 9), torch.tensor([3, 6, 15]))
        logits.float().logsumexp(-1).sum().backward()
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        found[how] = [logits.detach().float(), *gradients]
        for parameter in parameters:
            parameter.grad = None
    assert rows == [5, 3, 9] * 2  # each row of each layer, by `auto` alone
    for one, other in zip(found["auto"], found["sdpa"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-1, atol=1e-1)

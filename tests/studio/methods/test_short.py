"""Rows as plain products give what torch's fused kernel gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from studio import hardware
from studio.backbone import attention_kernels
from studio.backbone.attention import AttentionShape, attend_rows_in_turn
from studio.methods.lora import Lora
from tests.studio.methods.cases import adapted


def passed(how: Any, inputs: list[Tensor], outer: Tensor) -> list[Tensor]:
    own = [tensor.clone().requires_grad_() for tensor in inputs]
    result = how(*own)
    result.backward(outer)
    return [result.detach(), *(tensor.grad for tensor in own if tensor.grad is not None)]


@pytest.mark.parametrize("before", [0, 10, 64])  # keys of a shared beginning
@pytest.mark.parametrize("lengths", [(1,), (2, 31, 32), (33, 100), (256, 5), (300, 1)], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_rows_of_any_length(lengths, heads, scaling, before, monkeypatch):
    monkeypatch.setattr(attention_kernels, "BLOCK_WEIGHTS", 40_000)  # long rows: several blocks
    made, tokens = torch.Generator().manual_seed(sum(lengths)), sum(lengths)
    key_lengths = tuple(length + before for length in lengths)
    wanted = [(1, heads[0], tokens, 8), *[(1, heads[1], sum(key_lengths), 8)] * 2]
    # As the layers give it: tokens before heads, seen the other way.
    inputs = [
        torch.randn(a, c, b, d, generator=made, dtype=torch.float64).transpose(1, 2)
        for a, b, c, d in wanted
    ]
    outer = torch.randn(wanted[0], generator=made, dtype=torch.float64)
    shape = AttentionShape(scaling)
    plain = passed(
        lambda *x: attend_rows_in_turn(*x, lengths, key_lengths, None, None, shape),
        inputs,
        outer,
    )
    products = passed(
        lambda *x: attention_kernels.attend_by_products(*x, lengths, key_lengths, scaling),
        inputs,
        outer,
    )
    assert len(plain) == 4
    for one, other in zip(products, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_only_rows_of_bfloat16_on_a_cpu():
    row = torch.zeros(1, 2, 9, 8, dtype=torch.bfloat16)
    assert attention_kernels.products_fit(row)
    assert not attention_kernels.products_fit(row.float())
    assert not attention_kernels.products_fit(row.to("meta"))


@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen3"])
def test_a_packed_pass_is_that_of_the_fused_kernel(model, monkeypatch):
    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda: True)
    rows: list[int] = []
    own = attention_kernels.attend_by_products
    monkeypatch.setattr(
        attention_kernels, "attend_by_products", lambda *x: rows.extend(x[3]) or own(*x)
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

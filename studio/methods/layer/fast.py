"""A frozen linear layer with a low-rank delta, as one autograd node.

Written as separate operations, `W x + B A x` saves its input twice in low precision, passes three
times over an output-sized tensor to scale and add, and lets autograd add two input gradients. As
one node it keeps `x` and `A x` alone, lets the matrix products accumulate, and never asks for a
gradient of `W`. `plain` is the twin that the tests hold it to.

Adapter parameters stay float32; the products run in the input's own precision, as autocast would.

Shapes: `T tokens (all leading dimensions), I in_features, O out_features, R rank`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


class LowRankLinear(torch.autograd.Function):
    """`y = x Wᵀ + b + (x Aᵀ) Bᵀ` with `W` and `b` frozen."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor,
        transposed: bool,
    ) -> Tensor:  # fmt: skip
        """Return `(T, O)`; `transposed` marks GPT-2's `(I, O)` weights."""
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        weight_IO = weight if transposed else weight.T
        y_TO = x_TI @ weight_IO if bias is None else torch.addmm(bias, x_TI, weight_IO)
        h_TR = x_TI @ a.T
        y_TO.addmm_(h_TR, b.T)
        ctx.save_for_backward(x_TI, h_TR, weight, a, b)
        ctx.transposed, ctx.dtypes = transposed, (a_RI.dtype, b_OR.dtype)
        return y_TO

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x`, `A` and `B`."""
        x_TI, h_TR, weight, a, b = ctx.saved_tensors
        grad_TO = outputs[0]
        inner_TR = grad_TO @ b
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_TO @ (weight.T if ctx.transposed else weight)
            grad_x.addmm_(inner_TR, a)
        if ctx.needs_input_grad[3]:
            grad_a = (inner_TR.T @ x_TI).to(ctx.dtypes[0])
        if ctx.needs_input_grad[4]:
            grad_b = (grad_TO.T @ h_TR).to(ctx.dtypes[1])
        return grad_x, None, None, grad_a, grad_b, None


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor,
    *, transposed: bool = False,
) -> Tensor:  # fmt: skip
    """Return `x Wᵀ + b + (x Aᵀ) Bᵀ` for any leading dimensions of `x`.

    Args:
        x: `(…, I)`.
        weight: The frozen `(O, I)` weight, or `(I, O)` when `transposed`.
        bias: The frozen bias or None.
        a_RI: The delta's first factor.
        b_OR: The delta's second factor with its scale already in it.
        transposed: Whether the weight is GPT-2's Conv1D.
    """
    flat = x.reshape(-1, x.shape[-1])
    y_TO: Tensor = LowRankLinear.apply(flat, weight, bias, a_RI, b_OR, transposed)
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


def plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor,
    *, transposed: bool = False,
) -> Tensor:  # fmt: skip
    """The same in separate operations: what `low_rank_linear` must equal."""
    base = linear(x, weight.T if transposed else weight, bias)
    return base + linear(linear(x.to(a_RI.dtype), a_RI), b_OR).to(base.dtype)

"""Autograd nodes for a frozen linear layer with low-rank deltas: one adapter, or one per row group.

Written as separate operations, `W x + B A x` saves its input twice in low precision, passes three
times over an output-sized tensor to scale and add, and lets autograd add two input gradients. As
one node it keeps `x` and `A x` alone, lets the matrix products accumulate, and never asks for a
gradient of `W`. `plain` is the twin that the tests hold it to.

Adapter parameters stay float32; the products run in the input's own precision, as autocast would.

Shapes: `T tokens (all leading dimensions), I in_features, O out_features, R rank`.

Siblings that train together stand one after the other in a packed batch, so that each adapter's
rows are one span of tokens: one product with `W` for all of them, then each span's own `B A x` is
added in place. As separate edits every adapter would copy its rows out and the whole output once.
`fast.py` is the same for one adapter, the edits of `stack.py` are the twin that the tests hold it
to.

Shapes: `T tokens (all leading dimensions), I in_features, O out_features, R rank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from studio.backbone.composition import Edit
    from studio.backbone.sites import Site


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


Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Routed:
    """The factors of every adapter in turn, `A₁ B₁ A₂ B₂ …`, and the span of tokens of each."""

    spans: tuple[Span, ...]
    factors: tuple[Tensor, ...]


def routed(edits: Sequence[Edit], site: Site, lengths: tuple[int, ...] | None) -> Routed | None:
    """Lay the edits along the tokens of a packed batch; None where that is not what they are."""
    if lengths is None:
        return None
    spans, factors = [], []
    for edit in edits:
        span = edit.rows.span(lengths)
        if span is None:
            return None
        found = edit.method.factors(edit.params, site)
        assert found is not None
        a_RI, b_OR = found
        spans.append(span)
        factors += [a_RI, b_OR if edit.weight == 1 else b_OR * edit.weight]
    return Routed(tuple(spans), tuple(factors))


class RoutedLinear(torch.autograd.Function):
    """`y = x Wᵀ + b`, and `y_g += (x_g A_gᵀ) B_gᵀ` on each span `g`, with `W` and `b` frozen."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool,
        spans: tuple[Span, ...], *factors: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return `(T, O)`; `transposed` marks GPT-2's `(I, O)` weights."""
        own = [factor.to(x_TI.dtype) for factor in factors]
        weight_IO = weight if transposed else weight.T
        y_TO = x_TI @ weight_IO if bias is None else torch.addmm(bias, x_TI, weight_IO)
        inner = []
        for (start, stop), a_RI, b_OR in zip(spans, own[::2], own[1::2], strict=True):
            h_TR = x_TI[start:stop] @ a_RI.T
            y_TO[start:stop].addmm_(h_TR, b_OR.T)
            inner.append(h_TR)
        ctx.save_for_backward(x_TI, weight, *own, *inner)
        ctx.transposed, ctx.spans = transposed, spans
        ctx.dtypes = [factor.dtype for factor in factors]
        return y_TO

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x` and of every factor."""
        x_TI, weight, *saved = ctx.saved_tensors
        own, inner = saved[: len(ctx.dtypes)], saved[len(ctx.dtypes) :]
        grad_TO = outputs[0]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_TO @ (weight.T if ctx.transposed else weight)
        grads: list[Tensor] = []
        for number, (start, stop) in enumerate(ctx.spans):
            a_RI, b_OR, h_TR = own[2 * number], own[2 * number + 1], inner[number]
            part_TO = grad_TO[start:stop]
            part_TR = part_TO @ b_OR
            if grad_x is not None:
                grad_x[start:stop].addmm_(part_TR, a_RI)
            grads += [part_TR.T @ x_TI[start:stop], part_TO.T @ h_TR]
        typed = [grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        return grad_x, None, None, None, None, *typed


def routed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Routed, *, transposed: bool = False
) -> Tensor:
    """Return the layer's output for a packed batch `(1, T, I)` or `(T, I)`."""
    flat = x.reshape(-1, x.shape[-1])
    y_TO: Tensor = RoutedLinear.apply(flat, weight, bias, transposed, plan.spans, *plan.factors)
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])

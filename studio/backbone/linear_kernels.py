"""Autograd node for a frozen linear layer with trained low-rank deltas: one adapter or several.

As separate operations, `W x + B A x` saves its input twice in low precision, passes three times
over an output-sized tensor to scale and add, and lets autograd add two input gradients. One node
keeps `x` and `A x`, accumulates inside the matrix products, and computes no gradient of `W`.

Adapter parameters stay float32; the products run in the input's precision, as under autocast.

Rows of sibling adapters follow each other in a packed batch, so each adapter's tokens are one span:
one product with `W` for all tokens, then each span's own `B A x` is added in place.

Shapes: `T tokens (all leading dimensions), I in_features, O out_features, R rank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.backbone.composition import Edit
    from studio.backbone.sites import Site

Span = tuple[int, int]


class LowRankLinear(torch.autograd.Function):
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
        """Return the gradients of `x` and of every factor."""
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


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor,
    spans: tuple[Span, ...] | None = None, transposed: bool = False,
) -> Tensor:  # fmt: skip
    """Return `x Wᵀ + b` plus `(x Aᵀ) Bᵀ` of each adapter, for any leading dimensions of `x`.

    Args:
        x: `(…, I)`.
        weight: The frozen `(O, I)` weight, or `(I, O)` when `transposed`.
        bias: The frozen bias or None.
        factors: `A₁ (R, I), B₁ (O, R), A₂, B₂, …`, with the scale in `B`.
        spans: Tokens of each adapter; by default all tokens for the only one.
        transposed: Whether the weight is GPT-2's Conv1D.
    """
    flat = x.reshape(-1, x.shape[-1])
    spans = spans or ((0, len(flat)),)
    y_TO: Tensor = LowRankLinear.apply(flat, weight, bias, transposed, spans, *factors)
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


def adapter_spans(
    edits: Sequence[Edit], site: Site, lengths: tuple[int, ...] | None
) -> tuple[tuple[Span, ...], list[Tensor]] | None:
    """Return each edit's span of tokens in a packed batch, and the factors of all edits.

    None if the batch is not packed or an adapter's rows do not follow each other.
    """
    if lengths is None:
        return None
    spans, factors = [], []
    for edit in edits:
        span = edit.rows.span(lengths)
        if span is None:
            return None
        spans.append(span)
        factors += edit.factors(site)
    return tuple(spans), factors

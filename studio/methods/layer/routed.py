"""A frozen linear layer with the trained low-rank deltas of several adapters, as one autograd node.

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

if TYPE_CHECKING:
    from studio.methods.layer.sites import Site
    from studio.methods.layer.stack import Edit

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

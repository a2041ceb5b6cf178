"""Short packed rows in bfloat16 on a CPU, attended as plain matrix products in one autograd node.

torch's fused kernel for the CPU works through bfloat16 in blocks, and its backward pass is slow on
rows of the usual length: 3.9 times the time of these products at a median of 60 tokens. Heads that
share keys and values are folded into one product, rows are padded to a multiple of 32 tokens so
that the products come in few shapes (oneDNN compiles one kernel a shape), and the weights of a row
are kept for the backward pass; longer rows, whose weights would take too much memory, keep the
fused kernel. `attention.attend` is the plain twin.

Shapes: `H heads, K heads of keys and values, G = H / K, T tokens, P = T padded, E head_dim`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LONGEST = 256
MULTIPLE = 32


def fits(query: Tensor, key: Tensor) -> bool:
    """Whether this is the case that gains: a short causal row in bfloat16 on a CPU."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape[2] == key.shape[2] <= LONGEST
    )


def attend_row(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """Causal attention of one row.

    Args:
        query: `(1, H, T, E)`.
        key: `(1, K, T, E)`.
        value: `(1, K, T, E)`.
        scaling: Of the products; `1 / √E` when None.

    Returns:
        `(1, H, T, E)`.
    """
    result: Tensor = ShortRow.apply(query, key, value, scaling or query.shape[-1] ** -0.5)
    return result


class ShortRow(torch.autograd.Function):
    """`softmax(s Q Kᵀ + causal) V`, with the weights kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Return `(1, H, T, E)`."""
        groups = key.shape[1]
        query_KGPE, key_KPE, value_KPE = (_folded(x, groups) for x in (query, key, value))
        logits = torch.bmm(query_KGPE, key_KPE.transpose(1, 2)).mul_(scaling)
        padded = key_KPE.shape[1]
        logits.view(groups, -1, padded, padded).masked_fill_(_later(padded), -torch.inf)
        weights = logits.softmax(-1)
        ctx.save_for_backward(query_KGPE, key_KPE, value_KPE, weights)
        ctx.scaling, ctx.tokens = scaling, query.shape[2]
        return _unfolded(torch.bmm(weights, value_KPE), padded, query.shape[2])

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query_KGPE, key_KPE, value_KPE, weights = ctx.saved_tensors
        outer = _folded(outputs[0], key_KPE.shape[0])
        of_weights = torch.bmm(outer, value_KPE.transpose(1, 2))
        of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_logits.mul_(ctx.scaling)
        gradients = (
            torch.bmm(of_logits, key_KPE),
            torch.bmm(of_logits.transpose(1, 2), query_KGPE),
            torch.bmm(weights.transpose(1, 2), outer),
        )
        return *(_unfolded(x, key_KPE.shape[1], ctx.tokens) for x in gradients), None


def _folded(x: Tensor, groups: int) -> Tensor:
    """`(1, H, T, E)` as `(K, G P, E)`, zeros behind the row."""
    _, heads, tokens, width = x.shape
    padded = -(-tokens // MULTIPLE) * MULTIPLE
    wide = x.new_zeros(heads, padded, width)
    wide[:, :tokens] = x[0]
    return wide.view(groups, -1, width)


def _unfolded(x: Tensor, padded: int, tokens: int) -> Tensor:
    return x.view(1, -1, padded, x.shape[-1])[:, :, :tokens]


@lru_cache(maxsize=LONGEST // MULTIPLE)
def _later(padded: int) -> Tensor:
    """`(P, P)`, True where a key comes after the query."""
    return torch.ones(padded, padded, dtype=torch.bool).triu_(1)

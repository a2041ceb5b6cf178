"""Attention kernels for packed rows: matrix products for short rows on a CPU, flash on a GPU.

*Short rows* in bfloat16 on a CPU are matrix products in one autograd node. torch's fused CPU kernel
works through bfloat16 in blocks, and its backward takes 3.9 times as long at a median of 60 tokens.
Heads that share keys and values are folded into one product, rows are padded to a multiple of 32
tokens so that the products have few shapes (oneDNN compiles a kernel per shape), and attention
weights are kept for the backward, so longer rows use the fused kernel.

*Variable length*: all rows in one call of torch's flash kernel, which needs a GPU and half
precision, and supports neither soft caps nor biases. It aligns a row's last query with its last
key, so virtual tokens that every query sees need no mask: they precede the row's keys, and count in
a sliding window as in `attention.attend_rows_in_turn`.

Shapes: `H heads, K kv_heads, G = H / K, T tokens, P = T padded (short rows) or virtual tokens
(varlen), S keys, R rows, E head_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.backbone.attention import AttentionShape, Prefix


LONGEST = 256
MULTIPLE = 32


def short_row_fits(query: Tensor, key: Tensor) -> bool:
    """Return True for a short causal row in bfloat16 on a CPU."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape[2] == key.shape[2] <= LONGEST
    )


def attend_row(query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
    """Return causal attention of one row.

    Args:
        query: `(1, H, T, E)`.
        key: `(1, K, T, E)`.
        value: `(1, K, T, E)`.
        scaling: Scale of the logits; `1 / √E` when None.

    Returns:
        `(1, H, T, E)`.
    """
    result: Tensor = ShortRow.apply(query, key, value, scaling or query.shape[-1] ** -0.5)
    return result


class ShortRow(torch.autograd.Function):
    """`softmax(s Q Kᵀ + causal) V`, with the weights kept for the backward."""

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
        """Return the gradients of query, key and value."""
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
    """Return `(1, H, T, E)` as `(K, G P, E)`, padded with zeros."""
    _, heads, tokens, width = x.shape
    padded = -(-tokens // MULTIPLE) * MULTIPLE
    wide = x.new_zeros(heads, padded, width)
    wide[:, :tokens] = x[0]
    return wide.view(groups, -1, width)


def _unfolded(x: Tensor, padded: int, tokens: int) -> Tensor:
    return x.view(1, -1, padded, x.shape[-1])[:, :, :tokens]


@lru_cache(maxsize=LONGEST // MULTIPLE)
def _later(padded: int) -> Tensor:
    """Return `(P, P)`, True where a key comes after the query."""
    return torch.ones(padded, padded, dtype=torch.bool).triu_(1)


Kernel = Callable[..., Tensor]
DTYPES = (torch.float16, torch.bfloat16)
LARGEST_HEAD, HEAD_STEP = 256, 8  # of FlashAttention-2, arXiv:2307.08691
OLDEST_GPU = (8, 0)
SINCE = {"window_size", "enable_gqa"}  # arguments that torch 2.11 brought


@dataclass(frozen=True, slots=True)
class Spans:
    """Boundaries of the rows of a packed batch, as the varlen kernel reads them."""

    lengths: tuple[int, ...]
    bounds: Tensor
    longest: int
    _wider: dict[int, Spans] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Spans:
        """Return the boundaries of concatenated rows; `bounds` is `(R + 1,)`, int32."""
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(lengths), bounds.to(device, non_blocking=True), max(lengths))

    def with_virtual(self, count: int) -> Spans:
        """Return the same rows, each longer by `count` virtual tokens."""
        if count not in self._wider:
            longer = [length + count for length in self.lengths]
            self._wider[count] = Spans.of(longer, self.bounds.device)
        return self._wider[count]


def kernel(device: torch.device) -> Kernel | None:
    """Return the varlen kernel if this torch and device have it, else None."""
    if device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(signature(varlen_attn).parameters) >= SINCE else None


def varlen_unavailable(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, capped: bool
) -> str:
    """Return why a model cannot use the varlen kernel; empty if it can."""
    if device.type != "cuda":
        return f"it runs on a GPU, and this run is on {device}"
    if kernel(device) is None:
        return "it needs torch 2.11 and a GPU of compute capability 8.0 (Ampere) or newer"
    if dtype not in DTYPES:
        return "it needs half precision: set model.dtype=bfloat16"
    if capped:
        return "this model caps its attention logits, which the kernel does not support"
    if not _head_fits(head_dim):
        return (
            f"the kernel takes heads of 8, 16, … {LARGEST_HEAD} numbers, and these have {head_dim}"
        )
    return ""


def varlen_fits(
    query: Tensor, key: Tensor, value: Tensor, shape: AttentionShape, prefix: Prefix | None
) -> bool:
    """Return True if the varlen kernel supports these `(1, H or K, T, E)`."""
    return (
        shape.softcap is None
        and shape.bias is None
        and shape.sinks is None
        and shape.causal
        and (prefix is None or prefix.whole)
        and query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] == value.shape[-1]
        and _head_fits(query.shape[-1])
    )


def attend_rows(
    run: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    *,
    prefix: Prefix | None,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend causally within each row: `(1, H, T, E)` over keys and values `(1, K, T, E)`.

    Args:
        run: `torch.nn.attention.varlen.varlen_attn` or a stand-in.
        query: Queries of all rows.
        key: Keys of all rows.
        value: Values of all rows.
        spans: Boundaries of the rows.
        prefix: Virtual tokens that every query sees.
        scaling: Scale of the logits; `E^-½` when None.
        window: Number of tokens that a query sees, itself included; all when None.
    """
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    all_keys = spans
    if prefix is not None:
        keys = _after(prefix.keys, keys, spans)
        values = _after(prefix.values, values, spans)
        all_keys = spans.with_virtual(prefix.keys.shape[2])
    narrow = window is not None and window < all_keys.longest
    output = run(
        queries, keys, values, spans.bounds, all_keys.bounds, spans.longest, all_keys.longest,
        scale=scaling, window_size=(window - 1 if window and narrow else -1, 0),
        enable_gqa=queries.shape[1] != keys.shape[1],
    )  # fmt: skip
    return output.transpose(0, 1)[None]


def _after(virtual: Tensor, own: Tensor, spans: Spans) -> Tensor:
    """Return `(S, K, E)`: each row's virtual tokens `(R or 1, K, P, E)`, then its own."""
    before = virtual.to(own.dtype).transpose(1, 2).expand(len(spans.lengths), -1, -1, -1)
    rows = zip(before, own.split(spans.lengths), strict=True)
    return torch.cat([part for row in rows for part in row])


def _head_fits(size: int) -> bool:
    return size % HEAD_STEP == 0 and size <= LARGEST_HEAD

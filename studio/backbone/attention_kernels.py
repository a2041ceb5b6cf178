"""Attention kernels for packed rows: matrix products in bfloat16 on a CPU, flash on a GPU.

*Products*: torch's fused CPU kernel works through bfloat16 in blocks, and its backward takes 3.9
times as long at a median of 60 tokens. Here all rows are one autograd node of plain products. It
keeps queries, keys and values alone and recomputes the weights, a block of queries at a time; heads
that share keys and values are folded into one product, and tokens are padded to a multiple of 32,
so that the products have few shapes (oneDNN compiles a kernel per shape).

*Variable length*: all rows in one call of torch's flash kernel, which needs a GPU and half
precision, and supports neither soft caps nor biases. It aligns a row's last query with its last
key, so virtual tokens that every query sees need no mask: they precede the row's keys, and count in
a sliding window as in `attention.attend_rows_in_turn`.

Shapes: `H heads, K kv_heads, G = H / K, T tokens, P = tokens padded (products) or virtual tokens
(varlen), S keys, R rows, E head_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.backbone.attention import AttentionShape, Prefix


MULTIPLE = 32
BLOCK_WEIGHTS = 500_000  # attention weights of a block of queries: 1 MB fits a second-level cache


class SharedPrompt(torch.autograd.Function):
    """Keys or values of packed rows, each row's after those of the beginning that it continues."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Sequence[int], shared: Sequence[int]) -> Tensor:
        """Return `(1, K, S, E)` of `(1, K, T, E)`; `shared` as in `attention.AttentionState`."""
        parts, start, leader = [], 0, 0
        for length, continued in zip(lengths, shared, strict=True):
            leader = leader if continued else start
            if continued:
                parts.append((leader, continued))
            parts.append((start, length))
            start += length
        ctx.parts, ctx.tokens = parts, start
        return torch.cat([x.narrow(2, start, length) for start, length in parts], dim=2)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        """Add the gradients of the same tokens."""
        gradient, seen = _like(outputs[0], ctx.tokens), 0
        pieces = outputs[0].split([length for _, length in ctx.parts], dim=2)
        for (start, length), piece in zip(ctx.parts, pieces, strict=True):
            into = gradient.narrow(2, start, length)
            _ = into.copy_(piece) if start == seen else into.add_(piece)
            seen = max(seen, start + length)
        return gradient, None, None


def products_fit(query: Tensor) -> bool:
    """Return True for packed rows in bfloat16 on a CPU."""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu"


def attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], key_lengths: Sequence[int],
    scaling: float | None = None,
) -> Tensor:  # fmt: skip
    """Return causal attention `(1, H, T, E)` in each row, whose last query sees its last key.

    Queries are `(1, H, T, E)`, keys and values `(1, K, S, E)`; the lengths of rows sum to T, those
    of their keys to S. `scaling` is `1 / √E` when None.
    """
    scaling = scaling or query.shape[-1] ** -0.5
    rows = tuple(zip(lengths, key_lengths, strict=True))
    result: Tensor = Products.apply(query, key, value, rows, scaling)
    return result


class Products(torch.autograd.Function):
    """`softmax(s Q Kᵀ + causal) V` of every row, with the weights recomputed in the backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Sequence[tuple[int, int]],
        scaling: float,
    ) -> Tensor:  # fmt: skip
        """Return `(1, H, T, E)`; `rows` are the numbers of queries and keys of each."""
        ctx.save_for_backward(query, key, value)
        ctx.rows, ctx.scaling = rows, scaling
        output = _like(query, query.shape[2])
        for own, blocks in _rows(rows, query, key):
            keys, values = _folded(key[:, :, own]), _folded(value[:, :, own])
            for tokens, first, seen in blocks:
                queries = _folded(query[:, :, tokens], len(keys)).mul_(scaling)
                weights = _weights(queries, keys[:, :seen], tokens, first)
                _unfold(torch.bmm(weights, values[:, :seen]), output[:, :, tokens])
        return output

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value = (_like(x, x.shape[2]) for x in (query, key, value))
        for own, blocks in _rows(ctx.rows, query, key):
            keys, values = _folded(key[:, :, own]), _folded(value[:, :, own])
            sums = [torch.zeros_like(keys, dtype=torch.float32) for _ in blocks[1:] and "KV"]
            for tokens, first, seen in blocks:
                queries, outer = (_folded(x[:, :, tokens], len(keys)) for x in (query, outputs[0]))
                weights = _weights(queries.mul_(ctx.scaling), keys[:, :seen], tokens, first)
                of_weights = torch.bmm(outer, values[:, :seen].transpose(1, 2))
                logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                of_queries = torch.bmm(logits, keys[:, :seen]).mul_(ctx.scaling)
                _unfold(of_queries, of_query[:, :, tokens])
                found = [
                    torch.bmm(logits.transpose(1, 2), queries),
                    torch.bmm(weights.transpose(1, 2), outer),
                ]
                for sum_KPE, part in zip(sums, found, strict=False):
                    sum_KPE[:, :seen] += part
            for sum_KPE, gradient in zip(sums or found, (of_key, of_value), strict=True):
                _unfold(sum_KPE, gradient[:, :, own])
        return of_query, of_key, of_value, None, None


def _like(x: Tensor, tokens: int) -> Tensor:
    """Return an empty `(1, H, T, E)` that lies as projections read it: tokens before heads."""
    return x.new_empty(1, tokens, x.shape[1], x.shape[3]).transpose(1, 2)


def _rows(
    rows: Sequence[tuple[int, int]], query: Tensor, key: Tensor
) -> Iterator[tuple[slice, list[tuple[slice, int, int]]]]:
    """Yield each row's keys and blocks of its queries.

    A block also has the key of its first query, and the number of keys that it may see.
    """
    start, key_start, folds = 0, 0, query.shape[1] // key.shape[1]
    for length, keys in rows:
        most = max(MULTIPLE, BLOCK_WEIGHTS // (folds * _padded(keys)) // MULTIPLE * MULTIPLE)
        blocks = []
        for first in range(0, length, most):
            stop, before = min(first + most, length), keys - length
            tokens = slice(start + first, start + stop)
            blocks.append((tokens, before + first, _padded(before + stop)))
        yield slice(key_start, key_start + keys), blocks
        start, key_start = start + length, key_start + keys


def _weights(queries: Tensor, keys: Tensor, tokens: slice, first: int) -> Tensor:
    """Return the weights `(K, G P, S)` of a block of scaled queries on the keys up to its end."""
    logits = torch.bmm(queries, keys.transpose(1, 2))
    padded, seen = _padded(tokens.stop - tokens.start), keys.shape[1]
    logits.view(len(keys), -1, padded, seen).masked_fill_(_later(padded, seen, first), -torch.inf)
    return logits.softmax(-1)


def _padded(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


def _folded(x: Tensor, groups: int = 0) -> Tensor:
    """Return `(1, H, T, E)` as `(K, G P, E)` of K groups, padded with zeros; by default K = H."""
    _, heads, tokens, width = x.shape
    wide = x.new_empty(heads, _padded(tokens), width)
    wide[:, :tokens] = x[0]
    wide[:, tokens:] = 0
    return wide.view(groups or heads, -1, width)


def _unfold(x: Tensor, into: Tensor) -> None:
    """Write `(K, G P, E)` to `(1, H, T, E)`."""
    _, heads, tokens, width = into.shape
    into.copy_(x.view(1, heads, -1, width)[:, :, :tokens])


@lru_cache(maxsize=64)
def _later(padded: int, seen: int, first: int) -> Tensor:
    """Return `(P, S)`, True where a key comes after the query; queries begin at `first`."""
    return torch.ones(padded, seen, dtype=torch.bool).triu_(first + 1)


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


def takes_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Return True if `scaled_dot_product_attention` has a fast kernel for grouped heads here.

    On a GPU only FlashAttention-2 has one; others would compute all logits at once, and not every
    version for Apple's and Intel's GPUs takes groups.
    """
    if query.device.type != "cuda":
        return query.device.type == "cpu"
    fast = mask is None and query.dtype in DTYPES and _head_fits(query.shape[-1])
    return fast and _is_new(query.device)


@cache
def _is_new(device: torch.device) -> bool:
    """Return True for a GPU with FlashAttention-2; asked once, not at each call."""
    return torch.cuda.get_device_capability(device) >= OLDEST_GPU


def kernel(device: torch.device) -> Kernel | None:
    """Return the varlen kernel if this torch and device have it, else None."""
    if device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return None
    if not _is_new(device):
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
        shape.is_plain
        and shape.causal
        and (prefix is None or prefix.whole)
        and query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] == value.shape[-1]
        and _head_fits(query.shape[-1])
    )


def attend_rows(
    run: Kernel, query: Tensor, key: Tensor, value: Tensor, spans: Spans, key_spans: Spans, *,
    prefix: Prefix | None, scaling: float | None, window: int | None,
) -> Tensor:  # fmt: skip
    """Attend causally within each row: `(1, H, T, E)` over keys and values `(1, K, T, E)`.

    Args:
        run: `torch.nn.attention.varlen.varlen_attn` or a stand-in.
        query: Those of all rows, as `key` and `value`.
        spans: Boundaries of the rows' queries; `key_spans` those of their keys.
        prefix: Virtual tokens that every query sees.
        scaling: Scale of the logits; `E^-½` when None.
        window: Number of tokens that a query sees, itself included; all when None.
    """
    queries, keys, values = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    if prefix is not None:
        keys = _after(prefix.keys, keys, key_spans)
        values = _after(prefix.values, values, key_spans)
        key_spans = key_spans.with_virtual(prefix.keys.shape[2])
    narrow = window is not None and window < key_spans.longest
    output = run(
        queries, keys, values, spans.bounds, key_spans.bounds, spans.longest, key_spans.longest,
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

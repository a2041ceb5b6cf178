"""The attention function for packed rows, prefixes, KV caches and left padding.

It is registered with transformers under the name "studio", so every architecture that uses
transformers' attention interface calls it. Beyond the stock functions it supports

- *packed rows*: rows concatenated without padding attend only within themselves, in one call where
  a GPU has the kernel for it (`attention_kernels.py`), else row by row;
- *prefixes*: trained keys and values before each layer's own, per row and outside the cache, so
  prefix tuning works with packing, checkpointing and other rows in the batch;
- *weighted prefixes*: a weight `w` adds `log w` to the prefix's attention logits: 1 is exact, 0
  removes it.

Shapes: `B batch, H heads, K kv_heads, T tokens, S keys, P prefix tokens, E head_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from studio.backbone import attention_kernels
from studio.errors import MethodError

NAME = "studio"
packing: ContextVar[bool] = ContextVar("packing", default=False)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values before a layer's own: `(B or 1, K, P, E)` and a bias `(B or 1, P)`.

    The bias is 0 for a visible position, `log w` for a weighted one, `-inf` for a hidden one; in a
    sliding-window layer it is `(B or 1, T, P)`, one per query. `whole` means 0 everywhere.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    whole: bool = False


@dataclass(slots=True)
class AttentionState:
    """State of the attention function beyond its arguments; one per backbone.

    Attributes:
        lengths: Tokens of each packed row; None for a padded batch.
        prefix: Returns a layer's virtual tokens.
        positions: `(B, T)`, counted from the first virtual token; kept while there are any.
        capture: Collects each layer's own keys and values.
        eager: Plain matrix products instead of torch's fused kernel.
        short_rows: Matrix products for short rows, where they are faster.
        kernel: The variable-length kernel, which attends all packed rows in one call.
        spans: Where the packed rows lie, for `kernel`.
        lean: Keep and compute no more than training needs (`checkpointing.py`).
        keep: Positions whose output is read, and `kept_lengths` their number per packed row; None
            for all positions.
        packed: Layers that have kept packed rows apart; `rows_are_separate`: all have.
    """

    lengths: tuple[int, ...] | None = None
    prefix: Callable[[int], Prefix | None] | None = None
    positions: Tensor | None = None
    capture: dict[int, tuple[Tensor, Tensor]] | None = None
    eager: bool = False
    short_rows: bool = False
    kernel: attention_kernels.Kernel | None = None
    spans: attention_kernels.Spans | None = None
    lean: bool = True
    keep: Tensor | None = None
    kept_lengths: tuple[int, ...] = ()
    packed: set[int] = field(default_factory=set)
    rows_are_separate: bool = False

    def pack(self, lengths: Sequence[int], device: torch.device) -> None:
        """Set the row lengths of the next packed batch."""
        self.lengths = tuple(lengths)
        self.spans = attention_kernels.Spans.of(lengths, device) if self.kernel else None


def studio_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend `query` `(B, H, T, E)` to `key` and `value` `(B, K, S, E)`.

    Returns:
        The output `(B, T, H, E)`, and None in place of the attention weights.
    """
    state: AttentionState | None = module.__dict__.get("studio_state")
    eager = state is not None and state.eager
    prefix = state.prefix(module.layer_idx) if state and state.prefix else None
    if state is not None and state.capture is not None:
        state.capture[module.layer_idx] = (key, value)
    if state is not None and state.lengths is not None:
        if attention_mask is None:  # a mask of the layer's own is lost in a packed batch
            state.packed.add(module.layer_idx)
        output = _attend_packed(state, query, key, value, prefix, sliding_window, scaling, softcap)
    else:
        if prefix is not None and sliding_window is not None and state is not None:
            prefix = _within(prefix, state.positions, sliding_window)
        if prefix is not None:
            key, value, attention_mask = _prepend(query, key, value, attention_mask, prefix)
        output = attend(
            query, key, value, attention_mask, scaling=scaling, softcap=softcap, eager=eager
        )
    return output.transpose(1, 2).contiguous(), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    eager: bool = False,
    quick: bool = False,
) -> Tensor:
    """Scaled dot-product attention with grouped heads; no mask means causal.

    `eager` uses plain matrix products, `quick` those of `attend_row` for short rows.

    Source: logit soft-capping as in Gemma 2, arXiv:2408.00118.
    """
    causal = mask is None and query.shape[2] > 1
    if quick and softcap is None and mask is None and attention_kernels.short_row_fits(query, key):
        return attention_kernels.attend_row(query, key, value, scaling)
    if softcap is None and not eager:
        grouped = query.shape[1] != key.shape[1]
        if causal and query.shape[2] != key.shape[2]:
            mask, causal = causal_mask(query.shape[2], key.shape[2], query.device), False
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if causal:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    if mask is not None:
        hidden = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~mask, hidden) if mask.dtype == torch.bool else logits + mask
    return logits.float().softmax(-1).to(value.dtype) @ value


def causal_mask(
    num_queries: int, num_keys: int, device: torch.device, window: int | None = None
) -> Tensor:
    """Return `(T, S)`, True where query `t` sees key `s`; the last query sees the last key."""
    t = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    s = torch.arange(num_keys, device=device)[None]
    visible = s <= t
    return visible & (s > t - window) if window else visible


def _within(prefix: Prefix, positions: Tensor | None, window: int) -> Prefix:
    """Hide the virtual tokens outside a query's sliding window."""
    assert positions is not None
    places = torch.arange(prefix.bias.shape[1], device=positions.device)
    gone = places <= (positions - window)[..., None]
    return Prefix(prefix.keys, prefix.values, prefix.bias[:, None].masked_fill(gone, -torch.inf))


def _prepend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefix: Prefix
) -> tuple[Tensor, Tensor, Tensor]:
    """Prepend the prefix to keys and values, and its bias to the mask."""
    rows, _, num_queries, _ = query.shape
    if mask is None:
        mask = causal_mask(num_queries, key.shape[2], query.device)[None, None]
    if mask.dtype == torch.bool:
        mask = _additive(mask, query.dtype)
    bias = prefix.bias.to(query.dtype).clamp(min=torch.finfo(query.dtype).min)
    bias = bias[:, None] if bias.dim() == 3 else bias[:, None, None]
    wide = bias.expand(rows, 1, num_queries, -1)
    mask = torch.cat([wide, mask.expand(rows, 1, -1, -1)], dim=3)
    keys = prefix.keys.to(key.dtype).expand(rows, -1, -1, -1)
    values = prefix.values.to(value.dtype).expand(rows, -1, -1, -1)
    return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2), mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(dtype).min
    )


def _attend_packed(
    state: AttentionState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Prefix | None,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Attend within each row of a packed batch `(1, H, ΣT, E)`, in one call where possible."""
    assert state.lengths is not None
    if (
        state.kernel
        and state.spans
        and attention_kernels.varlen_fits(query, key, value, softcap, prefix)
    ):
        return attention_kernels.attend_rows(
            state.kernel, query, key, value, state.spans,
            prefix=prefix, scaling=scaling, window=window,
        )  # fmt: skip
    if prefix is not None and window is not None:
        prefix = _within(prefix, state.positions, window)
    how = {"scaling": scaling, "softcap": softcap, "eager": state.eager, "quick": state.short_rows}
    return attend_rows_in_turn(query, key, value, state.lengths, prefix, window, how)


def attend_rows_in_turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    prefix: Prefix | None,
    window: int | None,
    how: dict[str, Any],
) -> Tensor:
    """Attend within each row of a packed batch `(1, H, ΣT, E)`, row by row."""
    outputs = []
    rows = zip(
        query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2),
        strict=True,
    )  # fmt: skip
    start = 0
    for row, (q, k, v) in enumerate(rows):
        mask = None
        if window and q.shape[2] > window:
            mask = causal_mask(q.shape[2], k.shape[2], q.device, window)[None, None]
        if prefix is not None:
            at = row if prefix.keys.shape[0] > 1 else 0
            bias = prefix.bias[at : at + 1]
            if bias.dim() == 3:
                everywhere = prefix.bias[at if prefix.bias.shape[0] > 1 else 0]
                bias = everywhere[None, start : start + q.shape[2]]
            own = Prefix(prefix.keys[at : at + 1], prefix.values[at : at + 1], bias)
            k, v, mask = _prepend(q, k, v, mask, own)
        outputs.append(attend(q, k, v, mask, **how))
        start += q.shape[2]
    return torch.cat(outputs, dim=2)


def check_rows_separate(state: AttentionState, layers: Sequence[nn.Module]) -> None:
    """Check after a packed pass that only this attention mixes the tokens of a layer.

    Raises:
        MethodError: Packed rows would leak into each other.
    """
    if state.rows_are_separate:
        return
    others = any(isinstance(part, nn.Conv1d) for layer in layers for part in layer.modules())
    if others or len(state.packed) < len(layers):
        raise MethodError(
            "This model has layers with linear attention, convolutions or a mask of their own, "
            "where packed rows would leak into each other: set train.packing=false."
        )
    state.rows_are_separate = True


def studio_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return transformers' SDPA mask, or None for a packed batch, which needs no `T × T` mask."""
    return None if packing.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, studio_attention)
AttentionMaskInterface.register(NAME, studio_mask)

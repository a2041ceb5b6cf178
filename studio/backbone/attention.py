"""The attention function for packed rows, prefixes, KV caches and left padding.

It is registered with transformers under the name "studio", so every architecture that uses
transformers' attention interface calls it. Beyond the stock functions it supports

- *packed rows*: rows concatenated without padding attend only within themselves, in one call where
  a GPU has the kernel for it (`attention_kernels.py`), else row by row;
- *shared prompts*: a packed row may continue the first tokens of another one, as both answers of a
  pair continue their prompt; these tokens are in the batch once;
- *prefixes*: trained keys and values before each layer's own, per row and outside the cache, so
  prefix tuning works with packing, checkpointing and other rows in the batch;
- *weighted prefixes*: a weight `w` adds `log w` to the prefix's attention logits: 1 is exact, 0
  removes it.

Of the keyword arguments that architectures pass, it computes sinks, position biases, soft caps,
sliding windows and choices of keys, ignores those without effect on the result (`IGNORED`), and
refuses any other that is not None.

Shapes: `B batch, H heads, K kv_heads, T tokens, S keys, P prefix tokens, E head_dim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from operator import add
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
masking: ContextVar[Callable[[int | None], Tensor] | None] = ContextVar("masking", default=None)
"""Returns the mask of a layer with this sliding window, where the cache has a fixed size."""

IGNORED = frozenset({
    "attention_mask", "cache", "cache_position", "dropout", "head_mask", "hidden_states",
    "layer_past", "logits_to_keep", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "past_key_value", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "token_type_ids", "training",
    "use_cache", "input_ids",
})  # fmt: skip
"""Keyword arguments of other functions that architectures pass on: they change no attention."""


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


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Differences of a layer's attention from the plain causal one.

    Attributes:
        scaling: Scale of the logits; `E^-½` when None.
        softcap: Bound of the logits, as in Gemma 2.
        window: Tokens that a query sees, itself included; all when None.
        bias: Added to the logits, `(B or 1, H or 1, T, S)`.
        sinks: One more logit per query without a value, `(B or 1, H, T or 1, 1)`.
        causal: False where a query also sees later keys.
    """

    scaling: float | None = None
    softcap: float | None = None
    window: int | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    causal: bool = True

    @property
    def is_plain(self) -> bool:
        """True if nothing changes the logits."""
        return self.softcap is None and self.bias is None and self.sinks is None

    def rows(self, start: int, stop: int) -> AttentionShape:
        """Return the part of a packed batch between two positions."""
        bias, sinks = self.bias, self.sinks
        if bias is not None:
            bias = bias[..., start:stop, start:stop]
        if sinks is not None and sinks.shape[2] > 1:
            sinks = sinks[:, :, start:stop]
        return replace(self, bias=bias, sinks=sinks)


@dataclass(slots=True)
class AttentionState:
    """State of the attention function beyond its arguments; one per backbone.

    Attributes:
        lengths: Tokens of each packed row; None for a padded batch.
        shared: Tokens that each packed row continues, the first ones of the last row before it that
            continues none; empty if no row does.
        batch: Rows and tokens per row of a padded batch.
        prefix: Returns a layer's virtual tokens.
        positions: `(B, T)`, counted from the first virtual token; kept while there are any.
        row_ends: The last position of each row of a padded batch, for rotary factors.
        capture: Collects each layer's own keys and values.
        calls: Collects the module, keys and values of every call (`forward_recording.py`).
        eager: Plain matrix products instead of torch's fused kernel.
        products: Matrix products in bfloat16 on a CPU, where they are faster.
        kernel: The variable-length kernel, which attends all packed rows in one call.
        spans: Where the queries of packed rows lie, and `key_spans` their keys, for `kernel`.
        lean: Keep and compute no more than training needs (`activation_memory.py`).
        keep: Positions whose output is read, and `kept_lengths` their number per packed row; None
            for all positions.
    """

    lengths: tuple[int, ...] | None = None
    shared: tuple[int, ...] = ()
    batch: tuple[int, int] = (0, 0)
    prefix: Callable[[int], Prefix | None] | None = None
    positions: Tensor | None = None
    row_ends: list[int] | None = None
    capture: dict[int, tuple[Tensor, Tensor]] | None = None
    calls: list[tuple[nn.Module, Tensor, Tensor]] | None = None
    eager: bool = False
    products: bool = False
    kernel: attention_kernels.Kernel | None = None
    spans: attention_kernels.Spans | None = None
    key_spans: attention_kernels.Spans | None = None
    lean: bool = True
    keep: Tensor | None = None
    kept_lengths: tuple[int, ...] = ()

    def token_rows(self, num_tokens: int) -> tuple[int, ...] | None:
        """Return the tokens of each row in a flat `(tokens, features)` tensor.

        None if the tensor does not hold every token of the batch.
        """
        rows = self.lengths or (self.batch[1],) * self.batch[0]
        return rows if sum(rows) == num_tokens else None

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """Tokens that the last query of each packed row sees."""
        assert self.lengths is not None
        return tuple(map(add, self.lengths, self.shared)) if self.shared else self.lengths

    def pack(
        self, lengths: Sequence[int], device: torch.device, shared: Sequence[int] = ()
    ) -> None:
        """Set the rows of the next packed batch."""
        self.lengths, self.shared = tuple(lengths), tuple(shared) if any(shared) else ()
        if self.kernel:
            self.spans = self.key_spans = attention_kernels.Spans.of(lengths, device)
            if self.shared:
                self.key_spans = attention_kernels.Spans.of(self.key_lengths, device)


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

    Raises:
        MethodError: The architecture passes an argument that is not known here.
    """
    shape = _shape(module, query, key, kwargs, AttentionShape(scaling, softcap, sliding_window))
    state: AttentionState | None = module.__dict__.get("studio_state")
    eager = state is not None and state.eager
    layer = module.__dict__.get("studio_layer", getattr(module, "layer_idx", 0))
    prefix = state.prefix(layer) if state and state.prefix else None
    if state is not None and state.capture is not None:
        state.capture[layer] = (key, value)
    if state is not None and state.calls is not None:
        state.calls.append((module, key, value))
    if state is not None and state.lengths is not None:
        if attention_mask is not None and attention_mask.numel() == 0:
            shape = replace(shape, window=getattr(attention_mask, "studio_window", shape.window))
            module.__dict__["studio_window"] = shape.window
            attention_mask = None
        output = _attend_packed(state, query, key, value, attention_mask, prefix, shape)
    else:
        window = shape.window
        if attention_mask is None and window and key.shape[2] > window and shape.causal:
            attention_mask = causal_mask(query.shape[2], key.shape[2], query.device, window)
            attention_mask = attention_mask[None, None]
        # Not every architecture passes its window: the recorded packed pass has shown it.
        window = window or module.__dict__.get("studio_window")
        if prefix is not None and window is not None and state is not None:
            prefix = _within(prefix, state.positions, window)
        if prefix is not None:
            key, value, attention_mask = _prepend(query, key, value, attention_mask, prefix)
        output = attend(query, key, value, attention_mask, shape, eager=eager)
    return output.transpose(1, 2).contiguous(), None


def _shape(
    module: nn.Module, query: Tensor, key: Tensor, given: dict[str, Any], shape: AttentionShape
) -> AttentionShape:
    """Return the shape of a layer's attention with its further keyword arguments.

    Source: sinks as in gpt-oss, arXiv:2508.10925; chosen keys as in DeepSeek-V3.2.
    """
    known = {name: given.pop(name, None) for name in ("s_aux", "sinks", "position_bias", "indices")}
    causal = given.pop("is_causal", None)
    unknown = [name for name, value in given.items() if name not in IGNORED and value is not None]
    unknown = [name for name in unknown if not name.startswith(("cu_seq", "max_length", "seq_idx"))]
    if unknown:
        raise MethodError(
            f"{type(module).__name__} passes {unknown[0]} to its attention, which is not known "
            "here and would change the result: this architecture is not supported."
        )
    bias, sinks = known["position_bias"], known["sinks"]
    if known["s_aux"] is not None:
        sinks = known["s_aux"].reshape(1, -1, 1, 1)
    if known["indices"] is not None:
        rows, queries, _ = known["indices"].shape
        chosen = torch.zeros(rows, queries, key.shape[2], dtype=torch.bool, device=query.device)
        chosen = chosen.scatter(-1, known["indices"].long(), True)[:, None]
        bias = _additive(chosen, query.dtype) + (0 if bias is None else bias)
    if causal is None:  # in the text tower, no mask means causal whatever the module says
        causal = "studio_state" in module.__dict__ or getattr(module, "is_causal", True)
    return replace(shape, bias=bias, sinks=sinks, causal=bool(causal))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    shape: AttentionShape,
    *,
    eager: bool = False,
) -> Tensor:
    """Scaled dot-product attention with grouped heads; no mask means causal.

    `eager` uses plain matrix products. Virtual tokens before the keys are not part of a bias.

    Source: logit soft-capping as in Gemma 2, arXiv:2408.00118.
    """
    causal = mask is None and query.shape[2] > 1 and shape.causal
    if not shape.is_plain and causal:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)[None, None]
        causal = False
    if shape.bias is not None:
        mask = _biased(mask, shape.bias, query, key)
    if shape.sinks is not None:
        key, value, mask = _with_sinks(query, key, value, mask, shape.sinks)
    if shape.softcap is None and not eager:
        grouped = query.shape[1] != key.shape[1]
        if grouped and not attention_kernels.takes_groups(query, mask):
            heads = query.shape[1] // key.shape[1]
            if query.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
                # One token: the heads of a group are queries of the same keys.
                queries = query.reshape(*key.shape[:2], heads, query.shape[-1])
                output = scaled_dot_product_attention(
                    queries, key, value, attn_mask=mask, scale=shape.scaling
                )
                return output.reshape(*query.shape[:3], value.shape[-1])
            key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
            grouped = False
        if causal and query.shape[2] != key.shape[2]:
            mask, causal = causal_mask(query.shape[2], key.shape[2], query.device), False
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=shape.scaling,
            enable_gqa=grouped,
        )  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(2, 3) * (shape.scaling or query.shape[-1] ** -0.5)
    if shape.softcap is not None:
        logits = torch.tanh(logits / shape.softcap) * shape.softcap
    if causal:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    if mask is not None:
        hidden = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~mask, hidden) if mask.dtype == torch.bool else logits + mask
    return logits.float().softmax(-1).to(value.dtype) @ value


def _biased(mask: Tensor | None, bias: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return the mask with a bias added; keys before the bias's own have none."""
    virtual = key.shape[2] - bias.shape[-1]
    bias = torch.nn.functional.pad(bias.to(query.dtype), (virtual, 0))
    if mask is None:
        return bias
    smallest = torch.finfo(query.dtype).min
    if mask.dtype == torch.bool:
        return bias.expand(*bias.shape[:2], *mask.shape[-2:]).masked_fill(~mask, smallest)
    return (bias + mask).clamp_min(smallest)


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and mask with one zero key and value whose logit is the sink's."""
    rows, heads, num_queries, _ = query.shape
    if mask is None:
        mask = query.new_zeros(1, 1, num_queries, key.shape[2])
    if mask.dtype == torch.bool:
        mask = _additive(mask, query.dtype)
    sinks = sinks.to(query.dtype).expand(rows, heads, num_queries, 1)
    mask = torch.cat([mask.expand(rows, heads, num_queries, -1), sinks], dim=3)
    pad = torch.nn.functional.pad
    return pad(key, (0, 0, 0, 1)), pad(value, (0, 0, 0, 1)), mask


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
    wide = bias.expand(rows, mask.shape[1], num_queries, -1)
    mask = torch.cat([wide, mask.expand(rows, -1, -1, -1)], dim=3)
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
    mask: Tensor | None,
    prefix: Prefix | None,
    shape: AttentionShape,
) -> Tensor:
    """Attend within each row of a packed batch `(1, H, ΣT, E)`, in one call where possible.

    Raises:
        MethodError: A row continues another one under a mask or bias that is laid out without it.
    """
    assert state.lengths is not None
    if state.shared:
        if mask is not None or shape.bias is not None or not shape.causal:
            raise MethodError("Rows cannot share their beginning under this model's own mask.")
        key, value = (
            attention_kernels.SharedPrompt.apply(x, state.lengths, state.shared)
            for x in (key, value)
        )
    lengths, key_lengths = state.lengths, state.key_lengths
    if (
        state.kernel
        and state.spans
        and mask is None
        and attention_kernels.varlen_fits(query, key, value, shape, prefix)
    ):
        return attention_kernels.attend_rows(
            state.kernel, query, key, value, state.spans, state.key_spans or state.spans,
            prefix=prefix, scaling=shape.scaling, window=shape.window,
        )  # fmt: skip
    if (
        state.products
        and mask is None
        and prefix is None
        and shape.is_plain
        and max(key_lengths) <= (shape.window or math.inf)
        and attention_kernels.products_fit(query)
    ):
        return attention_kernels.attend_by_products(
            query, key, value, lengths, key_lengths, shape.scaling
        )
    if prefix is not None and shape.window is not None:
        prefix = _within(prefix, state.positions, shape.window)
    given = (query, key, value, lengths, key_lengths, mask, prefix, shape)
    return attend_rows_in_turn(*given, eager=state.eager)


def attend_rows_in_turn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    key_lengths: tuple[int, ...],
    mask: Tensor | None,
    prefix: Prefix | None,
    shape: AttentionShape,
    *,
    eager: bool = False,
) -> Tensor:
    """Attend within each row of a packed batch `(1, H, ΣT, E)`, row by row.

    A mask of the layer's own is `(1, H or 1, ΣT, ΣT)`; a row reads its own part of it.
    """
    outputs = []
    rows = zip(
        query.split(lengths, dim=2), key.split(key_lengths, dim=2),
        value.split(key_lengths, dim=2), strict=True,
    )  # fmt: skip
    start = 0
    for row, (q, k, v) in enumerate(rows):
        stop = start + q.shape[2]
        seen = None if mask is None else mask[..., start:stop, start:stop]
        window = shape.window
        if seen is None and window and k.shape[2] > window:
            seen = causal_mask(q.shape[2], k.shape[2], q.device, window)[None, None]
        if prefix is not None:
            at = row if prefix.keys.shape[0] > 1 else 0
            bias = prefix.bias[at : at + 1]
            if bias.dim() == 3:
                everywhere = prefix.bias[at if prefix.bias.shape[0] > 1 else 0]
                bias = everywhere[None, start:stop]
            own = Prefix(prefix.keys[at : at + 1], prefix.values[at : at + 1], bias)
            k, v, seen = _prepend(q, k, v, seen, own)
        plain = shape.bias is None and shape.sinks is None
        own_shape = shape if plain else shape.rows(start, stop)
        outputs.append(attend(q, k, v, seen, own_shape, eager=eager))
        start = stop
    return torch.cat(outputs, dim=2)


def studio_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return transformers' SDPA mask, or None for a packed batch, which needs no `T × T` mask.

    Masks of another pattern than causal or sliding are always made; transformers keeps packed rows
    apart in them by their positions.

    Raises:
        NotImplementedError: The cache has a fixed size, and the pattern is neither.
    """
    if (own := masking.get()) is not None:
        chunk = getattr(kwargs.get("config"), "attention_chunk_size", None)
        if chunk or kwargs.get("use_vmap") or kwargs.get("allow_is_bidirectional_skip"):
            raise NotImplementedError("a mask of another pattern than causal or sliding")
        return own(kwargs.get("local_size"))
    if not packing.get() or kwargs.get("use_vmap"):
        padding = kwargs.get("attention_mask")
        if padding is not None and padding.device.type != "cpu" and not torch.is_grad_enabled():
            kwargs["allow_is_causal_skip"] = False  # whether nothing is padded is read on the host
        return sdpa_mask(*args, **kwargs)
    chunk = getattr(kwargs.get("config"), "attention_chunk_size", None)
    window = kwargs.get("local_size")
    if chunk is not None and window == chunk:
        return sdpa_mask(*args, **kwargs) if chunk < kwargs["kv_length"] else None
    if window is None:
        return None
    # Not every architecture passes its window to the attention function: the mask carries it.
    mark = torch.empty(1, 1, 0, 0, dtype=torch.bool)
    mark.studio_window = window
    return mark


AttentionInterface.register(NAME, studio_attention)
AttentionMaskInterface.register(NAME, studio_mask)

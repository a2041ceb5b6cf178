"""Virtual tokens: prefixes and prompts before every row, as keys and values or as embeddings.

A prefix is keys and values. A prompt is embeddings; attention is causal, so its keys and values do
not depend on what follows: it runs through the model once per batch, with gradients while it
trains, and then acts as a prefix. So both work with packing, checkpointing, padding and per row.

A stack's virtual tokens stand in stack order, and a prompt attends to those before it. Positions of
the row itself start after them, as in PEFT.

Layers may differ: each call of the attention function with keys of its own has a part; layers that
share another's keys see its virtual tokens (`Anatomy.key_shapes`).

In hybrids a prompt's effect on a convolution or state space is no key or value, so there its
embeddings pass through the model in front of each row, and their logits are dropped. The model is
given token ids, 0 for a virtual token, and the embeddings there are replaced: some models (Gemma 4,
Qwen4) read the ids a second time, for tables of later layers.

Shapes: `K kv_heads, P virtual tokens, E head_dim, B rows, T tokens, D hidden`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studio.backbone.attention import AttentionState, Prefix, packing
from studio.backbone.composition import Adapter, Stack
from studio.backbone.sites import Anatomy
from studio.errors import MethodError
from studio.methods.method import Phase

VIRTUAL = (Phase.KEYS_VALUES, Phase.PROMPT)
CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")


@dataclass(frozen=True, slots=True)
class VirtualKeysValues:
    """Keys and values `(K, P, E)` per layer and log-weights `(P,)` of a stack's virtual tokens.

    `whole` means that every log-weight is 0, without a device synchronisation.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor
    whole: bool = True

    @property
    def length(self) -> int:
        """Number of virtual tokens."""
        return self.bias.shape[0]

    def layer(self, index: int) -> Prefix:
        """Return a layer's keys and values as a batch of one."""
        keys, values = self.keys_values[index]
        return Prefix(keys[None], values[None], self.bias[None], self.whole)


class VirtualTokens:
    """Prepends the virtual tokens of the active stacks in every forward pass."""

    def __init__(
        self,
        anatomy: Anatomy,
        state: AttentionState,
        prompt_context: Callable[[Stack], AbstractContextManager[None]],
    ) -> None:
        self._anatomy = anatomy
        self._state = state
        self._prompt_context = prompt_context
        self._stacks: Sequence[Stack] = [()]
        self._adapters: dict[str, Adapter] = {}
        self._placed: tuple[VirtualKeysValues | None, Tensor] | None = None
        self.dropped = 0
        self.replaced: Replaced | None = None
        anatomy.model.get_input_embeddings().register_forward_hook(self._replace)

    def _replace(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if self.replaced is None else self.replaced.apply(module, args, output)

    def use(self, stacks: Sequence[Stack], adapters: dict[str, Adapter]) -> None:
        """Set the active stacks: one for all rows, or one per row."""
        self._stacks, self._adapters, self._placed = stacks, adapters, None

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Set the attention's prefix for this forward; return kwargs with shifted positions."""
        self.dropped = 0
        if self._state.lengths is None:
            self.replaced = None
            if prompts := self.prompts():
                self.replaced, kwargs, self.dropped = insert(prompts, args, kwargs)
        rows, offsets = self._current()
        if rows is None:
            self._state.prefix = None
            return kwargs
        keys_values, bias = rows.keys_values, rows.bias
        self._state.prefix = lambda layer: Prefix(*keys_values[layer], bias, rows.whole)
        lengths = self._state.lengths
        if lengths is not None and len(offsets) > 1:
            offsets = offsets.repeat_interleave(torch.tensor(lengths, device=bias.device))[None]
        else:
            offsets = offsets[:, None]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = _default_positions(args, kwargs)
        self._state.positions = positions + offsets
        return {**kwargs, "position_ids": self._state.positions}

    def prompts(self) -> list[Tensor]:
        """Return the prompts that stand before rows as tokens, one for all rows or per row."""
        if not self._anatomy.carries_state:
            return []
        own = [
            [
                self._adapters[name].method.virtual_tokens(self._adapters[name].params[""])
                for name, _ in stack
                if self._adapters[name].method.phase is Phase.PROMPT
            ]
            for stack in self._stacks
        ]
        if not any(own):
            return []
        filled = next(parts[0] for parts in own if parts)
        return [torch.cat(parts) if parts else filled[:0] for parts in own]

    def _current(self) -> tuple[VirtualKeysValues | None, Tensor]:
        """Return the rows' virtual tokens and their numbers.

        They are cached until stacks change, unless gradients are on.
        """
        if self._placed is not None and not torch.is_grad_enabled():
            return self._placed
        known = {stack: self._build(stack) for stack in dict.fromkeys(self._stacks)}
        banks = [known[stack] for stack in self._stacks]
        counts = torch.tensor([bank.length for bank in banks])
        rows = stack_rows(banks)
        placed = rows, counts if rows is None else counts.to(rows.bias.device)
        self._placed = None if torch.is_grad_enabled() else placed
        return placed

    def _build(self, stack: Stack) -> VirtualKeysValues:
        """Return a stack's virtual tokens as keys and values, in stack order."""
        device = next(self._anatomy.model.parameters()).device
        bank = VirtualKeysValues((), torch.zeros(0, device=device))
        for name, weight in stack:
            adapter = self._adapters[name]
            if adapter.method.phase not in VIRTUAL:
                continue
            if adapter.method.phase is Phase.PROMPT and self._anatomy.carries_state:
                continue  # stands before the rows as tokens
            self._number_layers()
            tokens = adapter.method.virtual_tokens(adapter.params[""])
            if adapter.method.phase is Phase.PROMPT:
                ids_P = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
                marks = torch.ones_like(ids_P, dtype=torch.bool)[None]
                self.replaced = Replaced(marks, tokens)
                own = self._run(ids_P, bank, stack)
            else:
                own = split_layers(tokens, self._anatomy)
            weights = torch.full((tokens.shape[0],), math.log(weight), device=device)
            bank = VirtualKeysValues(
                _joined(bank.keys_values, own),
                torch.cat([bank.bias, weights]),
                bank.whole and weight == 1,
            )
        return bank

    def _number_layers(self) -> None:
        """Give every attention module the number of the keys that it reads."""
        calls = self._anatomy.recording.keys
        own = [number for number, keys in enumerate(calls) if keys.source == number]
        assert len(own) == len(self._anatomy.key_shapes)
        for keys in calls:
            module = self._anatomy.modules[keys.module]
            module.__dict__["studio_layer"] = own.index(keys.source)

    def keys_values_of(self, ids_P: Tensor) -> Tensor:
        """Return the bare base's keys and values of a text, as a prefix table `(P, ·)`."""
        self._number_layers()
        device = next(self._anatomy.model.parameters()).device
        nothing = VirtualKeysValues((), torch.zeros(0, device=device))
        with torch.no_grad():
            layers = self._run(ids_P.to(device), nothing, ())
        parts = [part.transpose(0, 1).flatten(1) for layer in layers for part in layer]
        return torch.cat(parts, dim=1).float().cpu()

    def _run(
        self, ids_P: Tensor, before: VirtualKeysValues, stack: Stack
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Run a text under a stack and return its keys and values `(K, P, E)`."""
        state, lengths = self._state, self._state.lengths
        positions = torch.arange(len(ids_P), device=ids_P.device) + before.length
        state.lengths, state.positions, state.capture = None, positions[None], {}
        state.prefix = before.layer if before.length else None
        packed = packing.set(False)
        try:
            with self._prompt_context(stack):
                self._anatomy.tower(
                    input_ids=ids_P[None], position_ids=positions[None], use_cache=False
                )
            captured = state.capture
        finally:
            packing.reset(packed)
            state.lengths, state.capture, state.prefix, self.replaced = lengths, None, None, None
        return tuple((captured[layer][0][0], captured[layer][1][0]) for layer in sorted(captured))


def split_layers(tokens: Tensor, anatomy: Anatomy) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return rows of a prefix table `(P, ·)` as keys and values `(K, P, E)` of each layer."""
    sizes = [
        keys.heads * size for keys in anatomy.key_shapes
        for size in (keys.key_size, keys.value_size)
    ]  # fmt: skip
    parts = tokens.split(sizes, dim=1)
    layers = zip(anatomy.key_shapes, parts[::2], parts[1::2], strict=True)
    return tuple(
        (
            key.unflatten(1, (shape.heads, shape.key_size)).transpose(0, 1),
            value.unflatten(1, (shape.heads, shape.value_size)).transpose(0, 1),
        )
        for shape, key, value in layers
    )


def _joined(
    before: tuple[tuple[Tensor, Tensor], ...], own: tuple[tuple[Tensor, Tensor], ...]
) -> tuple[tuple[Tensor, Tensor], ...]:
    if not before:
        return own
    return tuple(
        (torch.cat([k.to(key.dtype), key], dim=1), torch.cat([v.to(value.dtype), value], dim=1))
        for (k, v), (key, value) in zip(before, own, strict=True)
    )


def stack_rows(banks: Sequence[VirtualKeysValues]) -> VirtualKeysValues | None:
    """Return rows' virtual tokens padded to `(B, K, P, E)` per layer and bias `(B, P)`.

    None if no row has virtual tokens.
    """
    longest = max(bank.length for bank in banks)
    if longest == 0:
        return None
    pad = torch.nn.functional.pad
    filled = next(bank for bank in banks if bank.length)

    def rows_of(layer: int, part: int) -> Tensor:
        like = filled.keys_values[layer][part]
        empty = like[:, :0]
        own = [bank.keys_values[layer][part] if bank.length else empty for bank in banks]
        return torch.stack([pad(x.to(like.dtype), (0, 0, 0, longest - x.shape[1])) for x in own])

    keys_values = tuple(
        (rows_of(layer, 0), rows_of(layer, 1)) for layer in range(len(filled.keys_values))
    )
    bias = torch.stack([pad(b.bias, (0, longest - b.length), value=-math.inf) for b in banks])
    return VirtualKeysValues(keys_values, bias, all(b.whole and b.length == longest for b in banks))


def _default_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return positions as transformers counts them: from the length of the cache."""
    ids = args[0] if args else kwargs.get("input_ids")
    source = kwargs["inputs_embeds"] if ids is None else ids
    cache = kwargs.get("cache") or kwargs.get("past_key_values")  # its name before 5.2x
    start = cache.get_seq_length() if cache is not None else 0
    return torch.arange(start, start + source.shape[1], device=source.device)[None]


@dataclass(frozen=True, slots=True)
class Replaced:
    """Embeddings `(ΣP, D)` in place of those of the marked tokens `(B, T)`, in order."""

    marks_BT: Tensor
    prompts_PD: Tensor

    def apply(self, module: nn.Module, args: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor:
        """Return the embeddings with the prompts; a hook of the input embeddings."""
        if embedded_BTD.shape[:2] != self.marks_BT.shape:
            return embedded_BTD
        return embedded_BTD.masked_scatter(
            self.marks_BT[..., None], self.prompts_PD.to(embedded_BTD)
        )


def insert_packed(
    prompts: Sequence[Tensor], ids_T: Tensor, lengths: Sequence[int], keep_N: Tensor
) -> tuple[Replaced, Tensor, list[int], Tensor]:
    """Return the prompts, ids `(T',)`, row lengths and kept positions with prompts before rows.

    There is a prompt `(P, D)` for each row, or one for all.
    """
    each = list(prompts) if len(prompts) > 1 else list(prompts) * len(lengths)
    longer = [len(prompt) + length for prompt, length in zip(each, lengths, strict=True)]
    counts = [n for pair in zip(map(len, each), lengths, strict=True) for n in pair]
    own = torch.tensor([False, True]).repeat(len(each))
    own_T = own.repeat_interleave(torch.tensor(counts)).to(ids_T.device)
    ids = ids_T.new_zeros(len(own_T)).masked_scatter(own_T, ids_T)
    return Replaced(~own_T[None], torch.cat(each)), ids, longer, own_T.nonzero()[keep_N, 0]


def insert(
    prompts: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Replaced | None, dict[str, Any], int]:
    """Return the prompts of a plain forward, its arguments, and the number of logits to drop.

    With a cache, which holds the prompts already, only positions move: rows with prompts are read
    without one first.

    Raises:
        MethodError: Rows of one batch have prompts of different lengths.
    """
    kwargs = dict(kwargs)
    count = len(prompts[0])
    if any(len(prompt) != count for prompt in prompts):
        raise MethodError(
            "Rows with prompts of different lengths cannot share a padded batch on this model: set "
            "train.packing=true."
        )
    positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if mask is not None:
        kwargs["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    if any(kwargs.get(name) is not None for name in CACHES):
        if positions is not None:
            kwargs["position_ids"] = positions + count
        return None, kwargs, 0
    ids_BT = args[0] if args else kwargs["input_ids"]
    ids = kwargs["input_ids"] = torch.nn.functional.pad(ids_BT, (count, 0))
    marks_BT = torch.zeros_like(ids, dtype=torch.bool)
    marks_BT[:, :count] = True
    each = list(prompts) * len(ids) if len(prompts) == 1 else prompts
    if positions is not None:
        first = torch.arange(count, device=positions.device).expand(len(positions), -1)
        kwargs["position_ids"] = torch.cat([first, positions + count], dim=1)
    keep = kwargs.get("logits_to_keep", 0)
    if isinstance(keep, Tensor):
        kwargs["logits_to_keep"] = keep + count
    dropped = 0 if isinstance(keep, Tensor) or keep else count
    return Replaced(marks_BT, torch.cat(list(each))), kwargs, dropped

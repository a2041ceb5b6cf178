"""Virtual tokens: prefixes and prompts as keys and values before every row.

A prefix is keys and values. A prompt is embeddings; attention is causal, so its keys and values do
not depend on what follows: it runs through the model once per batch, with gradients while it
trains, and then acts as a prefix. So both work with packing, checkpointing, padding and per row.

A stack's virtual tokens stand in stack order, and a prompt attends to those before it. Positions of
the row itself start after them, as in PEFT.

Shapes: `L layers, K kv_heads, P virtual tokens, E head_dim, B rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.backbone.adapter import Adapter
from studio.backbone.attention import AttentionState, Prefix, packing
from studio.backbone.composition import Stack
from studio.backbone.sites import Anatomy
from studio.methods.method import Phase

VIRTUAL = (Phase.KEYS_VALUES, Phase.PROMPT)


@dataclass(frozen=True, slots=True)
class VirtualKeysValues:
    """Keys and values `(L, 2, K, P, E)` and log-weights `(P,)` of a stack's virtual tokens.

    `whole` means that every log-weight is 0, without a device synchronisation.
    """

    keys_values: Tensor
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
        self._banks: list[VirtualKeysValues] | None = None

    def use(self, stacks: Sequence[Stack], adapters: dict[str, Adapter]) -> None:
        """Set the active stacks: one for all rows, or one per row."""
        self._stacks, self._adapters, self._banks = stacks, adapters, None

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Set the attention's prefix for this forward; return kwargs with shifted positions."""
        banks = self._current()
        rows = stack_rows(banks)
        if rows is None:
            self._state.prefix = None
            return kwargs
        keys_values, bias = rows.keys_values, rows.bias
        self._state.prefix = lambda layer: Prefix(
            keys_values[layer, 0], keys_values[layer, 1], bias, rows.whole
        )
        offsets = torch.tensor([bank.length for bank in banks], device=bias.device)
        lengths = self._state.lengths
        if lengths is not None and len(banks) > 1:
            offsets = offsets.repeat_interleave(torch.tensor(lengths, device=bias.device))[None]
        else:
            offsets = offsets[:, None]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = _default_positions(args, kwargs)
        self._state.positions = positions + offsets
        return {**kwargs, "position_ids": self._state.positions}

    def _current(self) -> list[VirtualKeysValues]:
        """Return each row's virtual tokens; cached until stacks change, unless gradients are on."""
        if self._banks is not None and not torch.is_grad_enabled():
            return self._banks
        known = {stack: self._build(stack) for stack in dict.fromkeys(self._stacks)}
        banks = [known[stack] for stack in self._stacks]
        self._banks = None if torch.is_grad_enabled() else banks
        return banks

    def _build(self, stack: Stack) -> VirtualKeysValues:
        """Return a stack's virtual tokens as keys and values, in stack order."""
        a = self._anatomy
        device = next(a.model.parameters()).device
        shape = (a.num_layers, 2, a.num_kv_heads, 0, a.head_dim)
        bank = VirtualKeysValues(torch.zeros(shape, device=device), torch.zeros(0, device=device))
        for name, weight in stack:
            adapter = self._adapters[name]
            if adapter.method.phase not in VIRTUAL:
                continue
            tokens = adapter.method.virtual_tokens(adapter.params[""])
            if adapter.method.phase is Phase.PROMPT:
                own = self._run(tokens, bank, stack)
            else:
                parts = (a.num_layers, 2, a.num_kv_heads, a.head_dim)
                own = tokens.unflatten(1, parts).permute(1, 2, 3, 0, 4)
            weights = torch.full((tokens.shape[0],), math.log(weight), device=device)
            bank = VirtualKeysValues(
                torch.cat([bank.keys_values.to(own.dtype), own], dim=3),
                torch.cat([bank.bias, weights]),
                bank.whole and weight == 1,
            )
        return bank

    def _run(self, embeddings_PD: Tensor, before: VirtualKeysValues, stack: Stack) -> Tensor:
        """Run a prompt under its own stack and return its keys and values `(L, 2, K, P, E)`."""
        state, lengths = self._state, self._state.lengths
        positions = torch.arange(len(embeddings_PD), device=embeddings_PD.device) + before.length
        state.lengths, state.positions, state.capture = None, positions[None], {}
        state.prefix = before.layer if before.length else None
        packed = packing.set(False)
        model = self._anatomy.model
        try:
            with self._prompt_context(stack):
                model.base_model(
                    inputs_embeds=embeddings_PD[None].to(model.dtype),
                    position_ids=positions[None],
                    use_cache=False,
                )
            captured = state.capture
        finally:
            packing.reset(packed)
            state.lengths, state.capture, state.prefix = lengths, None, None
        layers = range(self._anatomy.num_layers)
        return torch.stack([torch.stack([kv[0] for kv in captured[layer]]) for layer in layers])


def stack_rows(banks: Sequence[VirtualKeysValues]) -> VirtualKeysValues | None:
    """Return rows' virtual tokens padded to `(L, 2, B, K, P, E)` and bias `(B, P)`.

    None if no row has virtual tokens.
    """
    longest = max(bank.length for bank in banks)
    if longest == 0:
        return None
    dtype = next(bank.keys_values.dtype for bank in banks if bank.length)
    pad = torch.nn.functional.pad
    keys_values = torch.stack(
        [pad(b.keys_values.to(dtype), (0, 0, 0, longest - b.length)) for b in banks], dim=2
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

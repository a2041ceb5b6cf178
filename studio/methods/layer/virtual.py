"""Virtual tokens: prefixes and prompts, turned into keys and values that stand before every row.

A prefix *is* keys and values. A prompt is embeddings; since attention is causal, its keys and
values do not depend on what follows, so it is run through the model once per batch, with gradients
while it trains, and serves every row like a prefix. So both pack, checkpoint, pad and mix per row.

In a stack they stand in stack order: a prompt attends to the prefixes and prompts before it. The
positions of the row itself start after them, as in PEFT.

Shapes: `L layers, K kv_heads, P virtual tokens, E head_dim, B rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.methods.layer.attention import Prefix
from studio.methods.layer.sites import Anatomy
from studio.methods.method import Method, Params, Phase


@dataclass(frozen=True, slots=True)
class Virtual:
    """One adapter's virtual tokens in a stack."""

    method: Method
    params: Params
    weight: float


@dataclass(frozen=True, slots=True)
class Bank:
    """Keys and values `(L, 2, K, P, E)` and log-weights `(P,)` of one stack's virtual tokens."""

    keys_values: Tensor
    bias: Tensor

    @property
    def length(self) -> int:
        """P."""
        return self.bias.shape[0]

    def layer(self, index: int) -> Prefix:
        """This layer's keys and values as a batch of one."""
        keys, values = self.keys_values[index]
        return Prefix(keys[None], values[None], self.bias[None])


RunPrompt = Callable[[Tensor, Bank], Tensor]
"""Runs `(P, D)` embeddings after a bank and returns their `(L, 2, K, P, E)`."""


def build(stack: Sequence[Virtual], anatomy: Anatomy, run_prompt: RunPrompt) -> Bank:
    """Turn a stack's virtual tokens into keys and values, in stack order."""
    shape = (anatomy.num_layers, 2, anatomy.num_kv_heads, 0, anatomy.head_dim)
    device = next(anatomy.model.parameters()).device
    bank = Bank(torch.zeros(shape, device=device), torch.zeros(0, device=device))
    for item in stack:
        tokens = item.method.virtual_tokens(item.params)
        if item.method.phase is Phase.PROMPT:
            own = run_prompt(tokens, bank)
        else:
            own = tokens.unflatten(1, (shape[0], 2, shape[2], shape[4])).permute(1, 2, 3, 0, 4)
        weights = torch.full((tokens.shape[0],), math.log(item.weight), device=device)
        bank = Bank(
            torch.cat([bank.keys_values.to(own.dtype), own], dim=3),
            torch.cat([bank.bias, weights]),
        )
    return bank


def stack_rows(banks: Sequence[Bank]) -> Bank | None:
    """Return rows' banks side by side: `(L, 2, B, K, P, E)` and bias `(B, P)`, shorter ones hidden.

    None where no row has virtual tokens.
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
    return Bank(keys_values, bias)

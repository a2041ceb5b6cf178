"""Decode a batch of growing rows: prefill, one token per row and step, a growing cache.

transformers' own copies every layer's keys and values at each token to append one; this one keeps
buffers that are a little longer and writes the token into them. Layers of other kinds (sliding
windows, linear attention) stay transformers' own.

Shapes: `B rows, K kv_heads, S keys, E head_dim`.

With two to eight rows and a weight that is larger than the cache, `x Wᵀ` is slow in MKL: it costs
up to three times one row's. The same product as `(W xᵀ)ᵀ` reads `W` once, as it should. Measured
with one thread, seconds of it against those of `x Wᵀ`: 0.4 to 0.9 where a layer widens (up, gate,
head), with two to eight rows; where it narrows, 0.6 to 0.8 with exactly four rows and no gain with
others; for small weights none. Only the order of the factors changes, and only without gradients.

Rows are padded on the left and carry explicit positions, so a row's logits do not depend on how
long its neighbours are. Finished rows leave the batch and its cache. It knows token ids and logits;
which token is picked, and what a stack is, it does not.

Shapes: `B rows, T tokens, K kept positions, V vocabulary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Linear


ROOM = 64


class RoomyLayer(DynamicLayer):
    """One layer's keys and values `(B, K, S, E)`: views of buffers that have room behind them."""

    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states of the new tokens and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        keys, values = self._roomy(key_states, value_states, start, end)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        super().batch_select_indices(indices)
        self._buffers = None

    def _roomy(
        self, key_states: Tensor, value_states: Tensor, start: int, end: int
    ) -> tuple[Tensor, Tensor]:
        if self._buffers is not None and self._buffers[0].shape[-2] >= end:
            return self._buffers
        keys, values = (
            states.new_empty(*states.shape[:2], end + max(ROOM, end // 4), states.shape[-1])
            for states in (key_states, value_states)
        )
        if start:
            keys[:, :, :start] = self.keys
            values[:, :, :start] = self.values
        self._buffers = keys, values
        return self._buffers


def roomy_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model of this config."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def cache_argument(model: Any) -> str:
    """Return the name under which a model takes its cache; transformers 5.2x changed it."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


FEWEST, MOST = 2, 8
FOUR = 4
LARGE = 2**19  # numbers of a weight: 2 MiB, more than a core's own cache


def quicken_products(model: Any) -> None:
    """Let a CPU model's large layers take the faster product; weights stay untouched."""
    import torch

    for module in model.modules():
        if type(module) is not torch.nn.Linear or "forward" in vars(module):
            continue
        weight = module.weight
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        if here and weight.numel() >= LARGE:
            _quicken(module)


def _quicken(layer: Linear) -> None:
    import torch

    plain = layer.forward
    widens = layer.out_features > layer.in_features

    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        pays = FEWEST <= rows <= MOST if widens else rows == FOUR
        if not pays or torch.is_grad_enabled():
            return plain(x)
        product = torch.mm(layer.weight, x.reshape(rows, -1).t()).t()
        product = product if layer.bias is None else product + layer.bias
        return product.reshape(*x.shape[:-1], -1)

    layer.forward = forward


class Batch:
    """Rows that go through the model together.

    Args:
        model: A transformers causal language model.
        prompts: The token ids of each row; none may be empty.
        device: Where the model's input goes.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        import torch

        assert prompts and all(prompts)
        self._model = model
        self._device = device
        self._cache = roomy_cache(model.config)
        self._cache_argument = {cache_argument(model): self._cache}
        self._width = max(map(len, prompts))
        self._pads = [self._width - len(prompt) for prompt in prompts]
        padded = [[0] * pad + list(prompt) for pad, prompt in zip(self._pads, prompts, strict=True)]
        self._ids_BT = torch.tensor(padded, device=device)
        self._lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._mask_BT = self._grown_mask() if any(self._pads) else None

    def __len__(self) -> int:
        return len(self._pads)

    def prefill(self, probes: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Read the prompts.

        Args:
            probes: One position within each row's own prompt whose logits are wanted too.

        Returns:
            The logits after each prompt `(B, V)`, and those at the probes `(B, V)` or None.
        """
        import torch

        kept = [self._width - 1]
        places: list[int] = []
        if probes is not None:
            wanted = [pad + probe for pad, probe in zip(self._pads, probes, strict=True)]
            kept = sorted({*kept, *wanted})
            places = [kept.index(place) for place in wanted]
        logits_BKV = self._forward(
            self._ids_BT, torch.tensor(kept, device=self._device) if len(kept) > 1 else 1
        )
        probed_BV = None
        if probes is not None:
            probed_BV = logits_BKV[torch.arange(len(self)), torch.tensor(places)]
        return logits_BKV[:, -1], probed_BV

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row and return the logits after it `(B, V)`."""
        import torch

        self._lengths_B += 1
        self._width += 1
        return self._forward(torch.tensor(tokens, device=self._device)[:, None], 1)[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        import torch

        index = torch.tensor(list(rows), device=self._device)
        self._cache.batch_select_indices(index)
        self._pads = [self._pads[row] for row in rows]
        self._lengths_B = self._lengths_B[index]
        if self._mask_BT is not None:
            self._mask_BT = self._mask_BT[index] if any(self._pads) else None

    def _forward(self, ids_BT: Tensor, keep: Tensor | int) -> Tensor:
        import torch

        positions_BT = (
            self._lengths_B[:, None] - ids_BT.shape[1] + torch.arange(
                ids_BT.shape[1], device=self._device
            )
        ).clamp_min(0)  # fmt: skip
        if self._mask_BT is not None and self._mask_BT.shape[1] < self._width:
            self._mask_BT = self._grown_mask()
        with torch.no_grad():
            output = self._model(
                input_ids=ids_BT,
                attention_mask=None if self._mask_BT is None else self._mask_BT[:, : self._width],
                position_ids=positions_BT,
                use_cache=True,
                logits_to_keep=keep,
                **self._cache_argument,
            )
        logits_BKV: Tensor = output.logits
        return logits_BKV

    def _grown_mask(self) -> Tensor:
        import torch

        columns = torch.arange(self._width + ROOM, device=self._device)
        return (columns >= torch.tensor(self._pads, device=self._device)[:, None]).long()

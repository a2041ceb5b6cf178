"""A key-value cache with room to grow, for answers that are written token by token.

transformers' own copies every layer's keys and values at each token to append one; this one keeps
buffers that are a little longer and writes the token into them. Layers of other kinds (sliding
windows, linear attention) stay transformers' own.

Shapes: `B rows, K kv_heads, S keys, E head_dim`.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

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

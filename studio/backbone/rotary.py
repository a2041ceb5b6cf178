"""Rotary factors per row, where they depend on the length of a sequence (LongRoPE, dynamic NTK).

transformers chooses the factors by the longest row of a batch, and dynamic NTK remembers those of
earlier passes, so a row's result would depend on its neighbours. Here every row has the factors
that it has alone.

Shapes: `B rows, T tokens, E rotary size`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.backbone.attention import AttentionState
from studio.models.find_model import LENGTH_ROPE_TYPES


def install_row_factors(tower: nn.Module, state: AttentionState) -> bool:
    """Let the rotary embeddings of a tower compute each row's factors alone; True if any do."""
    found = [module for module in tower.modules() if rope_types(module) & set(LENGTH_ROPE_TYPES)]
    for module in found:
        if "forward" not in vars(module):
            module.forward = _by_row(module, state)
    return bool(found)


def rope_types(module: nn.Module) -> set[str]:
    """Return the rope types of a rotary embedding; none of any other module."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return {str(kind) for kind in kinds.values()}
    return {kinds} if isinstance(kinds, str) else set()


def _by_row(module: nn.Module, state: AttentionState) -> Callable[..., Any]:
    own = module.forward

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = _rows(position_ids, state)
        results = []
        for row in rows:
            _forget(module)
            results.append(own(x, row, *args, **kwargs))
        if len(results) == 1:
            return results[0]
        axis = -2 if state.lengths is not None else -3
        return tuple(torch.cat(parts, dim=axis) for parts in zip(*results, strict=True))

    return forward


def _rows(positions: Tensor, state: AttentionState) -> Sequence[Tensor]:
    """Return each row's positions `(…, 1, T)`, without the places of its padding."""
    if state.lengths is not None and positions.shape[-1] == sum(state.lengths):
        return positions.split(state.lengths, dim=-1)
    rows = list(positions.split(1, dim=-2))
    ends = state.row_ends
    if ends is None or len(ends) != len(rows):
        return rows
    return [row.clamp_max(end) for row, end in zip(rows, ends, strict=True)]


def _forget(module: Any) -> None:
    """Reset the factors that dynamic NTK keeps of an earlier, longer sequence."""
    names = module.rope_type if isinstance(module.rope_type, dict) else [""]
    for name in names:
        prefix = f"{name}_" if name else ""
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if original is not None and "dynamic" in rope_types(module):
            module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

"""The two rows of a recorded forward pass: their tokens, and whether what came of them differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.backbone.sites import Anatomy

ROWS = (10, 7)  # 17 tokens: a size that no other axis of a model has
# Relative differences that are no leak: of equal shapes, whose results are equal but for the order
# of experts, and of other shapes.
SAME_SHAPE = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}
OTHER_SHAPE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def sample_ids(anatomy: Anatomy) -> Tensor:
    """Return token ids `(T,)` of the recorded rows."""
    device = next(anatomy.tower.parameters()).device
    return torch.arange(sum(ROWS), device=device) % max(1, anatomy.vocab_size - 3) + 1


def first_tensor(output: Any) -> Tensor | None:
    """Return the hidden states of a module's output."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "last_hidden_state"):
        hidden: Tensor = output.last_hidden_state
        return hidden
    parts = output if isinstance(output, tuple | list) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)


def token_axis(x: Tensor) -> int | None:
    """Return the axis of all tokens."""
    return next((axis for axis, size in enumerate(x.shape) if size == sum(ROWS)), None)


def differs(one: Tensor | None, other: Tensor | None, where: slice, *, loose: bool = False) -> bool:
    """Return True if some tokens of two results differ; `loose` allows for other shapes."""
    axis = None if one is None else token_axis(one)
    if one is None or other is None or axis is None or one.shape != other.shape:
        return False
    places = torch.arange(sum(ROWS), device=one.device)[where]
    a, b = one.index_select(axis, places).float(), other.index_select(axis, places).float()
    tolerance = (OTHER_SHAPE if loose else SAME_SHAPE).get(one.dtype, 1e-6)
    return float((a - b).abs().max()) > tolerance * float(one.abs().max().clamp_min(1e-6))

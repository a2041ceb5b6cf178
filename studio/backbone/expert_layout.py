"""Recognise modules of routed experts, and how their 3-D parameters are stored and called."""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple


class ExpertLayout(NamedTuple):
    """Names of the two parameters of routed experts, and how they are stored and called.

    `scaled`: the forward takes each expert's own copy of every token, `(E T, D)`, multiplied by the
    router's weight, which is zero where the token does not go (Llama 4).
    """

    first: str
    transposed: bool
    has_bias: bool = False
    scaled: bool = False
    last: str = "down_proj"


def expert_layout(module: Any) -> ExpertLayout | None:
    """Return the layout of a module of routed experts whose parameters are 3-D; None of others."""
    if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed"):
        first = "gate_up_proj" if module.has_gate else "up_proj"
        return ExpertLayout(first, module.is_transposed, module.has_bias)
    names = ("num_experts", "gate_up_proj", "down_proj", "act_fn")
    if not all(hasattr(module, name) for name in names) or hasattr(module, "gate_up_proj_bias"):
        return None
    takes_one = len(signature(type(module).forward).parameters) == 2  # itself and the tokens
    return ExpertLayout("gate_up_proj", True, scaled=True) if takes_one else None

"""Find the modules that a gradient reaches, to leave out those where no adapter would train.

An indexer of sparse attention runs, but only its choice of tokens is used: its scores get no
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.backbone import row_isolation
from studio.backbone.attention import AttentionState
from studio.backbone.forward_recording import forward
from studio.backbone.recorded_rows import first_tensor, sample_ids
from studio.errors import MethodError

if TYPE_CHECKING:
    from studio.backbone.sites import Anatomy


def reached(anatomy: Anatomy, state: AttentionState | None = None) -> set[str]:
    """Return the modules whose output a gradient of the hidden states reaches.

    One pass with gradients of the embeddings; the backward is only walked, not computed.

    Raises:
        MethodError: It reaches no module of the layers.
    """
    state = state or AttentionState()
    nodes: dict[Any, set[str]] = {}

    def keep(key: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            hidden = first_tensor(output)
            if hidden is not None and hidden.grad_fn is not None:
                nodes.setdefault(hidden.grad_fn, set()).add(key)

        return after

    def begin(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()

    with ExitStack() as stack:
        stack.enter_context(row_isolation.plain(state))
        embed = anatomy.model.get_input_embeddings()
        stack.callback(embed.register_forward_hook(begin).remove)
        for key, module in anatomy.modules.items():
            if key.startswith(anatomy.tower_key):
                stack.callback(module.register_forward_hook(keep(key)).remove)
        with torch.enable_grad():
            given, ids = anatomy.recording.positions, sample_ids(anatomy)
            hidden = forward(anatomy, state, ids, None, with_positions=given)
    left, seen = [hidden.grad_fn], set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [inner for inner, _ in node.next_functions]
    found = {key for node in seen for key in nodes.get(node, ())}
    if not any(anatomy.layer_of(key) >= 0 for key in found):
        raise MethodError(
            f"The layers of {type(anatomy.model).__name__} keep their gradients to themselves "
            "(reversible layers), so no adapter can train in them: choose another model."
        )
    return found

"""Probe a model with short forward passes: positions, padding, packing, shared prompts, gradients.

Each probe runs two fixed rows and compares what came of them with what must be equal.

Shapes: `T tokens of both rows`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.backbone import row_isolation
from studio.backbone.attention import AttentionState
from studio.errors import MethodError, is_out_of_memory

if TYPE_CHECKING:
    from studio.backbone.sites import Anatomy

logger = logging.getLogger(__name__)

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


def forward(
    anatomy: Anatomy, state: AttentionState, ids: Tensor, rows: tuple[int, ...] | None, *,
    with_positions: bool = True, shared: int = 0,
) -> Tensor:  # fmt: skip
    """Probe the forward pass: return the tower's hidden states of packed rows, or of one row.

    The last of two rows may continue the first `shared` tokens of the other.
    """
    with row_isolation.packed(state, rows, ids.device, (0, shared)):
        lengths = rows or (len(ids),)
        positions = torch.cat([torch.arange(n) for n in lengths]).to(ids.device)
        positions[lengths[0] :] += shared
        given = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False}
        if not with_positions:
            del given["position_ids"]
        output = anatomy.tower(**accepted(anatomy.tower, given))
    hidden = first_tensor(output)
    assert hidden is not None
    return hidden


def accepted(
    module: nn.Module, given: dict[str, Any], *, optional: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the keyword arguments that a module's forward takes; only `optional` ones may go."""
    known = signature(module.forward).parameters
    if any(each.kind is Parameter.VAR_KEYWORD for each in known.values()):
        return dict(given)
    return {
        name: value for name, value in given.items()
        if name in known or (optional is not None and name not in optional)
    }  # fmt: skip


def raise_if_full(error: Exception) -> None:
    """Raise an error that says nothing about the model: there was too little memory for it."""
    if is_out_of_memory(error):
        raise error


def counts_from_zero(anatomy: Anatomy, state: AttentionState, ids: Tensor) -> bool:
    """Return True if positions from 0 are those that the model counts itself."""
    own = forward(anatomy, state, ids, None, with_positions=False)
    try:
        given = forward(anatomy, state, ids, None)
    except Exception as error:
        raise_if_full(error)
        logger.info("Positions cannot be given: %s: %s", type(error).__name__, error)
        return False
    return given.shape == own.shape and not differs(given, own, slice(None), loose=True)


def has_plain_head(anatomy: Anatomy, ids: Tensor) -> bool:
    """Return True if the model returns the output of its head as it is."""
    head, seen = anatomy.model.get_output_embeddings(), []
    if head is None:
        return False
    handle = head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        logits = anatomy.model(input_ids=ids[None], use_cache=False).logits
    finally:
        handle.remove()
    return len(seen) == 1 and logits.shape == seen[0].shape and torch.equal(logits, seen[0])


def same_padded(anatomy: Anatomy, state: AttentionState, ids: Tensor) -> bool:
    """Return True if a row has the same logits with padding on its right."""
    rows = ids[: ROWS[0]].repeat(2, 1)
    mask = torch.ones_like(rows)
    mask[0, ROWS[1] :] = 0
    given = {"input_ids": rows * mask, "attention_mask": mask, "use_cache": False}
    state.lengths = None
    try:
        with torch.no_grad():
            padded = anatomy.model(**accepted(anatomy.model, given)).logits
            alone = anatomy.model(input_ids=ids[None, : ROWS[1]], use_cache=False).logits
    except Exception as error:
        raise_if_full(error)
        logger.info("Rows cannot be padded: %s: %s", type(error).__name__, error)
        return False
    difference = (padded[0, : ROWS[1]] - alone[0]).float().abs().max()
    return float(difference) <= OTHER_SHAPE.get(alone.dtype, 1e-4) * float(alone.abs().max())


def same_alone(anatomy: Anatomy, state: AttentionState, ids: Tensor, shared: int = 0) -> bool:
    """Return True if the rows alone have the hidden states that they have packed.

    The last row continues the first `shared` tokens of the other.
    """
    first, last = ids.split(ROWS)
    packed = forward(anatomy, state, ids, ROWS, shared=shared)
    own = torch.cat([first[:shared], last])
    alone = [forward(anatomy, state, row, None) for row in (first, own)]
    if (axis := token_axis(packed)) is None:
        return False
    alone[1] = alone[1].narrow(axis, shared, len(last))
    return not differs(packed, torch.cat(alone, dim=axis), slice(None), loose=True)


def shares_prompts(anatomy: Anatomy, state: AttentionState) -> bool:
    """Return True if a packed row that continues another one is as with a beginning of its own.

    That is so where attention is causal, by the attention function, and all that reads earlier
    tokens.
    """
    found = anatomy.recording
    if anatomy.carries_state or found.isolated or not (found.separable and found.positions):
        return False
    state.prefix = None
    try:
        with torch.no_grad():
            return same_alone(anatomy, state, sample_ids(anatomy), ROWS[0] // 2)
    except Exception as error:
        raise_if_full(error)
        logger.info("Rows do not share their beginning: %s: %s", type(error).__name__, error)
        return False


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

"""Check that each lane was answered by its own stack: compare logits with a reference.

Every answer's own prefill is compared at one early position with the bare base (how far the stack
changes the model) and, where rows were routed in one batch, with the same stack alone, computed
another way. The position is early because a causal model's logits depend only on the tokens before
it: the reference costs a few tokens, and the next turn of a conversation has it already.

Shapes: `B rows, T tokens, V vocabulary`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.chat.lanes import ActiveStack
from studio.errors import ChatError

if TYPE_CHECKING:
    from studio.backbone import Backbone

PROBE_TOKENS = 32
CACHE_SIZE = 64
BUG = (
    "{whose} differ from the expected ones by {error:.3g}: this is a bug, please report it. The "
    "answer is not shown."
)


def probe_position(prompt: Sequence[int]) -> int:
    """Return the position whose logits are compared: an early one, or the prompt's last."""
    return min(len(prompt), PROBE_TOKENS) - 1


class RoutingCheck:
    """Reference logits of one base and its adapters, computed on demand and cached."""

    def __init__(self, backbone: Backbone, *, exact: bool) -> None:
        self._backbone = backbone
        self._tolerance = 2e-3 if exact else 6e-2
        self._noise = 1e-5 if exact else 1e-3
        self._cache: OrderedDict[Any, tuple[Tensor, list[Any]]] = OrderedDict()

    def difference(
        self, prompt: Sequence[int], stack: ActiveStack, logits_V: Tensor, *, routed: bool
    ) -> tuple[float, bool]:
        """Compare a row's own logits at its probe position; leaves another stack active.

        Args:
            prompt: The row's tokens.
            stack: The adapters that should be active.
            logits_V: The row's logits at `probe_position(prompt)`, from its own prefill.
            routed: True if the row shared its batch with other stacks.

        Returns:
            The largest logit difference against the base, and True if the stack had an effect.

        Raises:
            ChatError: Another stack answered.
        """
        head = tuple(prompt[: probe_position(prompt) + 1])
        base_V = self._reference(head, ())
        scale = max(1.0, float(base_V.abs().max()))
        distance = float((logits_V.float() - base_V).abs().max())
        if not stack and distance > self._tolerance * scale:
            raise ChatError(BUG.format(whose="The base lane's logits", error=distance))
        if stack and routed:
            own_V = self._reference(head, stack)
            error = float((logits_V.float() - own_V).abs().max())
            if not error <= self._tolerance * max(scale, float(own_V.abs().max())):
                raise ChatError(BUG.format(whose="This lane's logits", error=error))
        return distance, not stack or distance > self._noise * scale

    def _reference(self, head: tuple[int, ...], stack: ActiveStack) -> Tensor:
        adapters = [self._backbone.adapters[name] for name, _ in stack]
        # In-place training changes a tensor's version, a reload makes another adapter.
        state = [(id(a), sum(p._version for p in a.parameters())) for a in adapters]
        key = (head, stack, tuple(state))
        if key not in self._cache:
            self._backbone.use(stack)
            device = self._backbone.model.device
            with torch.no_grad():
                output = self._backbone.model(
                    input_ids=torch.tensor([head], device=device),
                    position_ids=torch.arange(len(head), device=device)[None],
                    use_cache=False,
                    logits_to_keep=1,
                )
            self._cache[key] = (output.logits[0, -1].float(), adapters)
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key][0]

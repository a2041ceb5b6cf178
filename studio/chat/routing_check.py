"""Prove who answered: compare the logits that were used with those that should have been.

A tool once showed the tuned model in the "base" pane and nobody noticed. So every answer's own
prefill is measured at one early position: against the bare base (how far the stack moved the model)
and, where rows were routed in one batch, against the same stack alone, computed along another path.
The position is early because a causal model's logits there depend only on the tokens before it:
the reference costs a few tokens, and a conversation that goes on has it already.

Shapes: `B rows, T tokens, V vocabulary`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.errors import ChatError

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone import Backbone

Stack = tuple[tuple[str, float], ...]
PROBE_TOKENS = 32
KEPT = 64


def probe(prompt: Sequence[int]) -> int:
    """Return the position whose logits are compared: the prompt's last, or an early one."""
    return min(len(prompt), PROBE_TOKENS) - 1


class Identity:
    """Reference logits of one base and its adapters, computed when asked and kept for a while."""

    def __init__(self, backbone: Backbone, *, exact: bool) -> None:
        self._backbone = backbone
        self._tolerance = 2e-3 if exact else 6e-2
        self._noise = 1e-5 if exact else 1e-3
        self._known: OrderedDict[Any, tuple[Tensor, list[Any]]] = OrderedDict()

    def difference(
        self, prompt: Sequence[int], stack: Stack, logits_V: Tensor, *, routed: bool
    ) -> tuple[float, bool]:
        """Compare a row's own logits at its probe.

        Leaves another stack active: whoever goes on decoding activates its own again.

        Args:
            prompt: The row's tokens.
            stack: The adapters that should have acted.
            logits_V: The row's logits at `probe(prompt)`, taken from its own prefill.
            routed: Whether the row shared its batch with other stacks.

        Returns:
            The largest logit difference against the base, and whether the stack did something.

        Raises:
            ChatError: Something else than the stack answered.
        """
        head = tuple(prompt[: probe(prompt) + 1])
        base_V = self._reference(head, ())
        scale = max(1.0, float(base_V.abs().max()))
        distance = float((logits_V.float() - base_V).abs().max())
        if not stack and distance > self._tolerance * scale:
            raise ChatError(
                "The base lane did not answer as the base (its logits differ by "
                f"{distance:.3g}): this is a bug, please report it. The answer is not shown."
            )
        if stack and routed:
            own_V = self._reference(head, stack)
            error = float((logits_V.float() - own_V).abs().max())
            if not error <= self._tolerance * max(scale, float(own_V.abs().max())):
                raise ChatError(
                    "This lane did not answer with its own adapters (its logits differ by "
                    f"{error:.3g}): this is a bug, please report it. The answer is not shown."
                )
        return distance, not stack or distance > self._noise * scale

    def _reference(self, head: tuple[int, ...], stack: Stack) -> Tensor:
        import torch

        adapters = [self._backbone.adapters[name] for name, _ in stack]
        # In-place training changes a tensor's version, a reload makes another adapter.
        state = [(id(a), sum(p._version for p in a.parameters())) for a in adapters]
        key = (head, stack, tuple(state))
        if key not in self._known:
            self._backbone.use(stack)
            device = self._backbone.model.device
            with torch.no_grad():
                output = self._backbone.model(
                    input_ids=torch.tensor([head], device=device),
                    position_ids=torch.arange(len(head), device=device)[None],
                    use_cache=False,
                    logits_to_keep=1,
                )
            self._known[key] = (output.logits[0, -1].float(), adapters)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key][0]

"""Measure how evenly the routers of a mixture choose their experts, and which saw no token.

The routers are frozen, so the balance is a property of the data: an expert that its router never
chooses keeps an untrained adapter.

Shapes: `L layers, E experts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.backbone import Adapter
    from studio.backbone.experts import Experts


class ExpertBalance:
    """Counts the tokens per expert in the steps of one session; others may share the experts."""

    def __init__(self, experts: Sequence[Experts]) -> None:
        self._experts = experts
        self._counts = [torch.zeros_like(one.tokens_E) for one in experts]
        self._seen = [counts_E.cpu().clone() for counts_E in self._counts]
        self._steps = 0

    def begin_step(self) -> None:
        """Let the experts count on from this session's last step."""
        for one, counts_E in zip(self._experts, self._counts, strict=True):
            one.tokens_E = counts_E

    def of_step(self) -> float | None:
        """Return the evenness since the step began: the layers' mean entropy, in parts of log E."""
        if not self._experts:
            return None
        self._steps += 1
        self._counts = [one.tokens_E for one in self._experts]
        before, self._seen = self._seen, [counts_E.cpu().clone() for counts_E in self._counts]
        layers = [evenness(now - old) for now, old in zip(self._seen, before, strict=True)]
        return sum(layers) / len(layers)

    def warning(self, adapter: Adapter, *, steps: int, processes: int) -> str:
        """Return a sentence on adapted experts that saw no token in any step; empty if none.

        It is empty too if a part of the run's tokens was not counted: after the run was resumed,
        `steps` are more than those of this session, and other processes have rows of their own.
        """
        if steps != self._steps or processes > 1:
            return ""
        adapted = {site.key.rpartition(".")[0] for site in adapter.sites if site.num_experts}
        unused = total = 0
        for one, seen in zip(self._experts, self._seen, strict=True):
            if one.key in adapted:
                unused += int((seen == 0).sum())
                total += len(seen)
        if not unused:
            return ""
        return (
            f"{unused} of {total} experts saw no token of this data, so their part of the adapter "
            "is untrained; more or more varied rows reach more experts."
        )


def evenness(counts_E: Tensor) -> float:
    """Return the entropy of the counts as a part of its largest value; 1 for an even choice."""
    if len(counts_E) < 2 or not counts_E.sum():
        return 1.0
    shares = counts_E.double() / counts_E.sum()
    return float(-torch.xlogy(shares, shares).sum() / math.log(len(counts_E)))

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
    """Counts the tokens per expert, step by step."""

    def __init__(self, experts: Sequence[Experts]) -> None:
        self._experts = experts
        self._seen = [one.tokens_E.cpu().clone() for one in experts]
        self._start = list(self._seen)

    def of_step(self) -> float | None:
        """Return the evenness since the last call: the layers' mean entropy, as a part of log E."""
        if not self._experts:
            return None
        before, self._seen = self._seen, [one.tokens_E.cpu().clone() for one in self._experts]
        layers = [evenness(now - old) for now, old in zip(self._seen, before, strict=True)]
        return sum(layers) / len(layers)

    def warning(self, adapter: Adapter) -> str:
        """Return a sentence on adapted experts that saw no token since the start; empty if none."""
        adapted = {site.key.rpartition(".")[0] for site in adapter.sites if site.num_experts}
        unused = total = 0
        for one, start in zip(self._experts, self._start, strict=True):
            if one.key in adapted:
                unused += int((one.tokens_E.cpu() == start).sum())
                total += len(start)
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

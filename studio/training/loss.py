"""The loss: a sum over trained tokens, divided once by all trained tokens of the step.

Dividing by the whole step's count (not by each batch's own) is what makes four small batches equal
one large one. Averages over rows or batches would weigh short answers more.

Shapes: `N positions that predict a trained token, V vocabulary`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from studio.training.batch import Packed, Padded
from studio.training.head import bare_head, head_loss, head_measured, packed_hidden

if TYPE_CHECKING:
    from studio.methods.layer import Backbone


def loss_sum(backbone: Backbone, batch: Packed | Padded, smoothing: float = 0.0) -> Tensor:
    """Return the summed negative log-likelihood of the batch's trained tokens, in float32.

    Args:
        backbone: The model with its active stack.
        batch: The rows.
        smoothing: Share of each target that all tokens get alike (label smoothing).
    """
    if isinstance(batch, Packed):
        return loss_sums(backbone, [batch], [smoothing])[0]
    return _summed(padded_logits(backbone, batch), None, batch.targets_N, smoothing)


def loss_sums(
    backbone: Backbone, batches: Sequence[Packed], smoothings: Sequence[float]
) -> list[Tensor]:
    """Return the `loss_sum` of each batch, from one pass over the rows of all."""
    edges = accumulate((batch.num_tokens for batch in batches), initial=0)
    ids_T = torch.cat([batch.ids_T for batch in batches])
    lengths = tuple(length for batch in batches for length in batch.lengths)
    keep_N = torch.cat([b.keep_N + start for b, start in zip(batches, edges, strict=False)])
    if (head := bare_head(backbone)) is not None:
        found = packed_hidden(backbone, head, ids_T, lengths, keep_N)
    else:
        found = backbone.packed_logits(ids_T, lengths, keep_N)
    parts = found.split([b.num_targets for b in batches]) if len(batches) > 1 else (found,)
    each = zip(parts, batches, smoothings, strict=True)
    return [_summed(part, head, batch.targets_N, smoothing) for part, batch, smoothing in each]


def _summed(found: Tensor, head: nn.Linear | None, targets_N: Tensor, smoothing: float) -> Tensor:
    if head is not None:
        return head_loss(found, head.weight, targets_N, smoothing)
    return cross_entropy(found.float(), targets_N, reduction="sum", label_smoothing=smoothing)


def padded_logits(backbone: Backbone, batch: Padded) -> Tensor:
    """Return `(N, V)` through the ordinary forward: the plain twin of `packed_logits`."""
    position_ids = (batch.mask_BT.cumsum(-1) - 1).clamp(min=0)
    output = backbone.model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=position_ids,
        use_cache=False,
    )
    logits_NV: Tensor = output.logits[batch.keep_BT]
    return logits_NV


@dataclass(frozen=True, slots=True)
class Measured:
    """What held-out rows say: summed loss, tokens guessed right, tokens."""

    loss_sum: float
    correct: int
    tokens: int

    @property
    def loss(self) -> float:
        """Loss per trained token."""
        return self.loss_sum / max(1, self.tokens)

    @property
    def accuracy(self) -> float:
        """Share of trained tokens that were the likeliest."""
        return self.correct / max(1, self.tokens)


def measure(backbone: Backbone, batches: Iterable[Packed | Padded]) -> Measured:
    """Measure held-out batches, with dropout off."""
    total, correct, tokens = 0.0, 0, 0
    with backbone.evaluating():
        for batch in batches:
            loss, right = _measured(backbone, batch)
            total, correct, tokens = total + loss, correct + right, tokens + batch.num_targets
    return Measured(total, correct, tokens)


def _measured(backbone: Backbone, batch: Packed | Padded) -> tuple[float, int]:
    head = bare_head(backbone) if isinstance(batch, Packed) else None
    if isinstance(batch, Packed) and head is not None:
        hidden_ND = packed_hidden(backbone, head, batch.ids_T, batch.lengths, batch.keep_N)
        return head_measured(hidden_ND, head.weight, batch.targets_N)
    if isinstance(batch, Packed):
        logits_NV = backbone.packed_logits(batch.ids_T, batch.lengths, batch.keep_N)
    else:
        logits_NV = padded_logits(backbone, batch)
    loss = cross_entropy(logits_NV.float(), batch.targets_N, reduction="sum")
    return float(loss), int((logits_NV.argmax(-1) == batch.targets_N).sum())

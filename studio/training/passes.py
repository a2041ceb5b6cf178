"""The passes of one optimizer step: forward and backward over every micro-batch, nothing else.

What is left are gradients, and a `Passed` for the session, which decides whether to step. A run
alone passes here; siblings on one base pass together (`siblings.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from studio.errors import Diverged
from studio.training.batch import Packed, Padded
from studio.training.loss import loss_sum

if TYPE_CHECKING:
    from studio.training.session import Session


@dataclass(frozen=True, slots=True)
class Passed:
    """A step's batches, the share of the step's loss that each had, and how long it all took."""

    batches: Sequence[Packed | Padded]
    losses: Sequence[float]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(batch.num_tokens for batch in self.batches)


def pass_alone(session: Session) -> Passed:
    """Take the passes of the session's next step; the gradients are on its parameters."""
    started, number = time.perf_counter(), session.progress.step
    torch.manual_seed(session.plan.step_seed(number))
    batches = session.next_batches()
    targets = max(1, session.total(sum(batch.num_targets for batch in batches)))
    smoothing, losses = session.spec.train.label_smoothing_factor, []
    for batch in batches:
        if session.noise:
            session.noise.expect(batch)
        loss = loss_sum(session.backbone, batch, smoothing) / targets
        session.accelerator.backward(loss)
        losses.append(loss.detach())
    _keep_company(session, len(batches))
    return Passed(batches, [float(loss) for loss in losses], time.perf_counter() - started)


def _keep_company(session: Session, passes: int) -> None:
    """Where layers are put together by all, pass through them as often as any process does."""
    if not session.spec.train.fsdp:
        return
    for _ in range(session.plan.most_passes(session.accelerator.num_processes) - passes):
        loss = loss_sum(session.backbone, session.batch([session.prepared.train[0]]))
        session.accelerator.backward(loss * 0.0)


def diverged(session: Session, passed: Passed, grad_norm: float) -> Diverged:
    """Say which rows and which rate made a loss or a gradient that is no number."""
    losses, batches = passed.losses, passed.batches
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    rows = [row for i in bad or range(len(batches)) for row in batches[i].rows]
    what = f"loss became {losses[bad[0]]}" if bad else f"gradient became {grad_norm}"
    if session.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        said = gather_object([(not bad, what, rows)])
        _, what, rows = min(said)  # whoever saw the loss itself knows the rows
    rate = session.plan.lr(session.progress.step)
    return Diverged(
        f"The {what} at step {session.progress.step + 1}, in row{'s' if len(rows) > 1 else ''} "
        f"{', '.join(map(str, sorted(rows)[:16]))} of {session.spec.data.path}. Lower "
        f"train.learning_rate (it was {rate:.2g}) or look at these rows; the last checkpoint "
        "is intact."
    )

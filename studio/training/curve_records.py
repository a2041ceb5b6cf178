"""The curves of a run as findings read them, and what a finding and its correction are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean, pstdev
from typing import Any, Literal

from studio.spec import RunSpec

PART = 0.1
"""A level is the mean of a tenth of the steps; noise is its standard error."""
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """A button: the action it asks for, with its values beside the run."""

    title: str
    action: Literal["duplicate", "extend", "compare"]
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A sign that a rule found, with its evidence in `text`."""

    rule: str
    title: str
    text: str
    remedy: Correction | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """Curves of a run as points (step, value), and the facts that the rules read.

    `rate` is the peak learning rate; `held_out` the number of held-out rows, None if not known;
    `is_text` says that the rows are texts without questions; `rows_ended` is the fraction of the
    sampled rows whose own answer trains an end of turn; `longer_chosen` that of the pairs whose
    chosen answer is the longer one; `checkpoints` are the steps on disk; `answers` the last ones to
    the sample prompts.
    """

    spec: RunSpec
    curves: Mapping[str, Points]
    total_steps: int
    rate: float
    ended: bool = True
    diverged: bool = False
    held_out: int | None = None
    is_text: bool = False
    rows_ended: float | None = None
    rows_truncated: int = 0
    longer_chosen: float = 0.5
    checkpoints: Sequence[int] = field(default_factory=tuple)
    answers: Sequence[str] = ()

    def points(self, name: str) -> Points:
        """Return a curve; empty if the run has none of that name."""
        return self.curves.get(name, ())

    @property
    def losses(self) -> list[float]:
        """Training loss by step."""
        return [value for _, value in self.points("loss")]

    @cached_property
    def parts(self) -> list[tuple[int, float, float]]:
        """Consecutive tenths of the training loss: last step, level and its standard error."""
        points = self.points("loss")
        size = max(3, math.ceil(PART * len(points)))
        found = []
        for end in range(len(points), size - 1, -size):
            values = [value for _, value in points[end - size : end]]
            found.append((points[end - 1][0], *level_of(values)))
        return found[::-1]


def level_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of some values and its standard error."""
    return fmean(values), pstdev(values) / math.sqrt(len(values))

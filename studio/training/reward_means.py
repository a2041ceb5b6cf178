"""Means of the rewards of a run that learns from preferences, by TRL's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rewards(NamedTuple):
    """Means over the answers of a step or an evaluation, named as in TRL; None where none is."""

    rewards_chosen: float | None = None
    rewards_rejected: float | None = None
    rewards_margins: float | None = None
    rewards_accuracies: float | None = None
    logps_chosen: float | None = None
    logps_rejected: float | None = None

    @classmethod
    def of(cls, sums: Sequence[float]) -> Rewards:
        """Return the means of `preference_loss.Preference.sums`."""
        chosen, rejected, good, bad, logp_good, logp_bad, right, compared = sums
        means = [
            total / count if count else None
            for total, count in ((chosen, good), (rejected, bad), (logp_good, good),
                                 (logp_bad, bad), (right, compared))
        ]  # fmt: skip
        margin = None if means[0] is None or means[1] is None else means[0] - means[1]
        return cls(
            rewards_chosen=means[0], rewards_rejected=means[1], rewards_margins=margin,
            rewards_accuracies=means[4], logps_chosen=means[2], logps_rejected=means[3],
        )  # fmt: skip

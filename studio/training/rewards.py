"""Rewards of a run that learns from preferences, and a sentence where a known failure shows.

The common failures: the log-probability of the chosen answers falls together with that of the
rejected ones, which the loss allows as long as the gap grows; the reward accuracy reaches 1 after a
few steps because the pairs differ in their length, or on trained pairs alone; answers grow longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SMOOTHING = 0.9
LEAST_STEPS, FALLING_SHARE, EARLY_SHARE = 10, 0.2, 0.2  # of the run's steps
FALL = 1.0  # nats an answer
ONE_SIDED, UNLEARNT = 0.95, 0.75  # share of pairs that length separates; held-out accuracy
LONGER, LEAST_TOKENS = 2.0, 8  # of the first sampled answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """Means over the answers of a step or an evaluation, named as in TRL; None where none is."""

    rewards_chosen: float | None = None
    rewards_rejected: float | None = None
    rewards_margins: float | None = None
    rewards_accuracies: float | None = None
    logps_chosen: float | None = None
    logps_rejected: float | None = None

    @classmethod
    def of(cls, sums: Sequence[float]) -> Rewards:
        """Return the means of `preference.Preference.sums`; empty sums give an empty record."""
        if not sums:
            return cls()
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

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name."""
        return asdict(self)


@dataclass(slots=True)
class RewardWatch:
    """Changes since the start of a run, kept in its checkpoints."""

    steps: int = 0
    change: float = 0.0
    """Of the chosen answers' log-probability against the reference."""
    falling: int = 0
    """Steps in a row with the change below `-FALL`."""
    perfect: int = 0
    """Steps in a row with the accuracy 1."""
    perfect_at: int = 0
    """Step at which the first `LEAST_STEPS` of them began."""
    held_accuracy: float | None = None
    """Reward accuracy of the last evaluation."""
    first_tokens: float | None = None
    answer_tokens: float | None = None
    """Mean length of the first and of the last sampled answers."""

    def see(self, rewards: Rewards, beta: float) -> None:
        """Take the rewards of a step, `beta` times a change against the reference."""
        if rewards.rewards_chosen is None:
            return
        self.steps += 1
        new = max(1 - SMOOTHING, 1 / self.steps)
        self.change += new * (rewards.rewards_chosen / beta - self.change)
        if rewards.rewards_accuracies is not None:
            self.perfect = self.perfect + 1 if rewards.rewards_accuracies == 1 else 0
        self.falling = self.falling + 1 if self.change < -FALL else 0
        if self.perfect == LEAST_STEPS and not self.perfect_at:
            self.perfect_at = self.steps - LEAST_STEPS + 1

    def see_answers(self, mean_tokens: float) -> None:
        """Take the mean length of sampled answers."""
        self.answer_tokens = mean_tokens
        if self.first_tokens is None:
            self.first_tokens = mean_tokens

    def sentence(self, total_steps: int, *, has_reference: bool, longer_chosen: float) -> str:
        """Return what shows, for the user; empty if nothing does.

        Args:
            total_steps: Steps of the run.
            has_reference: The loss compares with a reference.
            longer_chosen: Share of the pairs whose chosen answer is the longer one.
        """
        found = []
        if has_reference and self.falling >= max(LEAST_STEPS, FALLING_SHARE * total_steps):
            found.append(
                "The log-probability of the chosen answers is below the reference's since step "
                f"{self.steps - self.falling + 1}: the model unlearns both answers. Set "
                "train.rpo_alpha=1 with dpo, or lower train.learning_rate."
            )
        early = 0 < self.perfect_at <= max(LEAST_STEPS, EARLY_SHARE * total_steps)
        if early and max(longer_chosen, 1 - longer_chosen) >= ONE_SIDED:
            which, share = "longer", longer_chosen
            if longer_chosen < 0.5:
                which, share = "shorter", 1 - longer_chosen
            found.append(
                f"The chosen answer is the {which} one in {share:.0%} of the pairs, and the reward "
                f"accuracy reached 1 at step {self.perfect_at} of {total_steps}: the model may "
                "learn the length alone. Add pairs where it is the other way round."
            )
        elif early and self.held_accuracy is not None and self.held_accuracy < UNLEARNT:
            found.append(
                f"The reward accuracy reached 1 at step {self.perfect_at} of {total_steps} on the "
                f"trained pairs, but is {self.held_accuracy:.2f} on held-out ones. Use fewer "
                "steps, or more pairs."
            )
        if self.first_tokens is not None and self.answer_tokens is not None:
            grown = self.answer_tokens - self.first_tokens
            if grown >= LEAST_TOKENS and self.answer_tokens >= LONGER * self.first_tokens:
                found.append(
                    f"Sampled answers grew from {self.first_tokens:.0f} to "
                    f"{self.answer_tokens:.0f} tokens. If that is not wanted, compare the lengths "
                    "of chosen and rejected answers in the dataset's report."
                )
        return " ".join(found)

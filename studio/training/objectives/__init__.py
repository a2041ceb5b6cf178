"""Losses that learn from preferences or rewards: one file each, formula and paper.

They see log-probabilities alone; `training/preference_loss.py` computes these and sums the losses
of a step, `training/grpo_rollouts.py` for GRPO. The numbers are those of TRL's trainers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from studio.errors import MethodError, SpecError
from studio.evaluation.answer_scores import Scorer, scorers, weights_in

if TYPE_CHECKING:
    from torch import Tensor

    from studio.spec import RunSpec
    from studio.train_args import TrainArgs


class LogProbs(NamedTuple):
    """Answers `(U,)`: summed log-probability, that of the reference (0 without), trained tokens.

    `kl` is the distance from the reference that kto compares with.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor
    kl: Tensor | float = 0.0

    @property
    def ratio(self) -> Tensor:
        """`h = log π(y|x) − log π_ref(y|x)`."""
        return self.policy - self.reference

    @property
    def mean(self) -> Tensor:
        """Log-probability per token."""
        return self.policy / self.tokens.clamp(min=1)


class PairLosses(NamedTuple):
    """Losses, and the rewards of the chosen (good) and of the rejected (bad) answers.

    `sft_weight` is that of the chosen answers' loss per token, which is added.
    """

    losses: Tensor
    chosen: Tensor
    rejected: Tensor
    sft_weight: float = 0.0


class Objective(Protocol):
    """A module of this package."""

    NEEDS_REFERENCE: bool
    LEARNING_RATE: float
    """Fraction of the method's learning rate for SFT."""

    def score(self, chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
        """Return losses and rewards; the answers of a pair are at the same place on both sides."""


def objective(name: str) -> Objective:
    """Return the objective that `train.loss` names."""
    module: Objective = import_module(f"{__name__}.{name}")
    return module


def needs_reference(spec: RunSpec) -> bool:
    """Return True if the run's loss compares the model with a reference."""
    loss = spec.train.loss
    if loss == "grpo":
        return spec.train.own_beta > 0
    return loss != "sft" and objective(loss).NEEDS_REFERENCE


def reward_scores(args: TrainArgs) -> list[tuple[float, Scorer]]:
    """Return the weight and the function of each score of `train.rewards`.

    Raises:
        SpecError: There is none, or one is invalid.
    """
    weights = weights_in(args.rewards, "train.rewards")
    found = scorers(
        list(weights), args.reward_pattern, args.reward_json_schema, prefix="train.reward_",
        source="train.rewards",
    )  # fmt: skip
    return [(weight, found[name]) for name, weight in weights.items()]


def check(spec: RunSpec) -> None:
    """Check that the base and the devices allow the run's method and loss.

    Raises:
        MethodError: The method changes the base itself, which is quantised or the loss's reference.
        SpecError: The base is sharded, a setting of the loss is invalid, or several processes
            would search the learning rate.
    """
    args = spec.train
    if spec.method.trains_base and spec.model.quantization != "none":
        raise MethodError(
            f"{spec.method.title} trains the weights of the base, which cannot be trained in "
            f"{spec.model.quantization}: set model.quantization=none, or use LoRA."
        )
    if args.find_learning_rate and args.num_devices > 1:
        raise SpecError(
            "train.find_learning_rate needs a single process: find the rate on one device, then "
            "set it.", field="train.find_learning_rate",
        )  # fmt: skip
    if args.loss == "sft":
        return
    if args.loss == "grpo":
        reward_scores(args)
        if args.num_generations < 2:
            raise SpecError(
                "train.num_generations=1 leaves nothing to compare an answer with: use at least 2, "
                "8 are usual.", field="train.num_generations",
            )  # fmt: skip
    elif args.beta == 0:
        raise SpecError(
            f"train.beta=0 switches {args.loss} off: use a value above 0.", field="train.beta"
        )
    if spec.method.trains_base and needs_reference(spec):
        raise MethodError(
            f"train.loss={args.loss} compares the model with its reference, the base without the "
            "adapter; full fine-tuning changes the base and would need a second copy of it in "
            "memory. Use an adapter method, or "
            + ("train.beta=0." if args.loss == "grpo"
               else "a loss without a reference: orpo, simpo or cpo.")
        )  # fmt: skip
    if args.fsdp:
        raise SpecError(
            f"train.fsdp does not support train.loss={args.loss}: set train.fsdp=false, or "
            "model.quantization=nf4 to save memory.", field="train.fsdp",
        )  # fmt: skip

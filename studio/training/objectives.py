"""Losses that learn from preferences: formula and paper of each, and what they need of a run.

They see log-probabilities alone; `preference_loss.py` computes these and sums the losses of a step.
The numbers are those of TRL's trainers. GRPO, which learns from rewards, is in `grpo_rollouts.py`.
The queue and the pages read this module too, so torch is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from studio.errors import MethodError, SpecError
from studio.evaluation.scores_and_gates import Scorer, scorers, weights_in

if TYPE_CHECKING:
    from torch import Tensor

    from studio.home import Home
    from studio.spec import RunSpec
    from studio.train_args import TrainArgs

LEARNING_RATES = {
    "sft": 1.0, "cpo": 0.03, "dpo": 0.03, "grpo": 0.1, "ipo": 0.03, "kto": 0.02, "orpo": 0.5,
    "simpo": 0.03,
}  # fmt: skip
"""Fraction of the method's learning rate for SFT, by `train.loss`."""
WITHOUT_REFERENCE = ("sft", "cpo", "orpo", "simpo")


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


Objective = Callable[[LogProbs, LogProbs, "TrainArgs"], PairLosses]
"""A loss of chosen and rejected answers; those of a pair are at the same place on both sides."""


def cpo(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Compare as DPO with a uniform reference; SFT on the chosen answers keeps the model in place.

    `L = −log σ(β (log π(y_c|x) − log π(y_r|x))) + α L_SFT`, `α` being `cpo_alpha`. Source:
    arXiv:2401.08417. With `label_smoothing` `ε` the first part is `1 − ε` of that and `ε` of the
    loss of the pair the other way round. The reward is `β log π(y|x)`.
    """
    losses = _smoothed(args.own_beta * (chosen.policy - rejected.policy), args.label_smoothing)
    rewards = args.own_beta * chosen.policy.detach(), args.own_beta * rejected.policy.detach()
    return PairLosses(losses, *rewards, args.cpo_alpha)


def dpo(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Let the chosen answer gain on the reference more than the rejected one does.

    `L = −log σ(β (h_c − h_r))` with `h = log π(y|x) − log π_ref(y|x)`. Source: arXiv:2305.18290.
    The reward is `β h`.

    With a probability `ε` of a wrong label (`label_smoothing`; robust DPO, arXiv:2403.00409) it is
    `(−(1 − ε) log σ(β Δ) + ε log σ(−β Δ)) / (1 − 2 ε)`, `Δ = h_c − h_r`. `rpo_alpha` adds the SFT
    loss of the chosen answers (arXiv:2404.19733).
    """
    from torch.nn.functional import logsigmoid

    wrong, margin = args.label_smoothing, args.own_beta * (chosen.ratio - rejected.ratio)
    losses = -(1 - wrong) * logsigmoid(margin) + wrong * logsigmoid(-margin)
    return PairLosses(
        losses / (1 - 2 * wrong), *_gains(chosen, rejected, args), sft_weight=args.rpo_alpha
    )


def ipo(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Aim at a fixed margin instead of an ever larger one, so that clear pairs do not overfit.

    `L = (h_c / n_c − h_r / n_r − 1 / (2 β))²` with `h = log π(y|x) − log π_ref(y|x)` and `n` the
    tokens of the answer, as its authors computed it. Source: arXiv:2310.12036, eq. 17. The reward
    is `β h`.
    """
    margin = chosen.ratio / chosen.tokens.clamp(min=1)
    margin = margin - rejected.ratio / rejected.tokens.clamp(min=1)
    losses = (margin - 1 / (2 * args.own_beta)) ** 2
    return PairLosses(losses, *_gains(chosen, rejected, args))


def kto(good: LogProbs, bad: LogProbs, args: TrainArgs) -> PairLosses:
    """Learn from answers judged as good or bad, without pairs.

    `L = λ_good (1 − σ(β (h − z)))` for good and `λ_bad (1 − σ(β (z − h)))` for bad answers, with
    `h = log π(y|x) − log π_ref(y|x)` and `z = max(0, mean h)` over answers to other prompts: how
    far the model has moved from the reference at all, without a gradient. Source: arXiv:2402.01306,
    eq. 7. The reward is `β h`; losses of good and of bad answers follow each other.
    """
    import torch

    above = torch.sigmoid(args.own_beta * (good.ratio - good.kl))
    below = torch.sigmoid(args.own_beta * (bad.kl - bad.ratio))
    losses = [args.desirable_weight * (1 - above), args.undesirable_weight * (1 - below)]
    return PairLosses(torch.cat(losses), *_gains(good, bad, args))


def orpo(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Train on the chosen answers, with better odds for them than for the rejected, in one step.

    `L = L_SFT − β log σ(log odds_c − log odds_r)` with `odds = p / (1 − p)` and `p` the mean
    probability of a token, `exp(log π(y|x) / n)`; no reference. Source: arXiv:2403.07691, where `β`
    is `λ`. `L_SFT` is that of the answers; TRL's includes the prompts. The reward is `β log p`.
    """
    from torch.nn.functional import logsigmoid

    odds = _log_odds(chosen.mean) - _log_odds(rejected.mean)
    return PairLosses(
        -args.own_beta * logsigmoid(odds), *_means(chosen, rejected, args), sft_weight=1.0
    )


def simpo(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Take the log-probability per token as the reward, with a margin and without a reference.

    `L = −log σ(β (log π(y_c|x) / n_c − log π(y_r|x) / n_r) − γ)`. Source: arXiv:2405.14734. With
    `label_smoothing` `ε` it is `1 − ε` of that and `ε` of the loss of the pair the other way round.
    """
    margin = args.own_beta * (chosen.mean - rejected.mean) - args.simpo_gamma
    losses = _smoothed(margin, args.label_smoothing)
    return PairLosses(losses, *_means(chosen, rejected, args))


OBJECTIVES: dict[str, Objective] = {
    "cpo": cpo, "dpo": dpo, "ipo": ipo, "kto": kto, "orpo": orpo, "simpo": simpo
}  # fmt: skip


def _smoothed(margin: Tensor, wrong: float) -> Tensor:
    from torch.nn.functional import logsigmoid

    return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)


def _gains(one: LogProbs, other: LogProbs, args: TrainArgs) -> tuple[Tensor, Tensor]:
    """Return the rewards `β h`."""
    return args.own_beta * one.ratio.detach(), args.own_beta * other.ratio.detach()


def _means(one: LogProbs, other: LogProbs, args: TrainArgs) -> tuple[Tensor, Tensor]:
    """Return the rewards `β log π(y|x) / n`."""
    return args.own_beta * one.mean.detach(), args.own_beta * other.mean.detach()


def _log_odds(log_p: Tensor) -> Tensor:
    """Return `log p − log(1 − p)`, exact also where `p` is near 1 (Mächler, 2012)."""
    import torch

    log_p = log_p.clamp(max=-1e-7)
    near, far = log_p.clamp(min=-1.0), log_p.clamp(max=-0.5)  # finite gradients on both sides
    rest = torch.where(log_p > -0.7, (-torch.expm1(near)).log(), torch.log1p(-far.exp()))
    return log_p - rest


# -- of a run --------------------------------------------------------------------------------------


def needs_reference(spec: RunSpec) -> bool:
    """Return True if the run's loss compares the model with a reference."""
    loss = spec.train.loss
    return spec.train.own_beta > 0 if loss == "grpo" else loss not in WITHOUT_REFERENCE


def reward_scores(args: TrainArgs) -> list[tuple[float, Scorer]]:
    """Return the weight and the function of each score of `train.rewards`.

    Raises:
        SpecError: There is none, or one is invalid.
    """
    weights = weights_in(args.rewards)
    found = scorers(
        list(weights), args.reward_pattern, args.reward_json_schema, prefix="train.reward_",
        source="train.rewards",
    )  # fmt: skip
    return [(weight, found[name]) for name, weight in weights.items()]


def no_held_out_rows() -> SpecError:
    """Return the error of a search for the learning rate that has no loss to compare."""
    return SpecError(
        "train.find_learning_rate compares held-out losses, but no row is held out: "
        "raise data.validation_fraction, add rows, or set the learning rate by hand.",
        field="train.find_learning_rate",
    )


def check_held_out(spec: RunSpec, home: Home) -> None:
    """Check that a run that searches its learning rate holds rows out, as far as known.

    Raises:
        SpecError: No row will be held out.
    """
    from studio.data.prepare_run_data import holds_none_out

    if spec.train.find_learning_rate and holds_none_out(spec, home):
        raise no_held_out_rows()


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

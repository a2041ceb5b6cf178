"""KTO: answers judged as good or bad, without pairs.

`L = λ_good (1 − σ(β (h − z)))` for good and `λ_bad (1 − σ(β (z − h)))` for bad answers, with
`h = log π(y|x) − log π_ref(y|x)` and `z = max(0, mean h)` over answers to other prompts: how far
the model has moved from the reference at all, without a gradient. Source: arXiv:2402.01306, eq. 7.
"""

from __future__ import annotations

from studio.train_args import TrainArgs
from studio.training.objectives import LogProbs, PairLosses

NEEDS_REFERENCE, LEARNING_RATE = True, 0.02


def score(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Return losses and rewards `β h` of good and of bad answers, one after the other."""
    import torch

    good = torch.sigmoid(args.own_beta * (chosen.ratio - chosen.kl))
    bad = torch.sigmoid(args.own_beta * (rejected.kl - rejected.ratio))
    losses = [args.desirable_weight * (1 - good), args.undesirable_weight * (1 - bad)]
    rewards = args.own_beta * chosen.ratio.detach(), args.own_beta * rejected.ratio.detach()
    return PairLosses(torch.cat(losses), *rewards)

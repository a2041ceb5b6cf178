"""SimPO: the log-probability per token is the reward, with a margin, and no reference.

`L = −log σ(β (log π(y_c|x) / n_c − log π(y_r|x) / n_r) − γ)`. Source: arXiv:2405.14734. With
`label_smoothing` `ε` it is `1 − ε` of that and `ε` of the loss of the pair the other way round.
"""

from __future__ import annotations

from studio.train_args import TrainArgs
from studio.training.objectives import LogProbs, PairLosses

NEEDS_REFERENCE, LEARNING_RATE = False, 0.03


def score(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Return losses and rewards `β log π(y|x) / n` of pairs."""
    from torch.nn.functional import logsigmoid

    wrong = args.label_smoothing
    margin = args.own_beta * (chosen.mean - rejected.mean) - args.simpo_gamma
    losses = -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)
    rewards = args.own_beta * chosen.mean.detach(), args.own_beta * rejected.mean.detach()
    return PairLosses(losses, *rewards)

"""CPO: DPO with a uniform reference, and SFT on the chosen answers to keep the model in place.

`L = −log σ(β (log π(y_c|x) − log π(y_r|x))) + α L_SFT`, `α` being `cpo_alpha`. Source:
arXiv:2401.08417. With `label_smoothing` `ε` the first part is `1 − ε` of that and `ε` of the loss
of the pair the other way round.
"""

from __future__ import annotations

from studio.train_args import TrainArgs
from studio.training.objectives import LogProbs, PairLosses

NEEDS_REFERENCE, LEARNING_RATE = False, 0.03


def score(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Return losses and rewards `β log π(y|x)` of pairs."""
    from torch.nn.functional import logsigmoid

    wrong, margin = args.label_smoothing, args.own_beta * (chosen.policy - rejected.policy)
    losses = -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)
    rewards = args.own_beta * chosen.policy.detach(), args.own_beta * rejected.policy.detach()
    return PairLosses(losses, *rewards, args.cpo_alpha)

"""DPO: the chosen answer gains on the reference more than the rejected one does.

`L = −log σ(β (h_c − h_r))` with `h = log π(y|x) − log π_ref(y|x)`. Source: arXiv:2305.18290.

With a probability `ε` of a wrong label (`label_smoothing`; robust DPO, arXiv:2403.00409) it is
`(−(1 − ε) log σ(β Δ) + ε log σ(−β Δ)) / (1 − 2 ε)`, `Δ = h_c − h_r`. `rpo_alpha` adds the SFT loss
of the chosen answers (arXiv:2404.19733).
"""

from __future__ import annotations

from studio.train_args import TrainArgs
from studio.training.objectives import LogProbs, PairLosses

NEEDS_REFERENCE, LEARNING_RATE = True, 0.03


def score(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Return losses and rewards `β h` of pairs."""
    from torch.nn.functional import logsigmoid

    wrong, margin = args.label_smoothing, args.own_beta * (chosen.ratio - rejected.ratio)
    losses = -(1 - wrong) * logsigmoid(margin) + wrong * logsigmoid(-margin)
    rewards = args.own_beta * chosen.ratio.detach(), args.own_beta * rejected.ratio.detach()
    return PairLosses(losses / (1 - 2 * wrong), *rewards, args.rpo_alpha)

"""IPO: a fixed margin instead of an ever larger one, so that clear pairs do not overfit.

`L = (h_c / n_c − h_r / n_r − 1 / (2 β))²` with `h = log π(y|x) − log π_ref(y|x)` and `n` the tokens
of the answer, as its authors computed it. Source: arXiv:2310.12036, eq. 17.
"""

from __future__ import annotations

from studio.train_args import TrainArgs
from studio.training.objectives import LogProbs, PairLosses

NEEDS_REFERENCE, LEARNING_RATE = True, 0.03


def score(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Return losses and rewards `β h` of pairs."""
    margin = chosen.ratio / chosen.tokens.clamp(min=1)
    margin = margin - rejected.ratio / rejected.tokens.clamp(min=1)
    rewards = args.own_beta * chosen.ratio.detach(), args.own_beta * rejected.ratio.detach()
    return PairLosses((margin - 1 / (2 * args.own_beta)) ** 2, *rewards)

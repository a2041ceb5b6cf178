"""ORPO: SFT on the chosen answers, with better odds for them than for the rejected in one step.

`L = L_SFT − β log σ(log odds_c − log odds_r)` with `odds = p / (1 − p)` and `p` the mean
probability of a token, `exp(log π(y|x) / n)`; no reference. Source: arXiv:2403.07691, where `β` is
`λ`. `L_SFT` is that of the answers; TRL's includes the prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.training.objectives import LogProbs, PairLosses

if TYPE_CHECKING:
    from torch import Tensor

    from studio.train_args import TrainArgs

NEEDS_REFERENCE, LEARNING_RATE = False, 0.5


def score(chosen: LogProbs, rejected: LogProbs, args: TrainArgs) -> PairLosses:
    """Return losses and rewards `β log p` of pairs."""
    from torch.nn.functional import logsigmoid

    odds = _log_odds(chosen.mean) - _log_odds(rejected.mean)
    rewards = args.own_beta * chosen.mean.detach(), args.own_beta * rejected.mean.detach()
    return PairLosses(-args.own_beta * logsigmoid(odds), *rewards, sft_weight=1.0)


def _log_odds(log_p: Tensor) -> Tensor:
    """Return `log p − log(1 − p)`, exact also where `p` is near 1 (Mächler, 2012)."""
    import torch

    log_p = log_p.clamp(max=-1e-7)
    near, far = log_p.clamp(min=-1.0), log_p.clamp(max=-0.5)  # finite gradients on both sides
    rest = torch.where(log_p > -0.7, (-torch.expm1(near)).log(), torch.log1p(-far.exp()))
    return log_p - rest

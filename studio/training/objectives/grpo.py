"""GRPO: answers of a group that are better than their mean gain probability, without a value model.

`L = Σ_t −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + β ρ (e^d − d − 1)`, divided by the tokens of all
answers of the step, with `ρ = π(t) / π_old(t)`, `d = log π_ref(t) − log π(t)` and the advantage
`A = (r − mean r) / (std r + 1e-4)` of the answer within its group. Sources: arXiv:2402.03300
(GRPO), arXiv:2503.14476 (division by tokens, as in TRL), http://joschu.net/blog/kl-approx.html (the
estimate k3 of the KL; `ρ` makes its gradient unbiased, arXiv:2512.02556).

Shapes: `P prompts, G answers to each, N tokens of answers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from studio.train_args import TrainArgs

NEEDS_REFERENCE, LEARNING_RATE = True, 0.1
TINY = 1e-4
CACHE_TOKENS = 16_384  # keys and values that are held at once while answers are written


def advantages(rewards_PG: Tensor, spread: Tensor | None = None) -> Tensor:
    """Return how much better each answer is than its group, in units of `spread` if it is given."""
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return centred_PG if spread is None else centred_PG / (spread + TINY)


def token_losses(
    policy_N: Tensor, old_N: Tensor, reference_N: Tensor | None, advantage_N: Tensor,
    args: TrainArgs,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the loss and the KL to the reference at each token, from log-probabilities."""
    import torch

    ratio_N = (policy_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - args.epsilon, 1 + args.epsilon)
    losses_N = -torch.min(ratio_N * advantage_N, clipped_N * advantage_N)
    if reference_N is None:
        return losses_N, torch.zeros_like(losses_N)
    distance_N = reference_N - policy_N
    kl_N = (distance_N.exp() - distance_N - 1) * ratio_N
    return losses_N + args.own_beta * kl_N, kl_N

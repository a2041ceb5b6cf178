"""Muon: momentum whose matrix updates are orthogonalised; it learns many rare facts sooner.

Only for the hidden matrices; embeddings and gains stay with AdamW. All matrices of one shape are
orthogonalised in one batched Newton-Schulz iteration, in float32, which costs a fifth of a step on
a CPU (`torch.optim.Muon` works in bfloat16, which is slow where the processor lacks it).

Source: Muon as scaled in arXiv 2502.16982; the polynomial is Keller Jordan's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315
_NUM_ITERATIONS = 5


class Muon:
    """Momentum buffers of a set of matrices, and the step that uses them."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, momentum: float = 0.95) -> None:
        import torch

        self.momentum = momentum
        self._by_shape: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape
            self._by_shape.setdefault((rows, columns), []).append(parameter)
        self._velocity = {
            shape: torch.zeros(len(members), *shape) for shape, members in self._by_shape.items()
        }

    def step(self, *, lr: float, weight_decay: float) -> None:
        """Move every matrix by `lr` along its orthogonalised Nesterov momentum."""
        import torch

        with torch.no_grad():
            for (rows, columns), members in self._by_shape.items():
                gradient = torch.stack([p.grad for p in members if p.grad is not None])
                velocity = self._velocity[rows, columns]
                velocity.lerp_(gradient, 1 - self.momentum)
                update = orthogonal(gradient.lerp_(velocity, self.momentum))
                scale = lr * max(1.0, rows / columns) ** 0.5
                for parameter, direction in zip(members, update, strict=True):
                    parameter.mul_(1 - lr * weight_decay).sub_(direction, alpha=scale)


def orthogonal(matrices_NRC: torch.Tensor) -> torch.Tensor:
    """The nearest (nearly) orthogonal matrix to each: all singular values become about one."""
    wide = matrices_NRC.shape[1] <= matrices_NRC.shape[2]
    x = matrices_NRC if wide else matrices_NRC.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.mT

"""LoKr: a Kronecker product of a small and a low-rank matrix."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.fields import knob
from studio.methods.method import (
    Init,
    LinearMethod,
    Params,
    Phase,
    Targets,
    kaiming_uniform,
    targets_field,
)

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Site


class LoKr(LinearMethod):
    """`y = W x + s (C ⊗ D) x`, with `C ∈ R^{l×m}`, `D ∈ R^{k×n}`, `l k = O`, `m n = I`; `D` is
    `D_a D_b` of rank r where that is smaller. `s = alpha / r`, and `C` starts at zero.

    When to use it: for very small adapters of high rank. It merges exactly.
    Cost: about `l m + r (k + n)` parameters per targeted matrix, far below LoRA's.
    Source: KronA arXiv:2212.10650; LyCORIS arXiv:2309.14859.
    """

    title: ClassVar[str] = "LoKr"
    paper: ClassVar[str] = "arXiv:2309.14859"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LOKR"
    base_learning_rate: ClassVar[float] = 1e-3
    width_exponent: ClassVar[float] = 1.2
    largest_learning_rate: ClassVar[float] = 1.8e-2
    peft_fields: ClassVar[tuple[str, ...]] = ("r", "alpha", "decompose_both", "decompose_factor")
    peft_defaults: ClassVar[dict[str, Any]] = {"r": 8, "alpha": 8}
    peft_fixed: ClassVar[dict[str, Any]] = {"init_weights": True}
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rank_dropout": (0, 0.0), "module_dropout": (0, 0.0),
        "init_weights": (True, False, "lycoris"), "rank_dropout_scale": (True, False),
    }  # fmt: skip

    name: Literal["lokr"] = "lokr"
    r: int = knob(8, "Rank of the larger factor.", title="Rank (r)", ge=1, le=512)
    alpha: float = knob(16, "Scale of the update: alpha / r.", title="Alpha", gt=0)
    target_modules: Targets = targets_field()
    decompose_both: bool = knob(
        False, "Factorise the smaller factor too.", title="Decompose both", advanced=True
    )
    decompose_factor: int = knob(
        -1, "Size of the smaller factor; -1 uses the divisor nearest the square root.", ge=-1,
        le=4096, words={"auto": -1}, title="Factor", advanced=True,
    )  # fmt: skip

    def num_trained(self, inputs: int, outputs: int) -> int:
        """Return the sizes of both factors, each whole or of rank r."""
        m, n = factors(inputs, self.decompose_factor)
        small, large = factors(outputs, self.decompose_factor)
        split = self.decompose_both and self.r < max(small, m) / 2
        first = self.r * (small + m) if split else small * m
        return first + (self.r * (large + n) if self.r < max(large, n) / 2 else large * n)

    def create(self, site: Site, init: Init) -> Params:
        """Return zeros for `C` (or its first factor), Kaiming-uniform for the rest, as in PEFT."""
        import torch

        draw = partial(kaiming_uniform, generator=init.generator)
        m, n = factors(site.in_features, self.decompose_factor)
        small, large = factors(site.out_features, self.decompose_factor)
        if self.decompose_both and self.r < max(small, m) / 2:
            p = {"lokr_w1_a": torch.zeros(small, self.r), "lokr_w1_b": draw(self.r, m)}
        else:
            p = {"lokr_w1": torch.zeros(small, m)}
        if self.r < max(large, n) / 2:
            return {**p, "lokr_w2_a": draw(large, self.r), "lokr_w2_b": draw(self.r, n)}
        return {**p, "lokr_w2": draw(large, n)}

    def _pair(self, p: Params) -> tuple[Tensor, Tensor]:
        """Return `s C` and `D`."""
        first = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
        return first * (self.alpha / self.r), second

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `(s C ⊗ D) x`, computed as `s C X Dᵀ`."""
        first, second = (factor.to(x.dtype) for factor in self._pair(p))
        grid = x.unflatten(-1, (first.shape[1], second.shape[1]))
        return (first @ (grid @ second.T)).flatten(-2)

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `w s (C ⊗ D)`."""
        import torch

        first, second = self._pair(p)
        return {"weight": weight * torch.kron(first.float(), second.float().contiguous())}


def factors(size: int, factor: int = -1) -> tuple[int, int]:
    """Return `small × large = size`: `factor` if it divides, else as square as possible.

    A positive factor that does not divide is an upper bound of `small`.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = max(1, min(int(size**0.5), factor)) if factor >= 0 else int(size**0.5)
    small = max(d for d in range(1, limit + 1) if size % d == 0)
    return small, size // small

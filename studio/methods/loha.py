"""LoHa: the elementwise product of two low-rank matrices."""

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


class LoHa(LinearMethod):
    """`y = W x + s ((B₁ A₁) ⊙ (B₂ A₂)) x`, with `Bᵢ ∈ R^{O×r}`, `Aᵢ ∈ R^{r×I}`, `s = alpha / r`.

    The product of two rank-r matrices has a rank of up to r². `A₂` starts at zero.
    When to use it: where LoRA of the same size lacks rank; each step computes `ΔW` once, so it is
    slower on large layers. It merges exactly.
    Cost: `2 r (I + O)` parameters per targeted matrix.
    Source: FedPara arXiv:2108.06098; LyCORIS arXiv:2309.14859.
    """

    title: ClassVar[str] = "LoHa"
    paper: ClassVar[str] = "arXiv:2108.06098"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LOHA"
    base_learning_rate: ClassVar[float] = 1e-3
    width_exponent: ClassVar[float] = 1.2
    largest_learning_rate: ClassVar[float] = 1.8e-2
    peft_fields: ClassVar[tuple[str, ...]] = ("r", "alpha")
    peft_defaults: ClassVar[dict[str, Any]] = {"r": 8, "alpha": 8}
    peft_fixed: ClassVar[dict[str, Any]] = {"init_weights": True}
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rank_dropout": (0, 0.0), "module_dropout": (0, 0.0), "init_weights": (True, False),
    }  # fmt: skip

    name: Literal["loha"] = "loha"
    r: int = knob(
        8, "Rank of both factors; their product reaches r².", title="Rank (r)", ge=1, le=512
    )
    alpha: float = knob(16, "Scale of the update: alpha / r.", title="Alpha", gt=0)
    target_modules: Targets = targets_field()

    def num_trained(self, inputs: int, outputs: int) -> int:
        """Return `2 r (I + O)`."""
        return 2 * self.r * (inputs + outputs)

    def create(self, site: Site, init: Init) -> Params:
        """Return Kaiming-uniform factors, the last one zero, as in PEFT."""
        import torch

        draw = partial(kaiming_uniform, generator=init.generator)
        return {
            "hada_w1_a": draw(site.out_features, self.r),
            "hada_w1_b": draw(self.r, site.in_features),
            "hada_w2_a": draw(site.out_features, self.r),
            "hada_w2_b": torch.zeros(self.r, site.in_features),
        }

    def _matrix(self, p: Params) -> Tensor:
        first, second = p["hada_w1_a"] @ p["hada_w1_b"], p["hada_w2_a"] @ p["hada_w2_b"]
        return first * second * (self.alpha / self.r)

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `ΔW x`."""
        from torch.nn.functional import linear

        return linear(x, self._matrix(p).to(x.dtype))

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `w ΔW`."""
        return {"weight": weight * self._matrix(p).float()}

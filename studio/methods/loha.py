"""LoHa: the elementwise product of two low-rank matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase, targets_knob

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class LoHa(Method):
    """`y = W x + s ((B₁ A₁) ⊙ (B₂ A₂)) x`, with `Bᵢ ∈ R^{O×r}`, `Aᵢ ∈ R^{r×I}`, `s = alpha / r`.

    The product of two rank-r matrices has a rank of up to r². `A₂` starts at zero.
    When to use it: where LoRA of the same size lacks rank; each step forms `ΔW` once, so it is
    slower on large layers. It merges exactly.
    Cost: `2 r (I + O)` parameters per targeted matrix.
    Source: FedPara arXiv:2108.06098; LyCORIS arXiv:2309.14859.
    """

    title: ClassVar[str] = "LoHa"
    paper: ClassVar[str] = "arXiv:2108.06098"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LOHA"
    base_learning_rate: ClassVar[float] = 1e-3
    peft_fields: ClassVar[tuple[str, ...]] = ("r", "alpha")
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "rank_dropout": (0, 0.0), "module_dropout": (0, 0.0), "init_weights": (True, False),
    }  # fmt: skip

    name: Literal["loha"] = "loha"
    r: int = knob(
        8, "Rank of both factors; the product reaches r².", title="Rank (r)", ge=1, le=512
    )
    alpha: float = knob(16, "Strength: the product is scaled by alpha / r.", title="Alpha", gt=0)
    target_modules: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = targets_knob(
        "Which linear layers to adapt: a group, or module names."
    )

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Every targeted linear layer."""
        return anatomy.linears(self.target_modules)

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Any linear layer."""
        return anatomy.all_linears()

    def create(self, site: Site, init: Init) -> Params:
        """Kaiming-uniform factors, the last one zero, as in PEFT."""
        import torch

        def draw(rows: int, columns: int) -> Tensor:
            bound = columns**-0.5
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=init.generator)

        return {
            "hada_w1_a": draw(site.out_features, self.r),
            "hada_w1_b": draw(self.r, site.in_features),
            "hada_w2_a": draw(site.out_features, self.r),
            "hada_w2_b": torch.zeros(self.r, site.in_features),
        }

    def _matrix(self, p: Params) -> Tensor:
        """`ΔW`."""
        first, second = p["hada_w1_a"] @ p["hada_w1_b"], p["hada_w2_a"] @ p["hada_w2_b"]
        return first * second * (self.alpha / self.r)

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """`ΔW x`."""
        from torch.nn.functional import linear

        return linear(x.to(p["hada_w1_a"].dtype), self._matrix(p))

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """`w ΔW`."""
        return {"weight": weight * self._matrix(p).float()}

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """PEFT's LoHaConfig."""
        return {"r": self.r, "alpha": self.alpha, "init_weights": True}

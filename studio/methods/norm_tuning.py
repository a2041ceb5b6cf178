"""Norm tuning: train scale and shift of the normalisation layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from studio.errors import MethodError
from studio.methods.method import Init, Method, Params, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class NormTuning(Method):
    """`y = x̂ ⊙ (g + Δg) + (b + Δb)`, where `x̂` is the normalised input: LayerNorm's scale and
    shift, or RMSNorm's scale (also in Gemma's form `1 + g`), stored as differences.

    When to use it: for the smallest change that works on any model; it merges exactly.
    Cost: one (RMSNorm) or two (LayerNorm) numbers per hidden unit and norm.
    Source: arXiv:2312.11420.
    """

    title: ClassVar[str] = "Norm tuning"
    paper: ClassVar[str] = "arXiv:2312.11420"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LN_TUNING"
    base_learning_rate: ClassVar[float] = 2e-3
    width_exponent: ClassVar[float] = 2.15
    largest_learning_rate: ClassVar[float] = 0.156
    tensor_format: ClassVar[str] = "ln_tuning_layers.{}"

    name: Literal["norm_tuning"] = "norm_tuning"

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return every LayerNorm and RMSNorm.

        Raises:
            MethodError: The model's norms have no weights.
        """
        found = [site for site in anatomy.norms() if anatomy.trains(site)]
        if not found:
            raise MethodError(
                f"{type(anatomy.model).__name__} has norms without weights, so that none can be "
                "trained: use LoRA."
            )
        return found

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Return every norm."""
        return anatomy.norms()

    def create(self, site: Site, init: Init) -> Params:
        """Return `Δg = 0`, and `Δb = 0` if the norm has a shift."""
        import torch

        zeros = {"weight": torch.zeros(site.in_features)}
        if getattr(site.module, "bias", None) is not None:
            zeros["bias"] = torch.zeros(site.in_features)
        return zeros

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `x̂ ⊙ Δg + Δb`."""
        import torch

        x = x.float()
        if "bias" in p or isinstance(site.module, torch.nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
        names = ("variance_epsilon", "eps", "epsilon")
        eps = next((getattr(site.module, one) for one in names if hasattr(site.module, one)), 1e-6)
        change = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * p["weight"]
        return change + p["bias"] if "bias" in p else change

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `w Δg` and `w Δb`."""
        return {name: weight * tensor.float() for name, tensor in p.items()}

    def to_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return the full value, which PEFT stores."""
        return tensor + getattr(site.module, name).detach().float()

    def from_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return the difference to the model's own value."""
        own = getattr(site.module, name).detach().float().cpu()
        return tensor - own if tensor.shape == own.shape else tensor

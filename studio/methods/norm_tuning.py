"""Norm tuning: train scale and shift of the normalisation layers."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
        """Return what the norm's own formula gives with the differences, less without, in
        float32.
        """
        module, x = site.module, x.float()
        own = {name: one.detach().float() for name, one in module.named_parameters()}
        return _normed(module, own | {k: own[k] + p[k] for k in p}, x) - _normed(module, own, x)

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


def _normed(module: Any, parameters: Params, x: Tensor) -> Tensor:
    """Return what a norm makes of `x` with these parameters, without its hooks."""
    other = copy(module)
    other._parameters = {**module._parameters, **parameters}
    normed: Tensor = type(module).forward(other, x)
    return normed

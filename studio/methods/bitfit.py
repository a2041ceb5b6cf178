"""BitFit: train only the biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from studio.errors import MethodError
from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class BitFit(Method):
    """`y = W x + (b + Δb)`: only the biases of linear layers and norms train, stored as `Δb`.

    When to use it: on models with biases (GPT-2, Qwen2's attention), for a tiny adapter that
    merges exactly. Llama, Mistral and Gemma have no biases: use norm tuning there, or create zero
    biases.
    Cost: one number per output of each biased layer.
    Source: arXiv:2106.10199.
    """

    title: ClassVar[str] = "BitFit"
    paper: ClassVar[str] = "arXiv:2106.10199"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "BITFIT"
    base_learning_rate: ClassVar[float] = 2e-3
    width_exponent: ClassVar[float] = 1.7
    largest_learning_rate: ClassVar[float] = 0.1
    peft_fields: ClassVar[tuple[str, ...]] = ("create_missing",)
    tensor_format: ClassVar[str] = "bitfit_{}"
    needs_bias: ClassVar[bool] = True

    name: Literal["bitfit"] = "bitfit"
    create_missing: bool = knob(
        False, "Create zero biases on a model without any; the adapter cannot be exported merged "
        "then.", title="Create missing biases",
    )  # fmt: skip

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return every module with a bias, or every linear layer with `create_missing`."""
        found = [site for site in anatomy.biased() if anatomy.trains(site)]
        if found:
            return found
        if self.create_missing:
            return anatomy.linears("all-linear")
        raise MethodError(
            f"{type(anatomy.model).__name__} has no biases to train: use norm tuning, or set "
            "method.create_missing=true to add zero biases."
        )

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Return every linear layer and norm."""
        return [*anatomy.all_linears(), *anatomy.norms()]

    def create(self, site: Site, init: Init) -> Params:
        """Return `Δb = 0`."""
        import torch

        return {"bias": torch.zeros(site.out_features)}

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `Δb`."""
        return p["bias"]

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `w Δb`."""
        return {"bias": weight * p["bias"].float()}

"""BitFit: train the biases and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.errors import MethodError
from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class BitFit(Method):
    """`y = W x + (b + Δb)`: only the bias vectors of linear layers and norms move, stored as `Δb`.

    When to use it: on models with biases (GPT-2, Qwen2's attention, BERT-likes), for a change of a
    fraction of a percent that merges exactly. Llama, Mistral and Gemma have no biases: take norm
    tuning there, or let zero biases be created.
    Cost: one number per output of each biased layer.
    Source: arXiv:2106.10199.
    """

    title: ClassVar[str] = "BitFit"
    paper: ClassVar[str] = "arXiv:2106.10199"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "BITFIT"
    base_learning_rate: ClassVar[float] = 2e-3
    largest_learning_rate: ClassVar[float] = 2e-2
    peft_fields: ClassVar[tuple[str, ...]] = ("create_missing",)
    needs_bias: ClassVar[bool] = True

    name: Literal["bitfit"] = "bitfit"
    create_missing: bool = knob(
        False,
        "On a model without biases, create zero ones; such an adapter cannot be exported merged.",
        title="Create missing biases",
    )

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Every module that owns a bias, else every linear layer if asked."""
        found = anatomy.biased()
        if found:
            return found
        if self.create_missing:
            return anatomy.linears("all-linear")
        raise MethodError(
            f"{type(anatomy.model).__name__} has no biases to train. Norm tuning is the nearest "
            "method; or set method.create_missing=true to add zero biases."
        )

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Any linear layer or norm."""
        return [*anatomy.all_linears(), *anatomy.norms()]

    def create(self, site: Site, init: Init) -> Params:
        """`Δb = 0`."""
        import torch

        return {"bias": torch.zeros(site.out_features)}

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """`Δb`."""
        return p["bias"]

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """`w Δb`."""
        return {"bias": weight * p["bias"].float()}

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Our own type in PEFT's two files, since PEFT trains no norm or Conv1D biases."""
        return {"create_missing": self.create_missing}

    def tensor_name(self, site: Site, name: str) -> str:
        """`….bitfit_bias`."""
        return f"base_model.model.{site.key}.bitfit_{name}"

"""LoRA: a trained low-rank product beside each frozen weight matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.knobs import knob
from studio.methods.method import Method, Params, Phase, targets_knob

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from studio.methods.layer.sites import Anatomy, Site


class Lora(Method):
    """`y = W x + s B A x`, with `A ∈ R^{r×I}`, `B ∈ R^{O×r}` and `s = lora_alpha / r`
    (`lora_alpha / √r` with rsLoRA). `B` starts at zero, so step 0 is exactly the base.

    When to use it: first. It learns most of what full fine-tuning learns on instruction-sized
    data, and merges into the weights at no inference cost.
    Cost: `r (I + O)` parameters per targeted matrix.
    Source: arXiv:2106.09685; rsLoRA arXiv:2312.03732.
    """

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "arXiv:2106.09685"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LORA"
    peft_fields: ClassVar[tuple[str, ...]] = ("r", "lora_alpha", "lora_dropout", "use_rslora")
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "bias": ("none",),
        "fan_in_fan_out": (True, False),
        "init_lora_weights": (True, False, "gaussian", "pissa", "olora", "eva", "orthogonal"),
        "megatron_core": ("megatron.core", None),
        "qalora_group_size": (16, None),
    }

    name: Literal["lora"] = "lora"
    r: int = knob(16, "Rank: capacity and size grow with it.", title="Rank (r)", ge=1, le=1024)
    lora_alpha: float = knob(
        32, "Strength of the update: the product is scaled by alpha / r.", title="Alpha", gt=0
    )
    lora_dropout: float = knob(
        0.0, "Share of inputs dropped while training.", title="Dropout", ge=0, lt=1, advanced=True
    )
    use_rslora: bool = knob(
        False,
        "Scale by alpha / √r, which keeps large ranks stable.",
        title="rsLoRA scaling",
        advanced=True,
    )
    target_modules: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = targets_knob(
        "Which linear layers to adapt: a group, or module names."
    )

    @property
    def scaling(self) -> float:
        """The factor `s` in front of `B A x`."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Every targeted linear layer."""
        return anatomy.linears(self.target_modules)

    def create(self, site: Site, generator: Generator) -> Params:
        """`A` Kaiming-uniform as in PEFT, `B` zero."""
        import torch

        bound = 1 / math.sqrt(site.in_features)
        a = torch.empty(self.r, site.in_features).uniform_(-bound, bound, generator=generator)
        return {"lora_A": a, "lora_B": torch.zeros(site.out_features, self.r)}

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """`s B A dropout(x)`."""
        from torch.nn.functional import dropout, linear

        x = x.to(p["lora_A"].dtype)
        if training and self.lora_dropout:
            x = dropout(x, self.lora_dropout)
        return linear(linear(x, p["lora_A"]), p["lora_B"]) * self.scaling

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """`ΔW = w s B A`."""
        return {"weight": p["lora_B"].float() @ p["lora_A"].float() * (weight * self.scaling)}

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """PEFT's LoraConfig fields."""
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "fan_in_fan_out": any(site.transposed for site in sites),
            "bias": "none",
            "init_lora_weights": True,
        }

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Any linear layer of the model, the output head included."""
        return anatomy.all_linears()

    def tensor_name(self, site: Site, name: str) -> str:
        """PEFT stores `A` and `B` as the weights of two bias-free linears."""
        return f"{super().tensor_name(site, name)}{'.weight' if name else ''}"

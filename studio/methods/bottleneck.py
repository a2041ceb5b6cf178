"""Bottleneck adapters: small two-layer networks after (or beside) each sub-layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.errors import MethodError
from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class Bottleneck(Method):
    """`h + s W_up σ(W_down u + b_down) + s b_up`, with `W_down ∈ R^{r×D}` and `W_up ∈ R^{D×r}`.

    `h` is a sub-layer's output and `x` the residual stream that enters it. Houlsby reads `u = h`
    after the attention and after the MLP; Pfeiffer reads `u = x + h` after the MLP; parallel reads
    `u = x` beside the MLP, usually with a scaling above one. `W_up` starts at zero, so step 0 is
    exactly the base.

    When to use it: as a non-linear alternative to LoRA; it stacks well on other methods. It cannot
    be merged into the weights.
    Cost: `2 r D + r + D` parameters per site, and two small products per token at inference.
    Source: Houlsby arXiv:1902.00751; Pfeiffer arXiv:2005.00247; parallel arXiv:2110.04366.
    """

    title: ClassVar[str] = "Bottleneck adapter"
    paper: ClassVar[str] = "arXiv:1902.00751"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    peft_type: ClassVar[str] = "BOTTLENECK"
    base_learning_rate: ClassVar[float] = 6e-4
    width_exponent: ClassVar[float] = 1.25
    largest_learning_rate: ClassVar[float] = 3e-2
    tensor_format: ClassVar[str] = "bottleneck_{}"
    adapterhub: ClassVar[bool] = True
    peft_fixed: ClassVar[dict[str, Any]] = {"target_modules": None}
    peft_fields: ClassVar[tuple[str, ...]] = (
        "placement", "bottleneck_dim", "reduction_factor", "non_linearity", "adapter_dropout",
        "scaling", "init_weights",
    )  # fmt: skip

    name: Literal["bottleneck"] = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = knob(
        "houlsby", "After attention and MLP, after the MLP on the residual, or beside the MLP."
    )
    bottleneck_dim: int = knob(
        0, "Inner size r; 0 divides the hidden size by the reduction factor.", ge=0, le=16384,
        title="Bottleneck size", words={"auto": 0},
    )  # fmt: skip
    reduction_factor: float = knob(
        16, "Hidden size divided by this gives r.", ge=1, title="Reduction factor"
    )
    non_linearity: Literal["swish", "relu", "gelu", "tanh", "linear"] = knob(
        "swish", "Activation σ between the two projections.", title="Activation", advanced=True
    )
    adapter_dropout: float = knob(
        0.0, "Dropout on the adapter's input in training.", title="Dropout", ge=0, lt=1,
        advanced=True,
    )  # fmt: skip
    scaling: float = knob(1.0, "Scale s of the adapter's output.", advanced=True)
    init_weights: Literal["zero_up", "bert"] = knob(
        "zero_up", "zero_up starts exactly at the base; bert draws both projections from "
        "N(0, 0.02).", title="Initialisation", advanced=True,
    )  # fmt: skip

    @property
    def reads(self) -> tuple[str, ...]:
        """The output, the residual stream, or both."""
        return {"houlsby": ("h",), "pfeiffer": ("x", "h"), "parallel": ("x",)}[self.placement]

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return the attention blocks (Houlsby only) and the MLPs.

        Raises:
            MethodError: The placement reads a residual stream that this model does not expose.
        """
        attentions = anatomy.attentions() if self.placement == "houlsby" else []
        both = [*attentions, *anatomy.mlps()]
        if self.placement != "houlsby" and any(anatomy.residual_norm(s) is None for s in both):
            raise MethodError(
                f"{type(anatomy.model).__name__} has no norm before its feed-forward blocks, so "
                f"the {self.placement} placement cannot read the residual stream: use houlsby."
            )
        return sorted(both, key=lambda site: site.layer)

    def size(self, hidden: int) -> int:
        """Return the inner size r."""
        return self.bottleneck_dim or max(1, int(hidden // self.reduction_factor))

    def create(self, site: Site, init: Init) -> Params:
        """Return `W_down` from N(0, 0.02), `W_up` zero (or N(0, 0.02)), zero biases."""
        import torch

        r, d = self.size(site.in_features), site.in_features
        down = torch.empty(r, d).normal_(std=0.02, generator=init.generator)
        up = torch.zeros(d, r)
        if self.init_weights == "bert":
            up.normal_(std=0.02, generator=init.generator)
        return {
            "down.weight": down, "down.bias": torch.zeros(r), "up.weight": up,
            "up.bias": torch.zeros(d),
        }  # fmt: skip

    def transform(self, p: Params, x: Tensor, h: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `s (W_up σ(W_down u + b_down) + b_up)`."""
        from torch.nn.functional import dropout, linear

        u = {"houlsby": lambda: h, "pfeiffer": lambda: x + h, "parallel": lambda: x}
        inner = u[self.placement]()
        p = {name: tensor.to(inner.dtype) for name, tensor in p.items()}
        if training and self.adapter_dropout:
            inner = dropout(inner, self.adapter_dropout)
        inner = self._activate(linear(inner, p["down.weight"], p["down.bias"]))
        return linear(inner, p["up.weight"], p["up.bias"]) * self.scaling

    def _activate(self, z: Tensor) -> Tensor:
        from torch.nn import functional

        if self.non_linearity == "linear":
            return z
        name = {"swish": "silu"}.get(self.non_linearity, self.non_linearity)
        return getattr(functional, name)(z)

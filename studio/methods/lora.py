"""LoRA: a trained low-rank product beside each frozen weight matrix, and its variants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from studio.errors import MethodError
from studio.fields import knob
from studio.methods.method import Init, LinearMethod, Params, Phase, Targets, targets_field

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site

RANDOM_INITS = (True, False, "gaussian", "eva", "orthogonal")


class Lora(LinearMethod):
    """`y = W x + s B A x`, with `A ∈ R^{r×I}`, `B ∈ R^{O×r}` and `s = lora_alpha / r`
    (`lora_alpha / √r` with rsLoRA). `B` starts at zero, so step 0 is exactly the base.

    DoRA also trains the norm of each row: `y = m ⊙ (W + s B A) x / ‖W + s B A‖`.
    PiSSA starts `A`, `B` at the r largest singular directions of `W` and trains the difference:
    `y = W x + s (B A − B₀ A₀) x`, so step 0 is still the base; it is stored as LoRA of rank 2r.
    QLoRA is this method over a base loaded in 4 bit (`model.quantization: nf4`).

    When to use it: first. It learns most of what full fine-tuning learns on instruction data, and
    merges into the weights without inference cost.
    Cost: `r (I + O)` parameters per targeted matrix; DoRA `O` more and slower steps.
    Source: arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353; PiSSA
    arXiv:2404.02948; QLoRA arXiv:2305.14314.
    """

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "arXiv:2106.09685"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LORA"
    is_low_rank: ClassVar[bool] = True
    peft_fields: ClassVar[tuple[str, ...]] = (
        "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
    )  # fmt: skip
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "bias": ("none",),
        "fan_in_fan_out": (True, False),
        "init_lora_weights": RANDOM_INITS,
        "megatron_core": ("megatron.core", None),
        "qalora_group_size": (16, None),
    }

    name: Literal["lora"] = "lora"
    r: int = knob(16, "Rank: capacity and size of the adapter.", title="Rank (r)", ge=1, le=1024)
    lora_alpha: float = knob(32, "Scale of the update: alpha / r.", title="Alpha", gt=0)
    target_modules: Targets = targets_field()
    lora_dropout: float = knob(
        0.0,
        "Dropout on the adapter's input in training.",
        title="Dropout",
        ge=0,
        lt=1,
        advanced=True,
    )
    use_rslora: bool = knob(
        False, "Scale by alpha / √r, which is stable at large ranks.", title="rsLoRA scaling",
        advanced=True,
    )  # fmt: skip
    use_dora: bool = knob(
        False, "Train the norm of each weight row too (DoRA): often better at low rank, slower.",
        title="DoRA", advanced=True,
    )  # fmt: skip
    init_lora_weights: Literal["default", "gaussian", "pissa"] = knob(
        "default", "Initial A: Kaiming-uniform, normal, or the largest singular directions of W.",
        title="Initialisation", advanced=True,
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.use_dora and self.init_lora_weights == "pissa":
            raise ValueError("DoRA and the pissa initialisation cannot be combined; choose one")
        return self

    @property
    def scaling(self) -> float:
        """Scale `s` of `B A x`."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return every targeted linear layer; a group leaves out layers narrower than r.

        Raises:
            MethodError: A name matches nothing, or r is larger than a layer named by hand.
        """
        sites = super().sites(anatomy)
        if isinstance(self.target_modules, str):
            wide = [s for s in sites if min(s.in_features, s.out_features) >= self.r]
            sites = wide or sites
        for site in sites:
            if self.r > min(site.in_features, site.out_features):
                raise MethodError(
                    f"r = {self.r} is larger than {site.key} ({site.out_features} × "
                    f"{site.in_features}); use at most {min(site.in_features, site.out_features)}."
                )
        return sites

    def create(self, site: Site, init: Init) -> Params:
        """Return `A` by its initialisation, zero `B`, and for DoRA the row norms of `W`."""
        import torch

        from studio.backbone.sites import dense_weight

        a = torch.empty(self.r, site.in_features)
        if self.init_lora_weights == "gaussian":
            a.normal_(std=1 / self.r, generator=init.generator)
        else:
            a.uniform_(-1, 1, generator=init.generator).mul_(site.in_features**-0.5)
        p = {"lora_A": a, "lora_B": torch.zeros(site.out_features, self.r)}
        if self.init_lora_weights == "pissa":
            p = self._principal(dense_weight(site).detach())
        if self.use_dora:
            p["magnitude"] = dense_weight(site).detach().norm(dim=1).cpu()
        return p

    def _principal(self, weight: Tensor) -> Params:
        """Return `B₀ A₀` such that `s B₀ A₀` is the best rank-r approximation of `W`."""
        import torch

        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        root = (s[: self.r] / self.scaling).sqrt()
        a = (root[:, None] * v[: self.r]).cpu().contiguous()
        b = (u[:, : self.r] * root).cpu().contiguous()
        return {"lora_A": a, "lora_B": b, "_lora_A0": a.clone(), "_lora_B0": b.clone()}

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `s B A dropout(x)`, less the start (PiSSA), on renormalised rows (DoRA)."""
        from torch.nn.functional import dropout, linear

        x = x.to(p["lora_A"].dtype)
        if training and self.lora_dropout:
            x = dropout(x, self.lora_dropout)
        change = linear(linear(x, p["lora_A"]), p["lora_B"])
        if "_lora_A0" in p:
            change = change - linear(linear(x, p["_lora_A0"]), p["_lora_B0"])
        change = change * self.scaling
        if not self.use_dora:
            return change
        gain = self._gain(p, site)
        bias = getattr(site.module, "bias", None)
        product = y if bias is None else y - bias
        return (gain - 1) * product + gain * change

    def factors(self, p: Params, site: Site) -> tuple[Tensor, Tensor] | None:
        """Return `A` and `s B`; None for DoRA, whose delta depends on the module's output."""
        import torch

        if self.use_dora:
            return None
        a, b = p["lora_A"], p["lora_B"]
        if "_lora_A0" in p:
            a = torch.cat([a, p["_lora_A0"]])
            b = torch.cat([b, -p["_lora_B0"]], dim=1)
        return a, b * self.scaling

    def _gain(self, p: Params, site: Site) -> Tensor:
        """Return `m / ‖W + s B A‖` per row, with the norm detached as in the paper."""
        from studio.backbone.sites import dense_weight

        row = dense_weight(site) + self.scaling * (p["lora_B"] @ p["lora_A"]).detach()
        return p["magnitude"] / row.norm(dim=1)

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `ΔW = w s B A`, less the start (PiSSA), on renormalised rows (DoRA)."""
        from studio.backbone.sites import dense_weight

        change = p["lora_B"].float() @ p["lora_A"].float()
        if "_lora_A0" in p:
            change = change - p["_lora_B0"] @ p["_lora_A0"]
        change = change * self.scaling
        if self.use_dora:
            own = dense_weight(site)
            change = self._gain(p, site)[:, None] * (own + change) - own
        return {"weight": weight * change}

    # -- PEFT's files --------------------------------------------------------------------------

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return the fields of PEFT's LoraConfig; PiSSA is stored as LoRA of rank 2r."""
        doubled = 2 if self.init_lora_weights == "pissa" else 1
        alpha_factor = math.sqrt(doubled) if self.use_rslora else doubled
        return {
            "r": self.r * doubled,
            "lora_alpha": self.lora_alpha * alpha_factor,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "fan_in_fan_out": any(site.transposed for site in sites),
            "bias": "none",
            "init_lora_weights": True,
        }

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """Return `A` and `B`; for PiSSA `[A; A₀]` and `[B, −B₀]`."""
        import torch

        def whole(p: Params) -> Params:
            if "_lora_A0" not in p:
                return p
            return {
                "lora_A": torch.cat([p["lora_A"], p["_lora_A0"]]),
                "lora_B": torch.cat([p["lora_B"], -p["_lora_B0"]], dim=1),
            }

        return super().to_tensors(sites, {key: whole(p) for key, p in params.items()})

    def tensor_name(self, site: Site, name: str) -> str:
        """Return PEFT's key: `A` and `B` are weights of two linears there."""
        ending = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight",
                  "magnitude": "lora_magnitude_vector"}  # fmt: skip
        return super().tensor_name(site, ending.get(name, name))

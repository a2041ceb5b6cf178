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
    Routed experts of a mixture have a product each, of rank `r / experts` (at least 1) at the same
    scale; the router stays frozen. DoRA and dropout are not defined for them.

    When to use it: as the first choice. It learns most of what full fine-tuning learns on
    instruction data, and merges into the weights without inference cost.
    Cost: `r (I + O)` parameters per targeted matrix; DoRA `O` more and slower steps.
    Source: arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353; PiSSA
    arXiv:2404.02948.
    """

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "arXiv:2106.09685"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "LORA"
    is_low_rank: ClassVar[bool] = True
    peft_fields: ClassVar[tuple[str, ...]] = (
        "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
    )  # fmt: skip
    peft_defaults: ClassVar[dict[str, Any]] = {"r": 8, "lora_alpha": 8}
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "bias": ("none",), "fan_in_fan_out": (True, False), "init_lora_weights": RANDOM_INITS,
        "megatron_core": ("megatron.core", None), "qalora_group_size": (16, None),
    }  # fmt: skip

    name: Literal["lora"] = "lora"
    r: int = knob(16, "Rank: capacity and size of the adapter.", title="Rank (r)", ge=1, le=1024)
    lora_alpha: float = knob(32, "Scale of the update: alpha / r.", title="Alpha", gt=0)
    target_modules: Targets = targets_field()
    lora_dropout: float = knob(
        0.0, "Dropout on the adapter's input in training; routed experts have none.",
        title="Dropout", ge=0, lt=1, advanced=True,
    )  # fmt: skip
    expert_r: int = knob(
        0, "Rank of each routed expert; 0 divides r by the number of experts, at least 1.",
        title="Rank per expert", ge=0, le=1024, advanced=True, words={"auto": 0},
        when={"model": ["experts"]},
    )  # fmt: skip
    use_rslora: bool = knob(
        False, "Scale by alpha / √r, which is stable at large ranks.", title="rsLoRA scaling",
        advanced=True,
    )  # fmt: skip
    use_dora: bool = knob(
        False, "Train the norm of each weight row too (DoRA): often better at low rank, slower.",
        title="DoRA", advanced=True,
    )  # fmt: skip
    modules_to_save: Literal["none", "embeddings"] | tuple[str, ...] = knob(
        "none", "Modules to train in full beside the low-rank products: embeddings (those of the "
        "input and the output head), or module names.", title="Train in full", advanced=True,
    )  # fmt: skip
    trainable_token_indices: Literal["new", "none"] | tuple[int, ...] = knob(
        "new", "Tokens whose embeddings are trained: new means those that were added to the base "
        "(`studio models extend`), or token ids.", title="Trained tokens", advanced=True,
    )  # fmt: skip
    init_lora_weights: Literal["default", "gaussian", "pissa"] = knob(
        "default", "Initial A: Kaiming-uniform, normal, or the largest singular directions of W.",
        title="Initialisation", advanced=True,
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.use_dora and self.init_lora_weights == "pissa":
            raise ValueError("DoRA and the pissa initialisation cannot be combined; choose one")
        if self.init_lora_weights == "pissa" and self.r > 512:
            raise ValueError("pissa is stored at rank 2r, so r must be at most 512")
        return self

    @property
    def scaling(self) -> float:
        """Scale `s` of `B A x`."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def reads(self) -> tuple[str, ...]:
        """`x`, and the output for DoRA."""
        return ("x", "y") if self.use_dora else ("x",)

    @property
    def scales_rows(self) -> bool:
        """True for DoRA."""
        return self.use_dora

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Return every targeted linear layer; a group leaves out layers narrower than r.

        Raises:
            MethodError: A name matches nothing, or r is larger than a layer named by hand.
        """
        sites = self._targeted(anatomy)
        for site in sites:
            if not site.num_experts and self.r > min(site.in_features, site.out_features):
                raise MethodError(
                    f"r = {self.r} is larger than {site.key} ({site.out_features} × "
                    f"{site.in_features}); use at most {min(site.in_features, site.out_features)}."
                )
        return sites

    def _targeted(self, anatomy: Anatomy) -> list[Site]:
        """Return the targeted linear layers and routed experts; DoRA has no rule for experts."""
        targets, experts = self.target_modules, anatomy.experts()
        if isinstance(targets, str):
            routed = [s for s in experts if targets in ("all-linear", "mlp") and not self.use_dora]
            linears = [] if routed else anatomy.linears(targets)
            wide = anatomy.group(targets, narrowest=self.r)
            return [*(wide or linears), *routed]
        named = {name: anatomy.experts_named(name) for name in targets}
        linear = tuple(name for name, found in named.items() if not found)
        chosen = {site.key for found in named.values() for site in found}
        if chosen and self.use_dora:
            raise MethodError(
                f"DoRA is not defined for routed experts such as {min(chosen)}: leave them out of "
                "target_modules, or set method.use_dora=false."
            )
        routed = [site for site in experts if site.key in chosen]
        return [*(anatomy.linears(linear) if linear else ()), *routed]

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Return every linear layer and the routed experts."""
        return [*super().candidates(anatomy), *anatomy.experts()]

    def rank(self, site: Site) -> int:
        """Return the rank of a new adapter at a site: that of one expert, for experts."""
        if not site.num_experts:
            return self.r
        wanted = self.expert_r or max(1, self.r // site.num_experts)
        return min(wanted, site.in_features, site.out_features)

    def create(self, site: Site, init: Init) -> Params:
        """Return `A` by its initialisation, zero `B`, and for DoRA the row norms of `W`.

        Experts have `A (E, r, I)` and `B (E, O, r)`.
        """
        import torch

        from studio.backbone.dense_weights import dense_weight

        if site.num_experts:
            size, rank = site.num_experts, self.rank(site)
            a = torch.empty(size, rank, site.in_features)
            a.uniform_(-1, 1, generator=init.generator).mul_(site.in_features**-0.5)
            return {"lora_A": a, "lora_B": torch.zeros(size, site.out_features, rank)}
        a = torch.empty(self.r, site.in_features)
        if self.init_lora_weights == "gaussian":
            a.normal_(std=1 / self.r, generator=init.generator)
        else:
            a.uniform_(-1, 1, generator=init.generator).mul_(site.in_features**-0.5)
        p = {"lora_A": a, "lora_B": torch.zeros(site.out_features, self.r)}
        if self.init_lora_weights == "pissa":
            p = self._principal(dense_weight(site).detach())
        if self.use_dora:
            p["magnitude"] = torch.linalg.vector_norm(dense_weight(site).detach(), dim=1).cpu()
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
        if "lora_bias" in p:
            change = change + p["lora_bias"]
        change = change * self.scaling
        if not self.use_dora:
            return change
        gain = self._gain(p, site)
        bias = getattr(site.module, "bias", None)
        product = y if bias is None else y - bias
        return (gain - 1) * product + gain * change

    def factors(self, p: Params, site: Site) -> tuple[Tensor, Tensor] | None:
        """Return `A` and `s B`; None for DoRA, whose delta depends on the module's output."""
        found = self.low_rank(p, site)
        return None if found is None or len(found) > 2 else (found[0], found[1])

    def low_rank(self, p: Params, site: Site) -> tuple[Tensor, ...] | None:
        """Return `A` and `s B`, and the norms of DoRA."""
        import torch

        if "lora_bias" in p:
            return None
        a, b = p["lora_A"], p["lora_B"]
        if "_lora_A0" in p:
            a = torch.cat([a, p["_lora_A0"]])
            b = torch.cat([b, -p["_lora_B0"]], dim=1)
        norms = (p["magnitude"],) if self.use_dora and not site.num_experts else ()
        return a, b * self.scaling, *norms

    def _gain(self, p: Params, site: Site) -> Tensor:
        """Return `m / ‖W + s B A‖` per row, with the norm detached as in the paper."""
        import torch

        from studio.backbone.dense_weights import dense_weight

        row = dense_weight(site) + self.scaling * (p["lora_B"] @ p["lora_A"]).detach()
        return p["magnitude"] / torch.linalg.vector_norm(row, dim=1)

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `ΔW = w s B A`, less the start (PiSSA), on renormalised rows (DoRA)."""
        from studio.backbone.dense_weights import dense_weight

        change = p["lora_B"].float() @ p["lora_A"].float()
        if "_lora_A0" in p:
            change = change - p["_lora_B0"] @ p["_lora_A0"]
        change = change * self.scaling
        if self.use_dora and not site.num_experts:
            own = dense_weight(site)
            change = self._gain(p, site)[:, None] * (own + change) - own
        if "lora_bias" in p:
            return {"weight": weight * change, "bias": weight * self.scaling * p["lora_bias"]}
        return {"weight": weight * change}

    # -- PEFT's files --------------------------------------------------------------------------

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return the fields of PEFT's LoraConfig that do not depend on ranks (`patterns`)."""
        return {
            "lora_dropout": 0.0 if any(site.num_experts for site in sites) else self.lora_dropout,
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
        ending = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_bias": "lora_B.bias",
                  "magnitude": "lora_magnitude_vector"}  # fmt: skip
        return super().tensor_name(site, ending.get(name, name))

    def shapes(self, site: Site, tensors: Params) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a site's parameters; the rank is that of the file's `A`."""
        stored, size = tensors.get(self.tensor_name(site, "lora_A")), site.num_experts
        rank = self.r if stored is None else stored.shape[0] // max(1, size)
        if size:
            return {"lora_A": (size, rank, site.in_features),
                    "lora_B": (size, site.out_features, rank)}  # fmt: skip
        found = {"lora_A": (rank, site.in_features), "lora_B": (site.out_features, rank)}
        shapes: dict[str, tuple[int, ...]] = {**found}
        if self.use_dora:
            shapes["magnitude"] = (site.out_features,)
        elif self.tensor_name(site, "lora_bias") in tensors:
            shapes["lora_bias"] = (site.out_features,)
        return shapes

    def to_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return `A` and `B` of experts as one matrix each: `(E r, I)` and `(O, r E)`."""
        if not site.num_experts:
            return tensor
        return tensor.flatten(0, 1) if name == "lora_A" else tensor.permute(1, 2, 0).flatten(1)

    def from_file(self, name: str, tensor: Tensor, site: Site) -> Tensor:
        """Return `A (E, r, I)` and `B (E, O, r)` of experts."""
        size, axis = site.num_experts, 0 if name == "lora_A" else 1
        if not size or tensor.dim() != 2 or tensor.shape[axis] % size:
            return tensor
        if name == "lora_A":
            return tensor.unflatten(0, (size, -1))
        return tensor.unflatten(1, (-1, size)).permute(2, 0, 1).contiguous()

    def patterns(self, sites: list[Site], params: dict[str, Params]) -> dict[str, Any]:
        """Return `r`, `lora_alpha` and PEFT's patterns for sites of another rank than `r`.

        All sites have one scale, so `lora_alpha` follows the rank. PEFT warns of patterns that name
        experts, so beside experts `r` is theirs and the patterns name linear layers.
        """
        if not sites:
            return {"r": self.r, "lora_alpha": self.lora_alpha}
        ranks = {site.key: params[site.key]["lora_A"].shape[-2] for site in sites}
        ranks |= {key: 2 * ranks[key] for key, p in params.items() if "_lora_A0" in p}
        experts = [ranks[site.key] for site in sites if site.num_experts]
        usual = max(ranks.values(), key=list(ranks.values()).count)
        common = experts[0] if experts else self.r if self.r in ranks.values() else usual
        found = {}
        for site in sites:
            if ranks[site.key] == common:
                continue
            ends = {n for k, n in ranks.items() if f".{k}".endswith(f".{site.tail}")}
            # `down_proj` names that of a shared expert, and of the experts, too: write it out then.
            found[site.tail if len(ends) == 1 else site.key] = ranks[site.key]
        power = 0.5 if self.use_rslora else 1
        alphas = {key: self.scaling * rank**power for key, rank in found.items()}
        fields: dict[str, Any] = {"r": common, "lora_alpha": self.scaling * common**power}
        if any("lora_bias" in p for p in params.values()):
            fields["lora_bias"] = True
        return {**fields, "rank_pattern": found, "alpha_pattern": alphas} if found else fields

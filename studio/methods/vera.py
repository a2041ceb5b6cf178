"""VeRA: shared random projections, trained scaling vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.errors import AdapterError
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

    from studio.backbone.sites import Anatomy, Site

PEFT_GAIN = math.sqrt(6)  # of the projections: equal keys give equal ones


class Vera(LinearMethod):
    """`y = W x + b ⊙ B (d ⊙ A x)`: `A ∈ R^{r×I}` and `B ∈ R^{O×r}` are random, frozen and shared
    by all layers (each uses the part that fits); only `d ∈ R^r` and `b ∈ R^O` are trained.

    When to use it: when many adapters must be stored; each has a few kilobytes. It merges exactly.
    Cost: `r + O` parameters per targeted matrix.
    Source: arXiv:2310.11454.
    """

    title: ClassVar[str] = "VeRA"
    paper: ClassVar[str] = "arXiv:2310.11454"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "VERA"
    base_learning_rate: ClassVar[float] = 4e-3
    width_exponent: ClassVar[float] = 1.5
    largest_learning_rate: ClassVar[float] = 8.5e-2
    tensor_format: ClassVar[str] = "vera_{}"
    peft_fields: ClassVar[tuple[str, ...]] = (
        "r", "projection_prng_key", "vera_dropout", "d_initial",
    )  # fmt: skip
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "bias": ("none",), "fan_in_fan_out": (True, False), "init_weights": (True, False),
        "save_projection": (True,),
    }  # fmt: skip

    name: Literal["vera"] = "vera"
    r: int = knob(256, "Rank of the shared projections.", title="Rank (r)", ge=1, le=8192)
    target_modules: Targets = targets_field()
    d_initial: float = knob(0.1, "Initial value of d.", title="Initial d", advanced=True)
    vera_dropout: float = knob(
        0.0, "Dropout on the adapter's input in training.", title="Dropout", ge=0, lt=1,
        advanced=True,
    )  # fmt: skip
    projection_prng_key: int = knob(
        0, "Seed of the shared projections.", title="Projection seed", ge=0, le=2**31 - 1,
        advanced=True,
    )  # fmt: skip

    def num_trained(self, inputs: int, outputs: int) -> int:
        """Return `r + O`."""
        return self.r + outputs

    def create(self, site: Site, init: Init) -> Params:
        """Return constant `d`, zero `b` and the shared random projections."""
        import torch

        if "A" not in init.shared:
            generator = torch.Generator().manual_seed(self.projection_prng_key)
            widest = max(s.in_features for s in init.sites or (site,))
            tallest = max(s.out_features for s in init.sites or (site,))
            init.shared["A"] = kaiming_uniform(self.r, widest, generator, PEFT_GAIN)
            init.shared["B"] = kaiming_uniform(tallest, self.r, generator, PEFT_GAIN)
        return {
            "lambda_d": torch.full((self.r,), self.d_initial),
            "lambda_b": torch.zeros(site.out_features),
            "__A": init.shared["A"],
            "__B": init.shared["B"],
        }

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """Return `b ⊙ B (d ⊙ A x)`."""
        from torch.nn.functional import dropout, linear

        x = x.to(p["lambda_d"].dtype)
        if training and self.vera_dropout:
            x = dropout(x, self.vera_dropout)
        inner = linear(x, p["__A"][:, : site.in_features]) * p["lambda_d"]
        return linear(inner, p["__B"][: site.out_features]) * p["lambda_b"]

    def factors(self, p: Params, site: Site) -> tuple[Tensor, Tensor]:
        """Return `d ⊙ A` and `b ⊙ B`."""
        a, b = p["__A"][:, : site.in_features], p["__B"][: site.out_features]
        return p["lambda_d"][:, None] * a, p["lambda_b"][:, None] * b

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """Return `w (b ⊙ B) (d ⊙ A)`."""
        a, b = self.factors(p, site)
        return {"weight": weight * b @ a}

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """Return the fields of PEFT's VeraConfig, with the projections in the file."""
        turned = any(site.transposed for site in sites)
        fixed = {"save_projection": True, "bias": "none", "fan_in_fan_out": turned}
        return super().to_peft(sites) | fixed

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """Return the vectors of each layer and the shared projections."""
        one = params[sites[0].key]
        shared = {"base_model.vera_A": one["__A"], "base_model.vera_B": one["__B"]}
        return {**super().to_tensors(sites, params), **shared}

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Return sites and parameters of the vectors and the shared projections.

        Raises:
            AdapterError: A tensor is missing, unknown, or has another shape than this model's.
        """
        left = dict(tensors)
        a, b = left.pop("base_model.vera_A", None), left.pop("base_model.vera_B", None)
        if a is None or b is None:
            raise AdapterError("The VeRA file has no projections (save_projection=false).")
        sites = [s for s in anatomy.all_linears() if self.tensor_name(s, "lambda_d") in left]
        wide = max((site.in_features for site in sites), default=0)
        tall = max((site.out_features for site in sites), default=0)
        if a.shape != (self.r, wide) or b.shape != (tall, self.r):
            raise AdapterError(
                f"The VeRA projections have shapes {tuple(a.shape)} and {tuple(b.shape)}, but this "
                f"model needs {(self.r, wide)} and {(tall, self.r)}: made for another base."
            )
        sites, params = super().from_tensors(left, anatomy)
        shared = {"__A": a.float(), "__B": b.float()}
        return sites, [{**p, **shared} for p in params]

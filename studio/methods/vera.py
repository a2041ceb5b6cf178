"""VeRA: shared random projections, trained scaling vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.errors import AdapterError
from studio.fields import knob
from studio.methods.method import Init, Method, Params, Phase, targets_knob

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone.sites import Anatomy, Site


class Vera(Method):
    """`y = W x + b ⊙ B (d ⊙ A x)`: `A ∈ R^{r×I}` and `B ∈ R^{O×r}` are random, frozen and shared
    by all layers (each uses the part that fits); only `d ∈ R^r` and `b ∈ R^O` are trained.

    When to use it: when many adapters must be kept; each is a few kilobytes. It merges exactly.
    Cost: `r + O` parameters per targeted matrix.
    Source: arXiv:2310.11454.
    """

    title: ClassVar[str] = "VeRA"
    paper: ClassVar[str] = "arXiv:2310.11454"
    phase: ClassVar[Phase] = Phase.DELTA
    peft_type: ClassVar[str] = "VERA"
    base_learning_rate: ClassVar[float] = 4e-3
    largest_learning_rate: ClassVar[float] = 3e-2
    peft_fields: ClassVar[tuple[str, ...]] = (
        "r",
        "projection_prng_key",
        "vera_dropout",
        "d_initial",
    )
    peft_neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "bias": ("none",), "fan_in_fan_out": (True, False), "init_weights": (True, False),
        "save_projection": (True,),
    }  # fmt: skip

    name: Literal["vera"] = "vera"
    r: int = knob(256, "Rank of the shared projections.", title="Rank (r)", ge=1, le=8192)
    target_modules: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = targets_knob(
        "Which linear layers to adapt: a group, or module names."
    )
    d_initial: float = knob(0.1, "First value of d.", title="Initial d", advanced=True)
    vera_dropout: float = knob(
        0.0, "Share of inputs dropped while training.", title="Dropout", ge=0, lt=1, advanced=True
    )
    projection_prng_key: int = knob(
        0, "Seed of the shared projections.", title="Projection seed", ge=0, le=2**31 - 1,
        advanced=True,
    )  # fmt: skip

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """Every targeted linear layer."""
        return anatomy.linears(self.target_modules)

    def candidates(self, anatomy: Anatomy) -> list[Site]:
        """Any linear layer."""
        return anatomy.all_linears()

    def create(self, site: Site, init: Init) -> Params:
        """`d` constant, `b` zero; the projections are drawn once and shared."""
        import torch

        if "A" not in init.shared:
            generator = torch.Generator().manual_seed(self.projection_prng_key)
            widest = max(s.in_features for s in init.sites or (site,))
            tallest = max(s.out_features for s in init.sites or (site,))
            init.shared["A"] = _kaiming(self.r, widest, generator)
            init.shared["B"] = _kaiming(tallest, self.r, generator)
        return {
            "lambda_d": torch.full((self.r,), self.d_initial),
            "lambda_b": torch.zeros(site.out_features),
            "__A": init.shared["A"],
            "__B": init.shared["B"],
        }

    def delta(self, p: Params, x: Tensor, y: Tensor, site: Site, *, training: bool) -> Tensor:
        """`b ⊙ B (d ⊙ A x)`."""
        from torch.nn.functional import dropout, linear

        x = x.to(p["lambda_d"].dtype)
        if training and self.vera_dropout:
            x = dropout(x, self.vera_dropout)
        inner = linear(x, p["__A"][:, : site.in_features]) * p["lambda_d"]
        return linear(inner, p["__B"][: site.out_features]) * p["lambda_b"]

    def fold(self, p: Params, site: Site, weight: float) -> Params:
        """`w (b ⊙ B) (d ⊙ A)`."""
        left = p["lambda_b"][:, None] * p["__B"][: site.out_features]
        return {
            "weight": weight * left @ (p["lambda_d"][:, None] * p["__A"][:, : site.in_features])
        }

    def to_peft(self, sites: list[Site]) -> dict[str, Any]:
        """PEFT's VeraConfig, with the projections in the file."""
        return {
            "r": self.r, "projection_prng_key": self.projection_prng_key, "save_projection": True,
            "vera_dropout": self.vera_dropout, "d_initial": self.d_initial, "bias": "none",
            "fan_in_fan_out": any(site.transposed for site in sites),
        }  # fmt: skip

    def tensor_name(self, site: Site, name: str) -> str:
        """PEFT's names."""
        return f"base_model.model.{site.key}.vera_{name}"

    def to_tensors(self, sites: list[Site], params: dict[str, Params]) -> Params:
        """The vectors of each layer, and the shared projections once."""
        one = params[sites[0].key]
        shared = {"base_model.vera_A": one["__A"], "base_model.vera_B": one["__B"]}
        return {**super().to_tensors(sites, params), **shared}

    def from_tensors(self, tensors: Params, anatomy: Anatomy) -> tuple[list[Site], list[Params]]:
        """Read the vectors and the shared projections.

        Raises:
            AdapterError: A tensor is missing, unknown, or has another shape than this model's.
        """
        left = dict(tensors)
        a, b = left.pop("base_model.vera_A", None), left.pop("base_model.vera_B", None)
        if a is None or b is None:
            raise AdapterError("This VeRA file lacks its projections (save_projection=false).")
        named = {site.key: site for site in anatomy.all_linears()}
        keys = {key for key in named for name in ("lambda_d",) if self._name(key, name) in left}
        shared = {"A": a.float(), "B": b.float()}
        wide = max((named[key].in_features for key in keys), default=0)
        tall = max((named[key].out_features for key in keys), default=0)
        if a.shape != (self.r, wide) or b.shape != (tall, self.r):
            raise AdapterError(
                f"The VeRA projections have shapes {tuple(a.shape)} and {tuple(b.shape)}, but this "
                f"model needs {(self.r, wide)} and {(tall, self.r)}: made for another base."
            )
        sites, params = super().from_tensors(left, anatomy)
        return sites, [{**p, "__A": shared["A"], "__B": shared["B"]} for p in params]

    def _name(self, key: str, name: str) -> str:
        return f"base_model.model.{key}.vera_{name}"


def _kaiming(rows: int, columns: int, generator: Any) -> Tensor:
    """Kaiming-uniform with PEFT's gain, so that equal keys give equal projections."""
    import torch

    bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

"""What an adapter changed: per layer and module, how much and of what rank.

For adapters that fold into weights: the relative norm `‖ΔW‖ / ‖W‖` and the effective rank of `ΔW`,
`exp(H(σ / Σσ))`, the exponential of the entropy of its normalised singular values
(Roy & Vetterli 2007, "The effective rank"). For bottlenecks and virtual tokens, which have
no `ΔW`, the norm of their own parameters against their start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.methods.method import Phase
from studio.spec import ModelSource

if TYPE_CHECKING:
    from torch import Tensor

    from studio.methods.layer import Backbone, Site


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One cell of the heat map; `effective_rank` is None where there is no matrix."""

    layer: int
    module: str
    relative_norm: float
    effective_rank: float | None


def changes(source: ModelSource, folder: Path) -> list[Change]:
    """Load base and adapter on the CPU and measure every site.

    Raises:
        AdapterError: The adapter does not fit this base.
    """
    from studio.methods.layer import Backbone
    from studio.models.loading import load

    backbone = Backbone(load(source, "cpu").model)
    backbone.load("a", folder)
    return measure(backbone, "a")


def measure(backbone: Backbone, name: str) -> list[Change]:
    """Measure every site of a loaded adapter."""
    import torch

    adapter = backbone.adapters[name]
    found = []
    with torch.no_grad():
        for site in adapter.sites:
            params = adapter.params[site.key]
            if adapter.method.phase is Phase.DELTA:
                delta = adapter.method.fold(params, site, 1.0)
                tensor = delta.get("weight", delta.get("bias"))
                assert tensor is not None
                found.append(_change(site, tensor, _own(site, "weight" in delta)))
            elif adapter.method.phase is Phase.GAIN:
                gain = torch.cat([t - 1 for t in params.values()])
                found.append(_change(site, gain, torch.ones_like(gain)))
            else:
                flat = torch.cat([t.flatten() for k, t in params.items() if "_" != k[0]])
                found.append(_change(site, flat, torch.ones(1)))
    return found


def _change(site: Site, delta: Tensor, own: Tensor) -> Change:
    norm = float(delta.norm()) / max(float(own.norm()), 1e-12)
    module = site.key.rpartition(".")[2] or "model"
    return Change(
        layer=site.layer,
        module=module,
        relative_norm=norm,
        effective_rank=effective_rank(delta) if delta.dim() == 2 else None,
    )


def effective_rank(matrix: Tensor) -> float:
    """`exp(−Σ p log p)` with `p = σ / Σσ`; 0 for a zero matrix."""
    import torch

    values = torch.linalg.svdvals(matrix.float())
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total
    return float(torch.exp(-(p * p.clamp(min=1e-30).log()).sum()))


def _own(site: Site, weight: bool) -> Tensor:
    from studio.methods.layer.sites import dense_weight

    if weight and site.kind == "linear":
        return dense_weight(site)
    own = getattr(site.module, "weight" if weight else "bias", None)
    import torch

    return own.float() if isinstance(own, torch.Tensor) else torch.ones(1)

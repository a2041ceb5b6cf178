"""Measure the change an adapter makes per layer and module: its norm and effective rank.

For adapters that fold into weights: the relative norm `‖ΔW‖ / ‖W‖` and the effective rank of `ΔW`,
`exp(H(σ / Σσ))`, the exponential of the entropy of its normalised singular values
(Roy & Vetterli 2007, "The effective rank"). For bottlenecks and virtual tokens, which have no `ΔW`,
the root mean square of their own parameters. Measuring loads the base, so the result is stored
beside the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from studio import atomic
from studio.adapter_stack import StackItem
from studio.adapters.adapter_lineage import base_of
from studio.adapters.library import resolve
from studio.adapters.merge import BASE
from studio.errors import AdapterError
from studio.fields import knob
from studio.home import Home
from studio.job_request import Request
from studio.methods.method import Phase
from studio.models.find_model import facts
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone import Adapter, Backbone, Site

PICTURE = "picture.json"


class PictureRequest(Request):
    """Measure what an adapter changed: relative norm and effective rank per layer and module."""

    kind: ClassVar[str] = "picture"
    adapter: str = knob(
        "", "Name, run number or id of the adapter.", title="Adapter", positional=True,
        metavar="ADAPTER", of="adapter",
    )  # fmt: skip
    model: ModelSource = knob(
        ModelSource(path=""), "Base model; the one of the passport by default.", **BASE
    )
    name: str = knob("", "Name of the job.", title="Name", max_length=120, flag="-")

    def checked(self, home: Home) -> Self:
        """Return it with its adapter found; no model means the adapter's own base."""
        folder = resolve(home, self.adapter)
        facts(model := base_of(self.model, (StackItem(name=str(folder)),)))
        return self.model_copy(update={"adapter": str(folder), "model": model})

    def perform(self, home: Home, *_: Any) -> Iterator[Event]:
        """Measure, and store the picture beside the adapter."""
        yield Loading(text="Measuring what the adapter changed")
        draw(self.model, Path(self.adapter))
        yield Finished()

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return what was measured."""
        return drawn(Path(self.adapter)) or {"changes": []}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One cell of the heat map; `layer` is -1 outside the layers.

    `relative` is True if `norm` is relative to the weight's, else it is the root mean square of the
    parameters. `effective_rank` is None where there is no matrix.
    """

    layer: int
    module: str
    norm: float
    relative: bool
    effective_rank: float | None


def draw(source: ModelSource, folder: Path) -> Path:
    """Measure an adapter on its base and store the picture beside it.

    Raises:
        StudioError: The base cannot be loaded, or the adapter does not fit it.
    """
    found = [asdict(change) for change in changes(source, folder)]
    atomic.write(folder / PICTURE, json.dumps({"base": source.path, "changes": found}))
    return folder / PICTURE


def drawn(folder: Path) -> dict[str, Any] | None:
    """Return the picture stored beside an adapter, if there is one."""
    values = atomic.read_object(folder / PICTURE)
    return values if "changes" in values else None


def changes(source: ModelSource, folder: Path) -> list[Change]:
    """Load base and adapter (or the whole tuned model) on the CPU and measure every site.

    Raises:
        AdapterError: The adapter does not fit this base.
    """
    from studio.backbone import Backbone
    from studio.models.loading import load

    backbone = Backbone(load(source, "cpu").model)
    if (folder / "config.json").is_file():
        return compared(backbone, Backbone(load(ModelSource(path=str(folder)), "cpu").model))
    backbone.load("a", folder)
    return measure(backbone, "a")


def compared(base: Backbone, tuned: Backbone) -> list[Change]:
    """Measure every linear layer and norm of a tuned model against its base.

    Raises:
        AdapterError: Their shapes differ.
    """
    import torch

    found = []
    mine, theirs = ([*one.anatomy.all_linears(), *one.anatomy.norms()] for one in (base, tuned))
    pairs = {site.key: site for site in theirs}
    with torch.no_grad():
        for site in mine:
            other = pairs.get(site.key)
            if other is None or other.module.weight.shape != site.module.weight.shape:
                raise AdapterError(f"{site.key} has another shape: this is not its base.")
            own = _own(site, weight=True)
            found.append(_change(base, site, _own(other, weight=True) - own, own))
    return found


def measure(backbone: Backbone, name: str) -> list[Change]:
    """Measure every site of a loaded adapter."""
    import torch

    adapter = backbone.adapters[name]
    with torch.no_grad():
        return [change for site in adapter.sites for change in _of_site(backbone, adapter, site)]


def _of_site(backbone: Backbone, adapter: Adapter, site: Site) -> list[Change]:
    import torch

    params, phase = adapter.params[site.key], adapter.method.phase
    if phase is Phase.DELTA:
        delta = adapter.method_at(site.key).fold(params, site, 1.0)
        tensor = delta.get("weight", delta.get("bias"))
        assert tensor is not None
        return [_change(backbone, site, tensor, _own(site, weight="weight" in delta))]
    if phase is Phase.GAIN:
        gain = torch.cat([values - 1 for values in params.values()])
        return [_change(backbone, site, gain, torch.ones_like(gain))]
    if phase is Phase.KEYS_VALUES:
        from studio.backbone.virtual_tokens import split_layers

        table = adapter.method.virtual_tokens(params)
        layers = split_layers(table, backbone.anatomy)
        return [
            Change(layer=backbone.anatomy.layer_of(keys.module), module=name, norm=_size(part),
                   relative=False, effective_rank=effective_rank(part.transpose(0, 1).flatten(1)))
            for keys, layer in zip(backbone.anatomy.key_shapes, layers, strict=True)
            for part, name in zip(layer, ("prefix keys", "prefix values"), strict=True)
        ]  # fmt: skip
    if phase is Phase.PROMPT:
        table = adapter.method.virtual_tokens(params)
        return [Change(layer=-1, module="prompt", norm=_size(table), relative=False,
                       effective_rank=effective_rank(table))]  # fmt: skip
    numbers = torch.cat([values.flatten() for values in params.values()])
    return [_change(backbone, site, numbers, None)]


def _change(backbone: Backbone, site: Site, delta: Tensor, own: Tensor | None) -> Change:
    layer = backbone.anatomy.layer_keys[site.layer] + "." if site.layer >= 0 else site.key
    return Change(
        layer=site.layer,
        module=site.key.removeprefix(layer) or "model",
        norm=_size(delta) if own is None else float(delta.norm()) / max(float(own.norm()), 1e-12),
        relative=own is not None,
        effective_rank=effective_rank(delta) if delta.dim() == 2 else None,
    )


def _size(tensor: Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())


def effective_rank(matrix: Tensor) -> float:
    """Return `exp(−Σ p log p)` with `p = σ / Σσ`; 0 for a zero matrix."""
    import torch

    values = torch.linalg.svdvals(matrix.float())
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total
    return float(torch.exp(-(p * p.clamp(min=1e-30).log()).sum()))


def _own(site: Site, weight: bool) -> Tensor:
    import torch

    from studio.backbone.dense_weights import dense_weight

    if weight and site.kind in ("linear", "experts"):
        return dense_weight(site)
    own = getattr(site.module, "weight" if weight else "bias", None)
    return own.float() if isinstance(own, torch.Tensor) else torch.ones(1)

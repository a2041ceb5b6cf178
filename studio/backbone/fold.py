"""Fold a stack of adapters into new weights; adapters that cannot be folded are listed.

Deltas are added first, then gains multiply, as in `composition.py`. The backbone is not changed:
the result is a dictionary of new float32 tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from studio.backbone.adapter import Adapter
from studio.backbone.backbone import Backbone
from studio.backbone.composition import Stack
from studio.backbone.dense_weights import dense_weight
from studio.backbone.sites import Site
from studio.methods.method import Method, Params, Phase


@dataclass(frozen=True, slots=True)
class Folded:
    """New tensors by parameter name, and the adapters that were folded or not (`left`)."""

    tensors: dict[str, Tensor]
    merged: tuple[str, ...]
    left: tuple[str, ...]


def _fits(adapter: Adapter, site: Site) -> bool:
    """Return True if the parameters of a site's module can hold this adapter's change."""
    method, has_bias = adapter.method_at(site.key), getattr(site.module, "bias", None) is not None
    if method.phase is Phase.DELTA:
        return has_bias or not (method.needs_bias or "lora_bias" in adapter.params[site.key])
    return method.phase is Phase.GAIN


def fold(backbone: Backbone, stack: Stack) -> Folded:
    """Fold every adapter of a stack that can be folded.

    Args:
        backbone: The adapters and the base weights (4-bit ones are dequantised).
        stack: (adapter, weight), in order.
    """
    chosen, left = [], []
    for name, weight in stack:
        adapter = backbone.adapters[name]
        if all(_fits(adapter, site) for site in adapter.sites):
            chosen.append((adapter, weight))
        else:
            left.append(name)
    tensors: dict[str, Tensor] = {}
    for adapter, weight in chosen:
        for site in adapter.sites:
            if adapter.method.phase is Phase.DELTA:
                method = adapter.method_at(site.key)
                change = method.fold(adapter.params[site.key], site, weight)
                for name, tensor in change.items():
                    key = _key(site, name)
                    tensors[key] = _current(tensors, site, name) + tensor
    for adapter, weight in chosen:
        for site in adapter.sites:
            if adapter.method.phase is Phase.GAIN:
                _multiply(tensors, adapter.method, adapter.params[site.key], site, weight)
    oriented = {}
    for adapter, _ in chosen:
        for site in adapter.sites:
            for name in ("weight", "bias"):
                key = _key(site, name)
                if key in tensors:
                    turn = site.transposed and name == "weight"
                    tensor = tensors.pop(key)
                    oriented[key] = (tensor.mT if turn else tensor).detach().contiguous()
    return Folded(oriented, tuple(a.name for a, _ in chosen), tuple(left))


def _key(site: Site, name: str) -> str:
    return site.parameter_key if name == "weight" else f"{site.key}.{name}"


def _current(tensors: dict[str, Tensor], site: Site, name: str) -> Tensor:
    """Return the tensor as folded so far: a linear's weight as `(out, in)`."""
    key = _key(site, name)
    if key in tensors:
        return tensors[key]
    if name == "weight" and site.kind in ("linear", "experts"):
        return dense_weight(site).detach()
    own = getattr(site.module, name)
    assert isinstance(own, Tensor)
    return own.detach().float()


def _multiply(
    tensors: dict[str, Tensor], method: Method, params: Params, site: Site, weight: float
) -> None:
    gain_in, gain_out = method.gain_in(params, site), method.gain_out(params, site)
    key = f"{site.key}.weight"
    if gain_in is not None:
        tensors[key] = _current(tensors, site, "weight") * (1 + weight * (gain_in.float() - 1))
    if gain_out is not None:
        factor = 1 + weight * (gain_out.float() - 1)
        tensors[key] = _current(tensors, site, "weight") * factor[:, None]
        if getattr(site.module, "bias", None) is not None:
            tensors[f"{site.key}.bias"] = _current(tensors, site, "bias") * factor

"""Fold a stack of adapters into new weights; adapters that cannot be folded are listed.

Deltas are added first, then gains multiply, as in `composition.py`. The backbone is not changed:
the result is a dictionary of new tensors, computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


def fold(backbone: Backbone, stack: Stack, *, to_host: bool = False) -> Folded:
    """Fold every adapter of a stack that can be folded, one weight after the other.

    Args:
        backbone: The adapters and the base weights (4-bit ones are dequantised).
        stack: (adapter, weight), in order.
        to_host: Keep each new tensor in main memory, in the precision of the base.
    """
    chosen, left = list[tuple[Adapter, float]](), []
    for name, weight in stack:
        adapter = backbone.adapters[name]
        if all(_fits(adapter, site) for site in adapter.sites):
            chosen.append((adapter, weight))
        else:
            left.append(name)
    tensors: dict[str, Tensor] = {}
    for site in {site.key: site for adapter, _ in chosen for site in adapter.sites}.values():
        for name, tensor in _folded(chosen, site).items():
            whole = (tensor.mT if site.transposed and name == "weight" else tensor).detach()
            if to_host:
                whole = whole.to("cpu", _stored_dtype(backbone, site, name))
            tensors[_key(site, name)] = whole.contiguous()
    return Folded(tensors, tuple(a.name for a, _ in chosen), tuple(left))


def _folded(chosen: Sequence[tuple[Adapter, float]], site: Site) -> Params:
    """Return the changed parameters of a site's module, by their own names."""
    own = [(adapter, weight) for adapter, weight in chosen if site.key in adapter.params]
    tensors: Params = {}
    for adapter, weight in own:
        if adapter.method.phase is Phase.DELTA:
            method = adapter.method_at(site.key)
            for name, tensor in method.fold(adapter.params[site.key], site, weight).items():
                tensors[name] = _current(tensors, site, name) + tensor
    for adapter, weight in own:
        if adapter.method.phase is Phase.GAIN:
            _multiply(tensors, adapter.method, adapter.params[site.key], site, weight)
    return tensors


def _stored_dtype(backbone: Backbone, site: Site, name: str) -> torch.dtype:
    """Return the precision of a parameter; that of the model for a quantised one."""
    dtype = (site.parameter if name == "weight" else getattr(site.module, name)).dtype
    return dtype if dtype.is_floating_point else backbone.model.dtype


def _key(site: Site, name: str) -> str:
    return site.parameter_key if name == "weight" else f"{site.key}.{name}"


def _current(tensors: Params, site: Site, name: str) -> Tensor:
    """Return the tensor as folded so far: a linear's weight as `(out, in)`."""
    if name in tensors:
        return tensors[name]
    if name == "weight" and site.kind in ("linear", "experts"):
        return dense_weight(site).detach()
    own = getattr(site.module, name)
    assert isinstance(own, Tensor)
    return own.detach().float()


def _multiply(tensors: Params, method: Method, params: Params, site: Site, weight: float) -> None:
    gain_in, gain_out = method.gain_in(params, site), method.gain_out(params, site)
    if gain_in is not None:
        tensors["weight"] = _current(tensors, site, "weight") * (1 + weight * (gain_in.float() - 1))
    if gain_out is not None:
        factor = 1 + weight * (gain_out.float() - 1)
        tensors["weight"] = _current(tensors, site, "weight") * factor[:, None]
        if getattr(site.module, "bias", None) is not None:
            tensors["bias"] = _current(tensors, site, "bias") * factor

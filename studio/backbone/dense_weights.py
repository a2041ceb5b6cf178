"""Read weights in full, whatever form a module stores them in, and fold adapters into them.

Deltas are added first, then gains multiply, as in `composition.py`. Folding does not change the
backbone: the result is a dictionary of new tensors, computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.backbone.sites import Site
from studio.methods.method import Method, Params, Phase

if TYPE_CHECKING:
    from studio.backbone.backbone import Backbone
    from studio.backbone.composition import Adapter, Stack


def dense_weight(site: Site) -> Tensor:
    """Return a linear layer's weight as float32 `(out_features, in_features)`; experts' stacked.

    4-bit weights are dequantised and Conv1D weights transposed. Sharded weights are gathered, so
    every rank must call it.
    """
    weight = site.parameter
    if hasattr(weight, "full_tensor"):  # a DTensor, whose class is slow to import
        weight = weight.full_tensor()
    state = getattr(weight, "quant_state", None)
    if state is not None:
        weight = dequantised(weight)
        return (weight.mT if site.num_experts and site.transposed else weight).float()
    assert isinstance(weight, Tensor)
    return (weight.mT if site.transposed else weight).float()


def dequantised(weight: Any, experts: Tensor | None = None) -> Tensor:
    """Return a 4-bit or 8-bit weight in full, or some experts of a 3-D one.

    Experts in 4 bit, and matrices on a CPU, are dequantised as rows of one block each:
    bitsandbytes' CPU kernel is wrong for rows that are not whole blocks.
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

    state = weight.quant_state
    size = state.blocksize
    if state.quant_type is None:
        packed, absmax = weight.data, state.absmax
        if experts is not None:
            packed, absmax = packed[experts], absmax.view(len(packed), -1)[experts].flatten()
        found: Tensor = dequantize_blockwise(packed, absmax=absmax, code=state.code, blocksize=size)
        return found.to(state.dtype)
    in_rows = len(state.shape) > 2 or (not is_whole(weight) and weight.device.type == "cpu")
    if not in_rows or state.shape.numel() % size:
        whole: Tensor = dequantize_4bit(weight.data, state)
        return whole
    absmax, packed, number = state.absmax, weight.data, state.shape[0]
    if state.nested:
        absmax = (dequantize_blockwise(absmax, state.state2) + state.offset).float()
    if experts is not None:
        absmax = absmax.view(number, -1)[experts].flatten()
        packed, number = packed.view(number, -1)[experts], len(experts)
    blocks = QuantState(
        absmax, shape=torch.Size((len(absmax), size)), code=state.code, blocksize=size,
        quant_type=state.quant_type, dtype=state.dtype,
    )  # fmt: skip
    found = dequantize_4bit(packed.reshape(-1, 1), blocks)
    return found.view(number, *state.shape[1:])


def is_whole(weight: Any) -> bool:
    """Return True if the rows of a quantised matrix are whole blocks."""
    state = weight.quant_state
    return bool(state.shape[-1] % state.blocksize == 0)


def stored_weight(site: Site) -> Tensor:
    """Return the weight in full, in the order in which the module stores it."""
    weight = dense_weight(site)
    return weight.mT if site.transposed else weight


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is dequantised per use, by the function above."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `W x + b`."""
        product: Tensor = _Product.apply(x, self.weight)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """`W x`, which keeps the weight quantised for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any) -> Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, dequantised(weight).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return outputs[0] @ dequantised(ctx.weight).to(outputs[0].dtype), None


@dataclass(frozen=True, slots=True)
class Folded:
    """New tensors by parameter name, and the adapters that were folded or not (`left`)."""

    tensors: dict[str, Tensor]
    merged: tuple[str, ...]
    left: tuple[str, ...]


def fold(backbone: Backbone, stack: Stack, *, to_host: bool = False) -> Folded:
    """Fold every adapter of a stack that can be folded, one weight after the other.

    `to_host` keeps each new tensor in main memory, in the precision of the base.
    """
    chosen: list[tuple[Adapter, float]] = []
    left: list[str] = []
    for name, weight in stack:
        adapter = backbone.adapters[name]
        if can_fold(adapter):
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


def can_fold(adapter: Adapter) -> bool:
    """Return True if the base's own parameters can hold all that an adapter changes."""
    return all(_fits(adapter, site) for site in adapter.sites)


def _fits(adapter: Adapter, site: Site) -> bool:
    """Return True if the parameters of a site's module can hold this adapter's change."""
    method, has_bias = adapter.method_at(site.key), getattr(site.module, "bias", None) is not None
    if method.phase is Phase.DELTA:
        return has_bias or not (method.needs_bias or "lora_bias" in adapter.params[site.key])
    return method.phase is Phase.GAIN


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

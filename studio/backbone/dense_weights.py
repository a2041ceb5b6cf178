"""Read a weight in full (dequantised), whatever form its module stores it in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from studio.backbone.sites import Site


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

"""A faster product for the output head when a few rows are decoded together on a CPU.

With two to eight rows and a weight that is far larger than the cache, `x Wᵀ` is slow in MKL: it
costs up to three times one row's. The same product as `(W xᵀ)ᵀ` reads `W` once, as it should
(384 → 32,000, four rows, one thread: from 12.5 to 5 ms; one row takes 4). For the smaller layers it
was measured and did not pay. Only the order of the factors changes, and only without gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

FEWEST, MOST = 2, 8
WIDE = 8192


def quicken_products(model: Any) -> None:
    """Let a CPU model's widest layers take the faster product; weights stay untouched."""
    import torch

    for module in model.modules():
        if type(module) is not torch.nn.Linear or "forward" in vars(module):
            continue
        weight = module.weight
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        if here and module.out_features >= WIDE:
            _quicken(module)


def _quicken(layer: Linear) -> None:
    import torch

    plain = layer.forward

    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if torch.is_grad_enabled() or not FEWEST <= rows <= MOST:
            return plain(x)
        product = torch.mm(layer.weight, x.reshape(rows, -1).t()).t()
        product = product if layer.bias is None else product + layer.bias
        return product.reshape(*x.shape[:-1], -1)

    layer.forward = forward

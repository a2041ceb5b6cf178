"""Rows with different low-rank adapters share one product: `B (w ⊙ (A x))`.

All adapters of a site are laid side by side, `Aᵀ (I, R)` and `Bᵀ (R, O)`, and each row's weights
`(rows, R)` let through only its own part. Two products for the whole batch instead of four calls
an adapter: decoding a few rows is bound by calls, not by arithmetic. Used without gradients only.

Shapes: `B rows, T tokens, I in_features, O out_features, R ranks of all adapters together`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from studio.methods.layer.sites import Site
    from studio.methods.layer.stack import Edit

MAX_RANK = 256  # beyond, computing every row's part for all costs more than the calls it saves


@dataclass(frozen=True, slots=True)
class Fused:
    """One site's low-rank edits for all rows of a batch."""

    a_IR: Tensor
    b_RO: Tensor
    weights_BR: Tensor

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return `y` plus every row's own change for the input `x`, both `(B, T, ·)`."""
        if x.dtype != self.a_IR.dtype or y.dtype != x.dtype or y.shape[1] != 1:
            parts_BTR = (x.to(self.a_IR.dtype) @ self.a_IR) * self.weights_BR[:, None]
            return y + (parts_BTR @ self.b_RO).to(y.dtype)
        # One token a row, all in one precision: decoding. Two products, the second one adds.
        parts_BR = torch.mm(x[:, 0], self.a_IR).mul_(self.weights_BR)
        return torch.addmm(y[:, 0], parts_BR, self.b_RO)[:, None]


def fuse(edits: Sequence[Edit], site: Site, rows: int) -> Fused | None:
    """Lay the edits side by side; None where one of them is no plain product or is not finite.

    A number that is not finite must stay in its own row, and `0 · inf` would not.
    """
    factors = [edit.method.factors(edit.params, site) for edit in edits]
    pairs = [pair for pair in factors if pair is not None]
    if len(pairs) < len(edits) or sum(len(a) for a, _ in pairs) > MAX_RANK:
        return None
    a_RI = torch.cat([a for a, _ in pairs])
    b_OR = torch.cat([b for _, b in pairs], dim=1)
    if not (a_RI.isfinite().all() and b_OR.isfinite().all()):
        return None
    columns = []
    for edit, (a, _) in zip(edits, pairs, strict=True):
        own = torch.zeros(rows, 1, dtype=a.dtype)
        own[list(range(rows) if edit.rows.numbers is None else edit.rows.numbers)] = edit.weight
        columns.append(own.expand(-1, len(a)))
    weights_BR = torch.cat(columns, dim=1).to(a_RI.device)
    return Fused(a_RI.t().contiguous(), b_OR.t().contiguous(), weights_BR)

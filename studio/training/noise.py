"""NEFTune: uniform noise on the embeddings while training, so that answers copy less.

Each token's noise is `α / √(L D)` large, `L` being the length of its own row: packing or padding,
and the neighbours in a batch, do not change it.

Source: arXiv:2310.05914. Shapes: `B rows, T tokens, D hidden`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.training.batch import Packed, Padded

if TYPE_CHECKING:
    from studio.methods.layer import Adapter, Backbone


class Noise:
    """A hook on the embeddings that acts only while its adapter trains."""

    def __init__(self, backbone: Backbone, adapter: Adapter, alpha: float) -> None:
        self._adapter, self._alpha = adapter, alpha
        self._lengths: Tensor | None = None
        backbone.model.get_input_embeddings().register_forward_hook(self._add)

    def expect(self, batch: Packed | Padded) -> None:
        """Name the batch that comes next."""
        if isinstance(batch, Packed):
            lengths = torch.tensor(batch.lengths)
            self._lengths = lengths.repeat_interleave(lengths)[None]
        else:
            self._lengths = batch.mask_BT.sum(1, keepdim=True).expand_as(batch.ids_BT)

    def _add(self, module: nn.Module, args: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor | None:
        lengths_BT = self._lengths
        if lengths_BT is None or not self._adapter.training:
            return None
        if embedded_BTD.shape[:2] != lengths_BT.shape:
            return None  # virtual tokens of a prompt
        size = self._alpha / (lengths_BT.to(embedded_BTD) * embedded_BTD.shape[2]).sqrt()
        return embedded_BTD + torch.empty_like(embedded_BTD).uniform_(-1, 1) * size[..., None]

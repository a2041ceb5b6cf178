"""NEFTune: add noise to the embeddings while an adapter trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.training.batching import PackedBatch, PaddedBatch

if TYPE_CHECKING:
    from studio.backbone import Adapter, Backbone


class Neftune:
    """Hook that adds NEFTune noise to the embeddings while its adapter trains.

    The noise of a token is uniform in `±α / √(L D)` with `L` the length of its own row, so packing
    and the other rows of a batch do not change it. Source: arXiv:2310.05914.
    """

    def __init__(self, backbone: Backbone, adapter: Adapter, alpha: float) -> None:
        self._adapter, self._alpha = adapter, alpha
        self._lengths: Tensor | None = None
        backbone.model.get_input_embeddings().register_forward_hook(self._add)

    def prepare(self, batch: PackedBatch | PaddedBatch) -> None:
        """Set the row lengths of the batch that the next forward pass computes."""
        if isinstance(batch, PackedBatch):
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

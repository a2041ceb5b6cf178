"""Turn rows into tensors, packed (concatenated without padding) or padded; NEFTune's noise on them.

Both hold the same rows and targets. Logits are computed only at positions whose next token carries
a label.

Shapes: `B rows, T tokens (padded: longest row), N positions that predict a trained token`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from studio.data.template.template import IGNORED

if TYPE_CHECKING:
    from studio.backbone import Adapter, Backbone


class TokenRow(Protocol):
    """Fields of an example that training reads."""

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """Token ids."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """The id where the token carries loss, else `IGNORED`; not shifted."""

    @property
    def row(self) -> int:
        """Number of the row in its file."""

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """Weights of the tokens in the loss, None where all are 1."""


class Weights(NamedTuple):
    """Weights of the targets in the loss, and their sum: known here, a wait for the GPU later."""

    of_N: Tensor
    total: float


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Concatenated rows; `keep_N` indexes `ids_T`, `targets_N` holds the next tokens.

    `kept` is the number of targets of each row: known here, a wait for the GPU later. `lengths`
    are without the `shared` tokens, which a row continues as in `Backbone.packed_logits`.
    """

    ids_T: Tensor
    lengths: tuple[int, ...]
    keep_N: Tensor
    targets_N: Tensor
    rows: tuple[int, ...]
    kept: tuple[int, ...]
    shared: tuple[int, ...] = ()
    weights: Weights | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without padding."""
        return int(self.ids_T.shape[0])

    @property
    def num_targets(self) -> int:
        """Number of tokens that carry loss."""
        return int(self.targets_N.shape[0])


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows padded on the right to the longest."""

    ids_BT: Tensor
    mask_BT: Tensor
    keep_BT: Tensor
    targets_N: Tensor
    rows: tuple[int, ...]
    kept: tuple[int, ...]
    num_tokens: int
    weights: Weights | None = None

    @property
    def num_targets(self) -> int:
        """Number of tokens that carry loss."""
        return int(self.targets_N.shape[0])


def pack(examples: Sequence[TokenRow], device: torch.device, *, together: int = 1) -> PackedBatch:
    """Concatenate rows; the last position of a row has no target.

    Of every `together` rows the later ones continue the beginning that they have in common with the
    first. Its last token may then predict the next one of several rows.
    """
    ids, keep, targets, shared, start = [], [], [], [], 0
    first, leader = examples[0], 0  # the last row that continues none, and its place
    for i, example in enumerate(examples):
        common = _num_common(first, example) if i % together else 0
        if not common:
            first, leader = example, start
        nexts = _next_labels(example.labels)
        places = np.flatnonzero(nexts != IGNORED)
        keep.append(places + np.where(places < common, leader, start - common))
        targets.append(nexts[places])
        ids.append(example.input_ids[common:])
        shared.append(common)
        start += len(ids[-1])
    return PackedBatch(
        ids_T=torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device),
        lengths=tuple(map(len, ids)),
        keep_N=torch.from_numpy(np.concatenate(keep)).to(device),
        targets_N=torch.from_numpy(np.concatenate(targets)).to(device),
        rows=tuple(e.row for e in examples),
        kept=tuple(map(len, targets)),
        shared=tuple(shared) if any(shared) else (),
        weights=_weights(examples, device),
    )


def total_weight(batch: PackedBatch | PaddedBatch) -> float:
    """Return what the batch's summed loss is divided by: its targets, each by its weight."""
    return batch.weights.total if batch.weights else float(batch.num_targets)


def _weights(examples: Sequence[TokenRow], device: torch.device) -> Weights | None:
    """Return the weights of the rows' targets, row by row; None where all are 1."""
    if all(example.weights is None for example in examples):
        return None
    weights = [np.ones(len(e.labels)) if e.weights is None else e.weights for e in examples]
    kept = [w[1:][e.labels[1:] != IGNORED] for e, w in zip(examples, weights, strict=True)]
    flat = np.concatenate(kept).astype(np.float32)
    return Weights(torch.from_numpy(flat).to(device), float(flat.sum(dtype=np.float64)))


def _num_common(first: TokenRow, row: TokenRow) -> int:
    """Return the tokens of the beginning that two rows have in common; at least one is left."""
    most = min(len(first.input_ids), len(row.input_ids) - 1)
    differ = np.flatnonzero(first.input_ids[:most] != row.input_ids[:most])
    return int(differ[0]) if len(differ) else most


def pad(examples: Sequence[TokenRow], device: torch.device) -> PaddedBatch:
    """Pad rows to the longest; padding is masked from attention and loss."""
    longest = max(len(e.input_ids) for e in examples)
    shape = (len(examples), longest)
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    nexts = np.full(shape, IGNORED, np.int64)
    for i, example in enumerate(examples):
        length = len(example.input_ids)
        ids[i, :length], mask[i, :length] = example.input_ids, 1
        nexts[i, :length] = _next_labels(example.labels)
    keep = nexts != IGNORED
    return PaddedBatch(
        ids_BT=torch.from_numpy(ids).to(device),
        mask_BT=torch.from_numpy(mask).to(device),
        keep_BT=torch.from_numpy(keep).to(device),
        targets_N=torch.from_numpy(nexts[keep]).to(device),
        rows=tuple(e.row for e in examples),
        kept=tuple(keep.sum(1).tolist()),
        num_tokens=int(mask.sum()),
        weights=_weights(examples, device),
    )


def groups(examples: Sequence[TokenRow], *, max_tokens: int) -> list[list[TokenRow]]:
    """Group rows, longest first, into batches of at most `max_tokens` (one row may exceed it)."""
    lengths = [len(example.input_ids) for example in examples]
    return [[examples[i] for i in group] for group in grouped(lengths, max_tokens=max_tokens)]


def grouped(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Return the places of rows, longest first, in groups of at most `max_tokens`."""
    found: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not found or lengths[place] > room:
            found.append([])
            room = max_tokens
        found[-1].append(place)
        room -= lengths[place]
    return found


def _next_labels(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    nexts = np.full(len(labels), IGNORED, np.int64)
    nexts[:-1] = labels[1:]
    return nexts


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

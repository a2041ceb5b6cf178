"""From rows to tensors: concatenated without padding, or padded as everybody else does it.

Both carry the same rows and the same targets; `packed` is what trains, `padded` is its plain twin.
Logits are only ever asked for at positions whose next token carries a label.

Shapes: `B rows, T tokens (padded: longest row), N positions that predict a trained token`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORED = -100


class Row(Protocol):
    """What training needs of an example."""

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """Token ids."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """The id where it carries loss, else -100; not shifted."""

    @property
    def row(self) -> int:
        """Where the row stands in its file."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows one after the other; `keep_N` points into `ids_T`, `targets_N` is what comes next."""

    ids_T: Tensor
    lengths: tuple[int, ...]
    keep_N: Tensor
    targets_N: Tensor
    rows: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return int(self.ids_T.shape[0])

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return int(self.targets_N.shape[0])


@dataclass(frozen=True, slots=True)
class Padded:
    """The same rows side by side, filled up on the right."""

    ids_BT: Tensor
    mask_BT: Tensor
    keep_BT: Tensor
    targets_N: Tensor
    rows: tuple[int, ...]
    num_tokens: int

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return int(self.targets_N.shape[0])


def pack(examples: Sequence[Row], device: torch.device) -> Packed:
    """Concatenate rows; a row's last position never predicts the next row's first token."""
    ids = np.concatenate([e.input_ids for e in examples]).astype(np.int64)
    nexts = np.concatenate([_next_labels(e.labels) for e in examples])
    keep = np.flatnonzero(nexts != IGNORED)
    return Packed(
        ids_T=torch.from_numpy(ids).to(device),
        lengths=tuple(len(e.input_ids) for e in examples),
        keep_N=torch.from_numpy(keep).to(device),
        targets_N=torch.from_numpy(nexts[keep]).to(device),
        rows=tuple(e.row for e in examples),
    )


def pad(examples: Sequence[Row], device: torch.device, *, pad_id: int = 0) -> Padded:
    """Fill rows up to the longest; padding is masked from attention and from the loss."""
    longest = max(len(e.input_ids) for e in examples)
    shape = (len(examples), longest)
    ids, mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    nexts = np.full(shape, IGNORED, np.int64)
    for i, example in enumerate(examples):
        length = len(example.input_ids)
        ids[i, :length], mask[i, :length] = example.input_ids, 1
        nexts[i, :length] = _next_labels(example.labels)
    keep = nexts != IGNORED
    return Padded(
        ids_BT=torch.from_numpy(ids).to(device),
        mask_BT=torch.from_numpy(mask).to(device),
        keep_BT=torch.from_numpy(keep).to(device),
        targets_N=torch.from_numpy(nexts[keep]).to(device),
        rows=tuple(e.row for e in examples),
        num_tokens=int(mask.sum()),
    )


def groups(examples: Sequence[Row], *, max_tokens: int) -> list[list[Row]]:
    """Split rows into runs of at most `max_tokens` (one row may exceed it), longest first."""
    found: list[list[Row]] = []
    room = 0
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        length = len(example.input_ids)
        if not found or length > room:
            found.append([])
            room = max_tokens
        found[-1].append(example)
        room -= length
    return found


def _next_labels(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    nexts = np.full(len(labels), IGNORED, np.int64)
    nexts[:-1] = labels[1:]
    return nexts

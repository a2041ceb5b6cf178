"""Insert prompts as embeddings before every row, in models that keep a state beside attention.

A prompt's effect on a convolution or state space is no key or value, so in hybrids it cannot act as
a prefix (`virtual_tokens.py`): its embeddings pass through the model in front of each row.
Positions of the row itself start after them, and their logits are dropped.

The model is given token ids, 0 for a virtual token, and the embeddings there are replaced: some
models (Gemma 4, Qwen4) read the ids a second time, for tables of later layers.

Shapes: `B rows, T tokens, P virtual tokens, D hidden`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import MethodError

CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")


@dataclass(frozen=True, slots=True)
class Replaced:
    """Embeddings `(ΣP, D)` in place of those of the marked tokens `(B, T)`, in order."""

    marks_BT: Tensor
    prompts_PD: Tensor

    def apply(self, module: nn.Module, args: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor:
        """Return the embeddings with the prompts; a hook of the input embeddings."""
        if embedded_BTD.shape[:2] != self.marks_BT.shape:
            return embedded_BTD
        return embedded_BTD.masked_scatter(
            self.marks_BT[..., None], self.prompts_PD.to(embedded_BTD)
        )


def insert_packed(
    prompts: Sequence[Tensor], ids_T: Tensor, lengths: Sequence[int], keep_N: Tensor
) -> tuple[Replaced, Tensor, list[int], Tensor]:
    """Return the prompts, ids `(T',)`, row lengths and kept positions with prompts before rows.

    Args:
        prompts: The prompt of each row `(P, D)`, or one for all.
        ids_T: Token ids of all rows.
        lengths: Tokens of each row.
        keep_N: Positions in `ids_T`.
    """
    each = list(prompts) if len(prompts) > 1 else list(prompts) * len(lengths)
    longer = [len(prompt) + length for prompt, length in zip(each, lengths, strict=True)]
    counts = [n for pair in zip(map(len, each), lengths, strict=True) for n in pair]
    own = torch.tensor([False, True]).repeat(len(each))
    own_T = own.repeat_interleave(torch.tensor(counts)).to(ids_T.device)
    ids = ids_T.new_zeros(len(own_T)).masked_scatter(own_T, ids_T)
    return Replaced(~own_T[None], torch.cat(each)), ids, longer, own_T.nonzero()[keep_N, 0]


def insert(
    prompts: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Replaced | None, dict[str, Any], int]:
    """Return the prompts of a plain forward, its arguments, and the number of logits to drop.

    With a cache, which holds the prompts already, only positions move: rows with prompts are read
    without one first.

    Raises:
        MethodError: Rows of one batch have prompts of different lengths.
    """
    kwargs = dict(kwargs)
    count = len(prompts[0])
    if any(len(prompt) != count for prompt in prompts):
        raise MethodError(
            "Rows with prompts of different lengths cannot share a padded batch on this model: set "
            "train.packing=true."
        )
    positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if mask is not None:
        kwargs["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    if any(kwargs.get(name) is not None for name in CACHES):
        if positions is not None:
            kwargs["position_ids"] = positions + count
        return None, kwargs, 0
    ids_BT = args[0] if args else kwargs["input_ids"]
    ids = kwargs["input_ids"] = torch.nn.functional.pad(ids_BT, (count, 0))
    marks_BT = torch.zeros_like(ids, dtype=torch.bool)
    marks_BT[:, :count] = True
    each = list(prompts) * len(ids) if len(prompts) == 1 else prompts
    if positions is not None:
        first = torch.arange(count, device=positions.device).expand(len(positions), -1)
        kwargs["position_ids"] = torch.cat([first, positions + count], dim=1)
    keep = kwargs.get("logits_to_keep", 0)
    if isinstance(keep, Tensor):
        kwargs["logits_to_keep"] = keep + count
    dropped = 0 if isinstance(keep, Tensor) or keep else count
    return Replaced(marks_BT, torch.cat(list(each))), kwargs, dropped

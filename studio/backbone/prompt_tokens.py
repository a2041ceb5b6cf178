"""Prompts as tokens before every row, for models that carry a state beside attention.

A prompt's effect on a convolution or state space is no key or value, so in hybrids it cannot act as
a prefix (`virtual_tokens.py`): its embeddings pass through the model in front of each row.
Positions of the row itself start after them, and their logits are dropped.

Shapes: `B rows, T tokens, P virtual tokens, D hidden`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import MethodError

CACHES = ("cache", "past_key_values", "cache_params", "state", "mems")


def insert_packed(
    embed: nn.Module,
    prompts: Sequence[Tensor],
    ids_T: Tensor,
    lengths: Sequence[int],
    keep_N: Tensor,
) -> tuple[Tensor, list[int], Tensor]:
    """Return embeddings `(1, T', D)`, row lengths and kept positions with prompts before rows.

    Args:
        embed: The input embeddings.
        prompts: The prompt of each row `(P, D)`, or one for all.
        ids_T: Token ids of all rows.
        lengths: Tokens of each row.
        keep_N: Positions in `ids_T`.
    """
    each = list(prompts) if len(prompts) > 1 else list(prompts) * len(lengths)
    embedded_TD = embed(ids_T[None])[0]
    rows = embedded_TD.split(list(lengths))
    parts = [part.to(embedded_TD) for pair in zip(each, rows, strict=True) for part in pair]
    counts = torch.tensor([len(prompt) for prompt in each], device=ids_T.device)
    before = counts.cumsum(0).repeat_interleave(torch.tensor(lengths, device=ids_T.device))
    longer = [len(prompt) + length for prompt, length in zip(each, lengths, strict=True)]
    return torch.cat(parts)[None], longer, keep_N + before[keep_N]


def insert(
    embed: nn.Module, prompts: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """Return the arguments of a plain forward with prompts, and the number of logits to drop.

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
    if _is_cached(kwargs):
        if positions is not None:
            kwargs["position_ids"] = positions + count
        return kwargs, 0
    ids_BT = args[0] if args else kwargs.pop("input_ids")
    embedded_BTD = embed(ids_BT)
    prompts_BPD = torch.stack(list(prompts)).to(embedded_BTD).expand(len(ids_BT), -1, -1)
    kwargs["inputs_embeds"] = torch.cat([prompts_BPD, embedded_BTD], dim=1)
    if positions is not None:
        first = torch.arange(count, device=positions.device).expand(len(positions), -1)
        kwargs["position_ids"] = torch.cat([first, positions + count], dim=1)
    keep = kwargs.get("logits_to_keep", 0)
    if isinstance(keep, Tensor):
        kwargs["logits_to_keep"] = keep + count
    return kwargs, 0 if isinstance(keep, Tensor) or keep else count


def _is_cached(kwargs: dict[str, Any]) -> bool:
    return any(kwargs.get(name) is not None for name in CACHES)

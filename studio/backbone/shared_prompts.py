"""Find out if packed rows may continue the prompt of another row, which is then computed once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from studio.backbone.attention import AttentionState
from studio.backbone.forward_recording import forward
from studio.backbone.recorded_rows import ROWS, differs, sample_ids, token_axis
from studio.errors import is_out_of_memory

if TYPE_CHECKING:
    from studio.backbone.sites import Anatomy

logger = logging.getLogger(__name__)


def shares_prompts(anatomy: Anatomy, state: AttentionState) -> bool:
    """Return True if a packed row that continues another one is as with a beginning of its own.

    That is so where attention is causal, by the attention function, and all that reads earlier
    tokens. Rows of the recorded lengths are compared.
    """
    found, ids = anatomy.recording, sample_ids(anatomy)
    if anatomy.carries_state or found.isolated or not (found.separable and found.positions):
        return False
    state.prefix = None
    first, rest = ids.split(ROWS)
    beginning = first[: ROWS[0] // 2]
    try:
        with torch.no_grad():
            packed = forward(anatomy, state, ids, ROWS, shared=len(beginning))
            own = torch.cat([beginning, rest])
            alone = [forward(anatomy, state, one, None) for one in (first, own)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.info("Rows do not share their beginning: %s: %s", type(error).__name__, error)
        return False
    if (axis := token_axis(packed)) is None:
        return False
    alone[1] = alone[1].narrow(axis, len(beginning), len(rest))
    return not differs(packed, torch.cat(alone, dim=axis), slice(None), loose=True)

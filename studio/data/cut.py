"""Keep rows within the context, and the answer in them.

The rule: a row that is too long loses its end. Where that would leave less answer than half the
limit (or than the whole answer, if that is shorter), it loses the beginning of its prompt instead;
what the tokenizer puts in front (`<s>`) stays. Plain text is cut into windows, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from studio.data.templates import Encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Cut(NamedTuple):
    """A row within the limit; `kept` are its places in the whole row, None for all."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lost: Literal["nothing", "end", "start"]
    kept: NDArray[np.int64] | None


def fit(row: Encoded, *, limit: int, num_lead_tokens: int) -> Cut:
    """Cut one conversation to `limit` tokens by the rule above."""
    length = len(row.ids)
    if length <= limit:
        return Cut(row.ids, row.trained, "nothing", None)
    summed = np.concatenate([[0], np.cumsum(row.trained)])
    enough = min(int(summed[-1]), limit // 2)
    if summed[limit] >= enough:
        return Cut(row.ids[:limit], row.trained[:limit], "end", np.arange(limit))
    lead = min(num_lead_tokens, limit - 1)
    body = limit - lead
    inside = summed[body:] - summed[: len(summed) - body]
    inside[:lead] = -1  # the lead is kept anyway
    found = np.flatnonzero(inside >= enough)
    start = int(found[0]) if len(found) else int(np.argmax(inside))
    kept = np.concatenate([np.arange(lead), np.arange(start, start + body)])
    return Cut(row.ids[kept], row.trained[kept], "start", kept)


def windows(ids: NDArray[np.int32], *, limit: int, lead: NDArray[np.int32]) -> Iterator[Encoded]:
    """Cut a text (without its lead) into windows that each begin with the lead."""
    body = max(1, limit - len(lead))
    for start in range(0, len(ids), body):
        piece = np.concatenate([lead, ids[start : start + body]]).astype(np.int32)
        if len(piece) >= 2:  # one token alone predicts nothing
            yield Encoded(piece, np.ones(len(piece), bool))

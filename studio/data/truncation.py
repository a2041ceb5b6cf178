"""Truncate rows of tokens: cut what is too long, or into windows of a text.

A row that is too long loses its end. Where that would leave less answer than half the limit (or
than the whole answer, if that is shorter), it loses the beginning of its prompt instead; what the
tokenizer puts in front (`<s>`) stays. Plain text is cut into windows, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from studio.data.template.template import Encoded


class Cut(NamedTuple):
    """A row within the limit; `kept` are its places in the whole row, None for all."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lost: Literal["nothing", "end", "start"]
    kept: NDArray[np.int64] | None

    def of(self, row: Encoded) -> Encoded:
        """Return what is left of the row that was cut, with its weights."""
        kept = slice(None) if self.kept is None else self.kept
        return Encoded(self.ids, self.trained, None if row.weights is None else row.weights[kept])


def fit(row: Encoded, *, limit: int, num_lead_tokens: int) -> Cut:
    """Cut one conversation to `limit` tokens by the rule at the top of this file."""
    if len(row.ids) <= limit:
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


def fit_alike(rows: Sequence[Encoded], *, limit: int, num_lead_tokens: int) -> list[Cut]:
    """Cut rows with one prompt as `fit` does, and where one loses tokens of it, all do."""
    cuts = [fit(row, limit=limit, num_lead_tokens=num_lead_tokens) for row in rows]
    starts = [
        int(c.kept[num_lead_tokens]) for c in cuts if c.lost == "start" and c.kept is not None
    ]
    if not starts:
        return cuts
    first = min(max(starts), *(int(row.trained.argmax()) for row in rows))
    made = []
    for row in rows:
        places = np.arange(len(row.ids))
        kept = places[(places < num_lead_tokens) | (places >= first)][:limit]
        made.append(Cut(row.ids[kept], row.trained[kept], "start", kept))
    return made


def windows(ids: NDArray[np.int32], *, limit: int, lead: Sequence[int]) -> Iterator[Encoded]:
    """Cut a text (without its lead) into windows that each begin with the lead."""
    body = max(1, limit - len(lead))
    for start in range(0, len(ids), body):
        piece = np.concatenate([lead, ids[start : start + body]]).astype(np.int32)
        if len(piece) >= 2:  # one token alone predicts nothing
            yield Encoded(piece, np.ones(len(piece), bool))

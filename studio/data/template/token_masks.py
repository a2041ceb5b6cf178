"""Turn character spans into token masks through the tokenizer's offsets.

Offsets vary: byte-level tokens of one character share its place, tokens of white space may
have an empty place behind it, and tokens put in front by the tokenizer have none at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.data.template.jinja_sandbox import BREAK
from studio.data.template.lost_parts import Spans


def trained_ranges(encoding: Any, spans: Spans) -> list[tuple[int, int]]:
    """Return the ranges of tokens, from the first to after the last, that cover the spans."""
    ranges: list[tuple[int, int]] = []
    for start, end in spans:
        if start >= end:
            continue
        first = encoding.char_to_token(start)
        last = encoding.char_to_token(end - 1)
        if first is None or last is None:
            return runs(_by_offsets(_places(encoding.offsets), spans))
        # All byte tokens of the last character belong to it.
        while (place := encoding.token_to_chars(last + 1)) and place[0] < end:
            if place[0] == place[1]:
                break
            last += 1
        ranges.append((first, last + 1))
    return ranges


def without_breaks(
    core: Any, text: str, encoding: Any, spans: Spans
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return ids and trained ranges of a text with BREAK marks, the marks' own tokens taken out."""
    ids = np.array(encoding.ids, dtype=np.int32)
    places = _places(encoding.offsets)
    breaks = np.array([i for i, char in enumerate(text) if char == BREAK])
    at = np.searchsorted(breaks, places[:, 0])
    covers = (at < len(breaks)) & (breaks[np.minimum(at, len(breaks) - 1)] < places[:, 1])
    alone = places[:, 1] - places[:, 0] == 1
    if not np.all(alone[covers]) or not np.isin(breaks, places[covers, 0]).all():
        return _piecewise(core, text, spans)
    keep = ~covers
    return ids[keep].tolist(), runs(_by_offsets(places, spans)[keep])


def _piecewise(core: Any, text: str, spans: Spans) -> tuple[list[int], list[tuple[int, int]]]:
    # A tokenizer that merges the mark with its neighbours: encode what stands between the marks.
    ids: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    at = 0
    for piece in text.split(BREAK):
        encoding = core.encode(piece, add_special_tokens=False)
        ids += encoding.ids
        masks.append(_by_offsets(_places(encoding.offsets) + at, spans))
        at += len(piece) + 1
    return ids, runs(np.concatenate(masks))


def _places(offsets: list[tuple[int, int]]) -> NDArray[np.int64]:
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    # White space whose place was trimmed away lies just before the place it was given.
    empty = places[:, 0] == places[:, 1]
    places[empty, 0] = np.maximum(places[empty, 0] - 1, 0)
    return places


def _by_offsets(places: NDArray[np.int64], spans: Spans) -> NDArray[np.bool_]:
    mask = np.zeros(len(places), bool)
    for start, end in spans:
        if start < end:
            covered = (places[:, 1] > start) & (places[:, 0] < end)
            mask |= covered & (places[:, 1] > places[:, 0])
    return mask


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where a mask is true, as ranges."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]

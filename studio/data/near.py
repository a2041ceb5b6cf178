"""Near duplicates: rows that share most of their three-word runs, found by MinHash and bands.

Deterministic, without comparing every pair: rows are compared only where a band of their
signatures is equal.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_HASHES, ROWS_PER_BAND = 24, 3
ALIKE = 0.75
MAX_ROWS = 1_000_000
MAX_WORDS = 200_000
_WORD = re.compile(r"\w+")
_RANDOM = np.random.default_rng(20_24)
_FACTORS = _RANDOM.integers(1, 2**64, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
_ADDENDS = _RANDOM.integers(0, 2**64, NUM_HASHES, dtype=np.uint64)
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Signatures:
    """MinHash signatures of texts' runs of three words; remembers the words it has hashed."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, text: str) -> NDArray[np.uint32]:
        """Return the signature of one text."""
        known = self._known
        hashed = []
        for word in _WORD.findall(text.lower()):
            value = known.get(word)
            if value is None:
                if len(known) > MAX_WORDS:
                    known.clear()
                value = known[word] = zlib.crc32(word.encode("utf-8", "replace"))
            hashed.append(value)
        words = np.array(hashed or [0], dtype=np.uint64)
        runs = (
            (words[:-2] * _FIRST + words[1:-1]) * _SECOND + words[2:] if len(words) > 2 else words
        )
        runs = runs ^ (runs >> np.uint64(29))
        mixed = runs[:, None] * _FACTORS + _ADDENDS
        return (mixed.min(axis=0) >> np.uint64(32)).astype(np.uint32)


def near_duplicates(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Return (row, earlier row that it nearly repeats), both counted from 0."""
    signatures = Signatures()
    bands: dict[tuple[int, bytes], int] = {}
    kept: list[NDArray[np.uint32]] = []
    found: list[tuple[int, int]] = []
    for row, text in enumerate(texts):
        if row >= MAX_ROWS:
            break
        mine = signatures.of(text)
        kept.append(mine)
        data = mine.tobytes()
        width = 4 * ROWS_PER_BAND
        keys = [(at, data[at : at + width]) for at in range(0, len(data), width)]
        candidates = {bands[key] for key in keys if key in bands}
        alike = [c for c in candidates if np.count_nonzero(kept[c] == mine) >= ALIKE * NUM_HASHES]
        if alike:
            found.append((row, min(alike)))
        for key in keys:
            bands.setdefault(key, row)
    return found

"""The held-out rows: seeded, and equal rows always on the same side."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from studio.data.examples import Tokens
from studio.data.sources import Origin
from studio.spec import DataSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_VALIDATION = 256
MIN_ROWS_TO_SPLIT = 10


def chosen(tokens: Tokens, origin: Origin, source: DataSource, seed: int) -> NDArray[np.bool_]:
    """Choose the held-out rows; a split that is stored with the dataset goes before any other."""
    stored = origin.held_out()
    if stored is not None:
        return np.asarray(stored[tokens.rows - 1])
    return held_out(tokens, source.validation_fraction, seed)


def held_out(tokens: Tokens, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the held-out rows: seeded, at most 256, and equal rows always on the same side."""
    count = len(tokens)
    chosen = np.zeros(count, bool)
    wanted = min(MAX_VALIDATION, max(1, round(fraction * count)))
    if not fraction or count < MIN_ROWS_TO_SPLIT:
        return chosen
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(row_hashes(tokens)):
        groups.setdefault(digest, []).append(index)
    members = list(groups.values())
    for at in np.random.default_rng(seed).permutation(len(members)):
        if int(chosen.sum()) + len(members[at]) > wanted:
            continue
        chosen[members[at]] = True
        if int(chosen.sum()) >= wanted:
            break
    return chosen


def row_hashes(tokens: Tokens) -> list[bytes]:
    """Return a hash of the ids of every row."""
    starts = tokens.starts
    return [
        hashlib.blake2b(tokens.ids[starts[i] : starts[i + 1]].tobytes(), digest_size=12).digest()
        for i in range(len(tokens))
    ]

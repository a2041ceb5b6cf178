"""The held-out rows: seeded, and equal rows always on the same side."""

from __future__ import annotations

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
    held = np.zeros(count, bool)
    if not fraction or count < MIN_ROWS_TO_SPLIT:
        return held
    wanted = min(MAX_VALIDATION, max(1, round(fraction * count)))
    _, first, group, sizes = np.unique(
        tokens.hashes, return_index=True, return_inverse=True, return_counts=True
    )
    # Groups in the order of their first rows: which rows are drawn does not hang on the hashes.
    order = np.argsort(first)
    taken, chosen_groups = 0, []
    for at in order[np.random.default_rng(seed).permutation(len(order))]:
        if taken + sizes[at] <= wanted:
            taken += int(sizes[at])
            chosen_groups.append(at)
        if taken >= wanted:
            break
    return np.isin(group, chosen_groups)

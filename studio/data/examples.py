"""Examples as flat arrays: ids, which tokens are trained, where rows begin. On disk or in memory.

Many gigabytes of tokens cost no more memory than the pages that are touched.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

import numpy as np

from studio.data.duplicates import bytes_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One row for the loop; `row` is its number in the source, counted from 1."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    row: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """All rows one after the other; row `i` reaches from `starts[i]` to `starts[i + 1]`."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]  # equal rows have equal ones
    whole: NDArray[np.int64]  # how long each row was before it was cut

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.starts)


class Examples(Sequence[Example]):
    """Some of the rows of `Tokens`, in a given order."""

    def __init__(self, tokens: Tokens, order: NDArray[np.int64]) -> None:
        self.tokens, self.order = tokens, order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.tokens, self.order[index])
        at = int(self.order[index])
        start, stop = int(self.tokens.starts[at]), int(self.tokens.starts[at + 1])
        ids = np.array(self.tokens.ids[start:stop])
        labels = np.where(self.tokens.trained[start:stop], ids, np.int32(IGNORED))
        return Example(ids, labels.astype(np.int32), int(self.tokens.rows[at]))


class TokenWriter:
    """Collects rows; with a folder the tokens go straight to disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._ids: BinaryIO = (folder / "ids.i32").open("wb") if folder else io.BytesIO()
        self._trained: BinaryIO = (folder / "trained.u8").open("wb") if folder else io.BytesIO()
        self._starts, self._rows, self._hashes = array("q", [0]), array("q"), array("Q")
        self._whole = array("q")

    def add(
        self, ids: NDArray[np.int32], trained: NDArray[np.bool_], row: int, *, whole: int = 0
    ) -> int:
        """Append one row (`whole` tokens long before it was cut); returns a hash of its ids."""
        self._hashes.append(bytes_hash(ids.data))
        self._ids.write(ids.data)
        self._trained.write(trained.data)
        self._starts.append(self._starts[-1] + len(ids))
        self._rows.append(row)
        self._whole.append(whole or len(ids))
        return self._hashes[-1]

    def extend(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        starts: NDArray[np.int64],
        rows: Sequence[int],
    ) -> array[int]:
        """Append whole rows, row `i` from `starts[i]` to `starts[i + 1]`; returns their hashes."""
        first, stop = int(starts[0]), int(starts[-1])
        view = ids.data.cast("B")
        edges = (4 * starts).tolist()
        hashes = array("Q", [bytes_hash(view[a:b]) for a, b in pairwise(edges)])
        self._ids.write(ids[first:stop].data)
        self._trained.write(trained[first:stop].data)
        self._starts.extend((starts[1:] + (self._starts[-1] - first)).tolist())
        self._rows.extend(rows)
        self._whole.extend(np.diff(starts).tolist())
        self._hashes += hashes
        return hashes

    def __len__(self) -> int:
        return len(self._rows)

    def finish(self) -> Tokens:
        """Close the files (or take the memory) and return everything."""
        starts = np.array(self._starts, dtype=np.int64)
        rows = np.array(self._rows, dtype=np.int64)
        hashes = np.array(self._hashes, dtype=np.uint64)
        whole = np.array(self._whole, dtype=np.int64)
        if self.folder:
            self._ids.close()
            self._trained.close()
            starts.tofile(self.folder / "starts.i64")
            rows.tofile(self.folder / "rows.i64")
            hashes.tofile(self.folder / "hashes.u64")
            whole.tofile(self.folder / "whole.i64")
            return load_tokens(self.folder)
        assert isinstance(self._ids, io.BytesIO) and isinstance(self._trained, io.BytesIO)
        return Tokens(
            np.frombuffer(self._ids.getbuffer(), dtype=np.int32),
            np.frombuffer(self._trained.getbuffer(), dtype=np.bool_),
            starts,
            rows,
            hashes,
            whole,
        )


def load_tokens(folder: Path) -> Tokens:
    """Map the arrays of a folder that a `TokenWriter` finished."""
    return Tokens(
        _mapped(folder / "ids.i32", np.int32),
        _mapped(folder / "trained.u8", np.bool_),
        np.fromfile(folder / "starts.i64", dtype=np.int64),
        np.fromfile(folder / "rows.i64", dtype=np.int64),
        np.fromfile(folder / "hashes.u64", dtype=np.uint64),
        np.fromfile(folder / "whole.i64", dtype=np.int64),
    )


def _mapped(path: Path, dtype: type) -> NDArray:  # type: ignore[type-arg]
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")

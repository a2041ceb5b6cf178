"""Cut rows of tokens to a limit, and hold them as flat arrays: ids, trained masks, weights, starts.

Arrays of a prepared run are mapped from its folder: gigabytes of tokens cost no more memory
than the pages that are touched.

A row that is too long loses its end. Where that would leave less answer than half the limit (or
than the whole answer, if that is shorter), it loses the beginning of its prompt instead; what the
tokenizer puts in front (`<s>`) stays. Plain text is cut into windows, nothing is lost.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from studio.data.conversation_records import bytes_hash
from studio.data.dataset_files import Sources
from studio.data.template.template import IGNORED, Encoded

WEIGHTS = "weights.f32"
PIECE_WEIGHTS = 1 << 16


class Cut(NamedTuple):
    """What is left of a row, and which `places` of it; None if nothing was `lost`."""

    row: Encoded
    lost: Literal["nothing", "end", "start"] = "nothing"
    places: NDArray[np.int64] | None = None


def fit(row: Encoded, *, limit: int, num_lead_tokens: int) -> Cut:
    """Cut one conversation to `limit` tokens by the rule at the top of this file."""
    if len(row.ids) <= limit:
        return Cut(row)
    summed = np.concatenate([[0], np.cumsum(row.trained)])
    enough = min(int(summed[-1]), limit // 2)
    if summed[limit] >= enough:
        return _cut(row, "end", np.arange(limit))
    lead = min(num_lead_tokens, limit - 1)
    body = limit - lead
    inside = summed[body:] - summed[: len(summed) - body]
    inside[:lead] = -1  # the lead is kept anyway
    found = np.flatnonzero(inside >= enough)
    start = int(found[0]) if len(found) else int(np.argmax(inside))
    return _cut(row, "start", np.concatenate([np.arange(lead), np.arange(start, start + body)]))


def fit_alike(rows: Sequence[Encoded], *, limit: int, num_lead_tokens: int) -> list[Cut]:
    """Cut rows with one prompt as `fit` does, and where one loses tokens of it, all do."""
    cuts = [fit(row, limit=limit, num_lead_tokens=num_lead_tokens) for row in rows]
    starts = [c.places[num_lead_tokens] for c in cuts if c.lost == "start" and c.places is not None]
    if not starts:
        return cuts
    first = min(max(starts), *(int(row.trained.argmax()) for row in rows))
    made = []
    for row in rows:
        places = np.arange(len(row.ids))
        kept = places[(places < num_lead_tokens) | (places >= first)][:limit]
        made.append(_cut(row, "start", kept))
    return made


def windows(ids: NDArray[np.int32], *, limit: int, lead: Sequence[int]) -> Iterator[Encoded]:
    """Cut a text (without its lead) into windows that each begin with the lead."""
    body = max(1, limit - len(lead))
    for start in range(0, len(ids), body):
        piece = np.concatenate([lead, ids[start : start + body]]).astype(np.int32)
        if len(piece) >= 2:  # one token alone predicts nothing
            yield Encoded(piece, np.ones(len(piece), bool))


def _cut(row: Encoded, lost: Literal["end", "start"], places: NDArray[np.int64]) -> Cut:
    weights = None if row.weights is None else row.weights[places]
    return Cut(Encoded(row.ids[places], row.trained[places], weights), lost, places)


@dataclass(frozen=True, slots=True)
class Example:
    """One row for the loop; `row` is its number in the source, counted from 1.

    `good` is the verdict on a judged answer, and True for the chosen answer of a pair. `source` is
    the dataset that the row of a mix is from. `weights` are those of the tokens in the loss, None
    where all are 1.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    row: int
    good: bool = True
    source: str = ""
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """All rows one after the other; row `i` reaches from `starts[i]` to `starts[i + 1]`."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    hashes: NDArray[np.uint64]  # equal rows have equal ones; of preferences, equal prompts
    whole: NDArray[np.int64]  # how long each row was before it was cut
    good: NDArray[np.bool_]  # of preferences: chosen and good answers
    weights: NDArray[np.float32] | None = None  # of the tokens in the loss

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.starts)


class Examples(Sequence[Example]):
    """Some of the rows of `Tokens`, in a given order."""

    def __init__(
        self, tokens: Tokens, order: NDArray[np.int64], sources: Sources | None = None
    ) -> None:
        self.tokens, self.order, self.sources = tokens, order, sources

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.tokens, self.order[index], self.sources)
        at = int(self.order[index])
        start, stop = int(self.tokens.starts[at]), int(self.tokens.starts[at + 1])
        ids = np.array(self.tokens.ids[start:stop])
        labels = np.where(self.tokens.trained[start:stop], ids, np.int32(IGNORED))
        good = bool(self.tokens.good[at]) if len(self.tokens.good) else True
        row, own = int(self.tokens.rows[at]), self.sources
        source = own.names[own.of_row[row - 1]] if own else ""
        weights = None if self.tokens.weights is None else self.tokens.weights[start:stop]
        return Example(ids, labels.astype(np.int32), row, good, source, weights)

    def count_by_source(self) -> dict[str, int]:
        """Return the number of rows of each source of a mix; nothing of other datasets."""
        if not self.sources:
            return {}
        own = self.sources.of_row[self.tokens.rows[self.order] - 1]
        counts = np.bincount(own, minlength=len(self.sources.names))
        return dict(zip(self.sources.names, counts.tolist(), strict=True))


def places_by_source(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the places of rows by their source; without sources all have an empty one."""
    found: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        found.setdefault(example.source, []).append(place)
    return found


class TokenWriter:
    """Collects rows; with a folder the tokens go straight to disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._ids: BinaryIO = (folder / "ids.i32").open("wb") if folder else io.BytesIO()
        self._trained: BinaryIO = (folder / "trained.u8").open("wb") if folder else io.BytesIO()
        self._starts, self._rows, self._whole = array("q", [0]), array("q"), array("q")
        self._hashes, self._good = array("Q"), array("B")
        self._weights: BinaryIO | None = None  # made for the first row that has some

    def add(self, row: Encoded, number: int, *, whole: int = 0) -> None:
        """Append a row that was `whole` tokens long before it was cut."""
        self.extend(row.ids, row.trained, np.array([0, len(row.ids)]), [number], row.weights)
        self._whole[-1] = whole or len(row.ids)

    def add_answer(self, row: Encoded, number: int, *, good: bool, prompt: int, whole: int) -> None:
        """Append an answer of a pair, or a judged one, with the hash of its prompt."""
        self.add(row, number, whole=whole)
        self._hashes[-1] = prompt
        self._good.append(good)

    def extend(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        starts: NDArray[np.int64],
        rows: Sequence[int],
        weights: NDArray[np.float32] | None = None,
    ) -> array[int]:
        """Append rows, row `i` from `starts[i]` to `starts[i + 1]`; return their hashes."""
        first, stop = int(starts[0]), int(starts[-1])
        view = ids.data.cast("B")
        hashes = array("Q", [bytes_hash(view[a:b]) for a, b in pairwise((4 * starts).tolist())])
        self._ids.write(ids[first:stop].data)
        self._trained.write(trained[first:stop].data)
        self._write_weights(stop - first, None if weights is None else weights[first:stop])
        self._starts.extend((starts[1:] + (self._starts[-1] - first)).tolist())
        self._rows.extend(rows)
        self._whole.extend(np.diff(starts).tolist())
        self._hashes += hashes
        return hashes

    def _write_weights(self, count: int, weights: NDArray[np.float32] | None) -> None:
        if weights is not None and self._weights is None:
            self._weights = (self.folder / WEIGHTS).open("wb") if self.folder else io.BytesIO()
            self._write_weights(self._starts[-1], None)
        if self._weights and weights is not None:
            self._weights.write(weights.data)
        elif self._weights:
            for at in range(0, count, PIECE_WEIGHTS):
                self._weights.write(np.ones(min(PIECE_WEIGHTS, count - at), np.float32).data)

    def close(self) -> None:
        """Close the files, also of rows that are refused: an open one cannot be deleted."""
        for file in (self._ids, self._trained, self._weights) if self.folder else ():
            if file:
                file.close()

    def finish(self) -> Tokens:
        """Close the files (or take the memory) and return everything."""
        if self.folder:
            self.close()
            for name in ("starts.i64", "rows.i64", "hashes.u64", "whole.i64", "good.u8"):
                with (self.folder / name).open("wb") as file:
                    getattr(self, f"_{name.partition('.')[0]}").tofile(file)
            return load_tokens(self.folder)
        assert isinstance(self._ids, io.BytesIO) and isinstance(self._trained, io.BytesIO)
        return Tokens(
            np.frombuffer(self._ids.getbuffer(), dtype=np.int32),
            np.frombuffer(self._trained.getbuffer(), dtype=np.bool_),
            np.asarray(self._starts),
            np.asarray(self._rows),
            np.asarray(self._hashes),
            np.asarray(self._whole),
            np.asarray(self._good).astype(np.bool_),
            np.frombuffer(self._weights.getbuffer(), np.float32)
            if isinstance(self._weights, io.BytesIO)
            else None,
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
        np.fromfile(folder / "good.u8", dtype=np.bool_),
        _mapped(folder / WEIGHTS, np.float32) if (folder / WEIGHTS).is_file() else None,
    )


def _mapped(path: Path, dtype: type) -> NDArray:  # type: ignore[type-arg]
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)

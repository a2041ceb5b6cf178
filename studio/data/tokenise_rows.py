"""Tokenise rows: convert, encode, cut to the context, write flat token arrays with trained masks.

Many gigabytes of tokens cost no more memory than the pages that are touched.
Rows that are too long are cut as `truncation.py` says.
"""

from __future__ import annotations

import io
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from studio.data.column_mapping import columns_read
from studio.data.conversation_records import (
    Conversation,
    Document,
    Judged,
    Pair,
    Problem,
    Row,
    bytes_hash,
    content_hash,
    prompt_hash,
)
from studio.data.dataset_files import Origin, Sources
from studio.data.dataset_report import (
    LOW_SHARE,
    PartCounter,
    RowCounter,
    TokenReport,
    histogram,
    reading_notes,
    token_smells,
)
from studio.data.preference_rows import preferences
from studio.data.recognise_format import Guess, guess_origin
from studio.data.row_converters import Converter, Made, converter, prompt_converter
from studio.data.template.render_conversation import Reading, Rendered
from studio.data.template.template import IGNORED, Encoded, Template, View
from studio.data.template.token_masks import runs
from studio.data.truncation import Cut, fit, fit_alike, windows
from studio.errors import DataError
from studio.spec import DataSource
from studio.train_args import Rows

BATCH_ROWS = 256
PIECE_CHARS = 1 << 16
WEIGHTS = "weights.f32"


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

    def add_answer(self, row: Cut, number: int, *, good: bool, prompt: int, whole: int) -> None:
        """Append an answer of a pair, or a judged one, with the hash of its prompt."""
        self.add(Encoded(row.ids, row.trained), number, whole=whole)
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
            for at in range(0, count, PIECE_CHARS):
                self._weights.write(np.ones(min(PIECE_CHARS, count - at), np.float32).data)

    def finish(self) -> Tokens:
        """Close the files (or take the memory) and return everything."""
        if self.folder:
            self._ids.close()
            self._trained.close()
            if self._weights:
                self._weights.close()
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


def tokenise(
    origin: Origin, source: DataSource, template: Template, limit: int, writer: TokenWriter,
    rows: Rows = "answers",
) -> tuple[Tokens, TokenReport]:  # fmt: skip
    """Write every usable row of an origin as tokens, cut to `limit`, and report.

    Of pairs, two rows each: the chosen answer, then the rejected one. A row that is a prompt keeps
    its answer, if it has one, as the tokens that would be trained; only the prompt has a limit.

    Raises:
        DataError: No row can be used, or no token would be trained.
    """
    guess = guess_origin(origin, source)
    work = _Tokeniser(template, source.train_on, limit, writer)
    if rows in ("prompts", "referenced"):
        work.write_prompts(origin.rows(), guess, referenced=rows == "referenced")
        return work.finish(origin, guess._replace(sure=True), trains=False)
    if rows != "answers":
        found = preferences(origin, source, work.counter, verdicts=rows == "judged")
        work.write_preferences(found)
        return work.finish(origin, guess)
    if guess.mapping.format == "judged" and source.judged == "refuse":
        raise DataError(
            f"{origin.name} holds answers judged as good or bad, and bad answers must not be "
            "trained. Set data.judged=good to train the good ones only, or data.format if the "
            "column means something else."
        )
    if origin.plain and guess.mapping.format == "text":
        work.write_text(origin.rows())
    else:
        work.write_rows(origin.rows(), guess)
    return work.finish(origin, guess)


class _Tokeniser:
    """One pass over the rows of a dataset, and what happened to them."""

    def __init__(self, template: Template, train_on: Any, limit: int, writer: TokenWriter) -> None:
        self.template, self.train_on, self.limit, self.writer = template, train_on, limit, writer
        self.counter, self.lengths, self.parts = RowCounter(), array("q"), PartCounter()
        self.readings: Counter[Reading] = Counter()  # of documents with control tokens
        self.truncated = self.truncated_start = self.truncated_tokens = 0

    def _converted(
        self, items: Iterator[Row | Problem], guess: Guess, convert: Converter
    ) -> Iterator[Made]:
        """Yield what rows became; `counter.read` is the number of the newest."""
        columns = columns_read(guess.mapping)
        for item in items:
            self.counter.read += 1
            made: Made | Problem
            if isinstance(item, Row):
                self.counter.see(item, columns)
                made = convert(item)
            else:
                made = item
            if isinstance(made, Problem):
                self.counter.drop(made)
            else:
                yield made

    def write_prompts(
        self, items: Iterator[Row | Problem], guess: Guess, *, referenced: bool
    ) -> None:
        """Write prompts, each followed by its reference; `referenced` drops those without one."""
        for made in self._converted(items, guess, prompt_converter(guess.mapping)):
            assert isinstance(made, Conversation)
            messages, answer = made.messages, ""
            if messages[-1]["role"] == "assistant":
                messages, answer = messages[:-1], messages[-1]["content"].strip()
            if all(message["role"] in ("system", "assistant") for message in messages):
                text = "The row has no question: no message of a user or a tool is to be answered."
                self.counter.drop(Problem(made.line, "empty_prompt", text))
                continue
            try:
                ids = self.template.encode_prompt(messages, made.tools)
            except DataError as error:
                self.counter.drop(Problem(made.line, "template", error.text))
                continue
            if referenced and not answer:
                text = "The row has no answer, and a score of train.rewards compares with it."
                self.counter.drop(Problem(made.line, "no_reference", text))
            elif len(ids) >= self.limit:
                text = f"The prompt has {len(ids):,} tokens, and {self.limit:,} is the limit."
                self.counter.drop(Problem(made.line, "too_long", text))
            else:
                reference = self.template.encode_text(answer)
                trained = np.arange(len(ids) + len(reference)) >= len(ids)
                whole = np.concatenate([ids, reference]).astype(np.int32)
                self.writer.add(Encoded(whole, trained), self.counter.read)
                self.counter.keep(made)
                self.counter.hashes.append(content_hash(made))
                self.lengths.append(len(ids))

    def write_rows(self, items: Iterator[Row | Problem], guess: Guess) -> None:
        numbers: list[int] = []
        rows: list[Conversation | Document] = []
        for made in self._converted(items, guess, converter(guess.mapping)):
            numbers.append(self.counter.read)
            rows.append(made)
            if len(rows) >= BATCH_ROWS:
                self._write_batch(numbers, rows)
                numbers, rows = [], []
        if rows:
            self._write_batch(numbers, rows)

    def _write_batch(self, numbers: list[int], rows: list[Conversation | Document]) -> None:
        batch = self.template.encode_batch(rows, self.train_on)
        views = batch.views
        lengths = np.diff(batch.starts)
        fits = np.array(batch.teaches) & (lengths <= self.limit)
        at = 0
        for start, stop in [*runs(fits), (len(views), len(views))]:
            for i in range(at, start):
                source = views[i].source
                self._write_odd(numbers[source], rows[source], views[i], batch.row(i))
            at = stop
            if start < stop:
                sources = [numbers[view.source] for view in views[start:stop]]
                self.counter.hashes += self.writer.extend(
                    batch.ids, batch.trained, batch.starts[start : stop + 1], sources, batch.weights
                )
                self.lengths.extend(lengths[start:stop].tolist())
                for view in views[start:stop]:
                    self._keep(rows[view.source], view)

    def _keep(self, row: Conversation | Document, view: View) -> None:
        """Count a view that is trained, and its row once."""
        if view.part == 0:
            self.counter.keep(row)
        if isinstance(row, Document) and isinstance(view.laid, Rendered):
            self.readings[view.laid.reading] += 1
        if view.lost or view.changes or view.restored or view.num_parts > 1:
            self.parts.see(view)

    def _write_odd(
        self, number: int, row: Conversation | Document, view: View, item: Encoded | Problem
    ) -> None:
        """Write a row that is too long, or count why it cannot be used."""
        if isinstance(item, Problem):
            self.counter.drop(item)
            return
        if not item.trained[1:].any():
            self.counter.drop(Problem(row.line, "no_answer", "No token of the row is trained."))
            return
        whole = len(item.ids)
        self.lengths.append(whole)
        self.counter.hashes.append(bytes_hash(item.ids.data))
        self._keep(row, view)
        if isinstance(row, Document) and item.trained.all():
            lead = self.template.backend.prefix
            for window in windows(item.ids[len(lead) :], limit=self.limit, lead=lead):
                self.writer.add(window, number, whole=whole)
            return
        lead_tokens = self.template.num_lead_tokens(item.ids)
        cut = fit(item, limit=self.limit, num_lead_tokens=lead_tokens)
        self.truncated += 1
        self.truncated_start += cut.lost == "start"
        self.truncated_tokens += whole - len(cut.ids)
        self.writer.add(cut.of(item), number, whole=whole)

    def write_preferences(self, items: Iterator[tuple[int, Pair | Judged]]) -> None:
        """Write pairs as two adjacent rows each, and judged answers as one."""
        while batch := [*islice(items, BATCH_ROWS)]:
            sides = [[*one] if isinstance(one, Pair) else [one.conversation] for _, one in batch]
            encoded = self.template.encode_batch([*chain(*sides)], self.train_on)
            last = {view.source: i for i, view in enumerate(encoded.views)}  # with the last answer
            at = 0
            for (number, record), answers in zip(batch, sides, strict=True):
                places = [last[at + i] for i in range(len(answers))]
                self._write_record(number, record, [encoded.row(place) for place in places])
                at += len(answers)

    def _write_record(
        self, number: int, record: Pair | Judged, answers: Sequence[Encoded | Problem]
    ) -> None:
        whole = [one for one in answers if isinstance(one, Encoded)]
        for problem in (one for one in answers if isinstance(one, Problem)):
            return self.counter.drop(problem)
        lead = self.template.num_lead_tokens(whole[0].ids)
        cuts = fit_alike(whole, limit=self.limit, num_lead_tokens=lead)
        line = record[0].line
        if not all(cut.trained[1:].any() for cut in cuts):
            text = f"No token of an answer is left within {self.limit:,} tokens."
            return self.counter.drop(Problem(line, "no_answer", text))
        self.counter.keep(record, number)
        self.counter.hashes.append(content_hash(record))
        prompt = prompt_hash(record)
        for place, (one, cut) in enumerate(zip(whole, cuts, strict=True)):
            good = record.good if isinstance(record, Judged) else place == 0
            self.lengths.append(len(one.ids))
            self.truncated += cut.lost != "nothing"
            self.truncated_start += cut.lost == "start"
            self.truncated_tokens += len(one.ids) - len(cut.ids)
            self.writer.add_answer(cut, number, good=good, prompt=prompt, whole=len(one.ids))
        return None

    def write_text(self, items: Iterator[Row | Problem]) -> None:
        """Write a text file as one long text: lines joined, tokens cut into windows."""
        lead = self.template.backend.prefix
        body = max(1, self.limit - len(lead))
        waiting, first = np.empty(0, np.int32), 1
        for text, number in self._pieces(items):
            waiting = np.concatenate([waiting, self.template.encode_text(text)])
            full = len(waiting) // body * body
            self._write_windows(waiting[:full], first)
            waiting, first = waiting[full:], number
        rest = np.concatenate([waiting, self.template.eos_ids]).astype(np.int32)
        self._write_windows(rest, first)

    def _write_windows(self, ids: NDArray[np.int32], number: int) -> None:
        for window in windows(ids, limit=self.limit, lead=self.template.backend.prefix):
            self.writer.add(window, number)
            self.lengths.append(len(window.ids))

    def _pieces(self, items: Iterator[Row | Problem]) -> Iterator[tuple[str, int]]:
        lines: list[str] = []
        size = 0
        for item in items:
            self.counter.read += 1
            if isinstance(item, Problem):
                self.counter.drop(item)
                continue
            self.counter.kept += 1
            lines.append(item.values["text"])
            size += len(lines[-1]) + 1
            if size >= PIECE_CHARS:
                yield "\n".join(lines) + "\n", self.counter.read
                lines, size = [], 0
        if lines:
            yield "\n".join(lines), self.counter.read

    def finish(
        self, origin: Origin, guess: Guess, *, trains: bool = True
    ) -> tuple[Tokens, TokenReport]:
        tokens, template = self.writer.finish(), self.template
        fields = self.counter.fields(origin, guess)
        num_trained = int(np.count_nonzero(tokens.trained))
        if num_trained == 0 and trains:
            raise DataError(f"Not one token of {origin.name} would be trained.")
        share = num_trained / len(tokens.ids)
        is_text = guess.mapping.format == "text" and trains
        lengths = np.asarray(self.lengths)
        if trains:
            fields["warnings"] += [*self.parts.sentences(), *self._warnings(share, is_text)]
            fields["warnings"] += token_smells(tokens, self.truncated, guess.mapping.format)
        return tokens, TokenReport(
            **fields,
            name=origin.name,
            template="text" if is_text else template.name,
            template_reason="plain text needs no template" if is_text else template.reason,
            examples=len(tokens),
            tokens=len(tokens.ids),
            trained_tokens=num_trained,
            trained_token_share=share,
            truncated=self.truncated,
            truncated_start=self.truncated_start,
            truncated_tokens=self.truncated_tokens,
            limit=self.limit,
            longest=int(lengths.max()),
            length_histogram=histogram(lengths),
            open_ended=self.counter.open_ended,
            lost_parts=dict(self.parts.lost),
        )

    def _warnings(self, share: float, is_text: bool) -> Iterator[str]:
        if at_end := self.truncated - self.truncated_start:
            yield f"{at_end:,} rows are longer than {self.limit:,} tokens and lose their end."
        if self.truncated_start:
            yield (
                f"{self.truncated_start:,} rows are longer than {self.limit:,} tokens and lose the "
                "beginning of their prompt, so that the answer stays in."
            )
        yield from reading_notes(self.readings)
        if share < LOW_SHARE:
            yield f"Only {share:.1%} of the tokens are trained."
        if not self.template.end and not is_text:
            yield "The tokenizer has no end-of-turn token: answers will not learn to stop."

"""Tokenise rows: convert, encode, cut to the context, write flat token arrays with trained masks.

Plain training reads rows through `converter`; pairs and judged answers are `preferences`, or a
sentence says why the dataset has none.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from studio.data.column_mapping import columns_read, getter
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
from studio.data.dataset_files import Origin
from studio.data.dataset_report import (
    LOW_SHARE,
    PartCounter,
    RowCounter,
    TokenReport,
    histogram,
    reading_notes,
    token_smells,
)
from studio.data.recognise_format import Guess, guess_origin
from studio.data.row_converters import (
    Converter,
    Made,
    converter,
    prompt_converter,
    record_converter,
)
from studio.data.template.render_conversation import Reading, Rendered
from studio.data.template.template import Encoded, Template, TrainOn, View, runs
from studio.data.token_arrays import Tokens, TokenWriter, fit, fit_alike, windows
from studio.errors import DataError
from studio.spec import DataSource
from studio.train_args import Rows

BATCH_ROWS = 256
PIECE_CHARS = 1 << 16


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
    work = _Tokeniser(template, trained_on(source, rows), limit, writer)
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


def preferences(
    origin: Origin, source: DataSource, counter: RowCounter, *, verdicts: bool = False
) -> Iterator[tuple[int, Pair | Judged]]:
    """Yield each record with the number of its row, from 1; rows of scored answers may give many.

    Both sides of a pair, and judged answers, carry loss on their own answers only: answers in the
    prompt are muted. Rows that share a `prompt_hash` belong on one side of a split.

    Args:
        source: How it is read: `format`, and `pairs` and `margin` of scored answers.
        counter: Counts rows read and dropped here; the caller calls `counter.keep(record, number)`
            or `counter.drop` for what it makes of each record.
        verdicts: Judged answers are wanted (KTO); each pair gives a good and a bad one.

    Raises:
        DataError: The dataset holds no such records, or only good or only bad answers.
    """
    guess = guess_origin(origin, source)
    wanted = "pairs of chosen and rejected answers"
    if verdicts:
        wanted = "judged answers (with a column label that is true or false) or pairs"
    kinds = ("preference", "scored", *(["judged"] if verdicts else []))
    if guess.mapping.format not in kinds:
        raise DataError(
            f"{origin.name} holds rows of the format {guess.mapping.format}, and this loss needs "
            f"{wanted}: choose another dataset, or train.loss=sft."
        )
    if guess.mapping.format == "preference" and getter(guess.mapping, "rejected") is None:
        raise DataError(
            f"No column of {origin.name} is the rejected answer: map the part rejected."
        )
    convert = record_converter(guess.mapping, pairs=source.pairs, margin=source.margin)
    columns, seen = columns_read(guess.mapping), set[bool]()
    for item in origin.rows():
        for record in counter.take(item, columns, convert) or ():
            assert isinstance(record, Pair | Judged)
            records: list[Pair | Judged] = [record]
            if verdicts and isinstance(record, Pair):
                records = [Judged(record.chosen, True), Judged(record.rejected, False)]
            seen.update(one.good for one in records if isinstance(one, Judged))
            yield from ((counter.read, one) for one in records)
    if len(seen) == 1 and counter.read != origin.at_most:
        raise DataError(
            f"Every answer of {origin.name} is judged as {'good' if True in seen else 'bad'}: "
            "this loss needs good and bad ones. Add the others, or choose another loss."
        )


def trained_on(source: DataSource, rows: Rows) -> TrainOn:
    """Return the tokens that carry loss: `data.train_on`, but never prompts of compared answers."""
    if rows in ("pairs", "judged") and source.train_on == "all":
        return "assistant"
    return source.train_on


@dataclass(slots=True)
class _Text:
    """One part of text files: its lines that wait to be encoded, its tokens that wait for more."""

    lines: list[str] = field(default_factory=list)
    size: int = 0  # characters of the lines
    waiting: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    number: int = 0  # of its newest row
    is_open: bool = False  # lines of the file at hand are encoded


class _Tokeniser:
    """One pass over the rows of a dataset, and what happened to them."""

    def __init__(self, template: Template, train_on: Any, limit: int, writer: TokenWriter) -> None:
        self.template, self.train_on, self.limit, self.writer = template, train_on, limit, writer
        self.counter, self.lengths, self.parts = RowCounter(), array("q"), PartCounter()
        self.readings: Counter[Reading] = Counter()  # of documents with control tokens
        self.truncated = self.truncated_start = self.truncated_tokens = 0

    def _converted(
        self, items: Iterator[Row | Problem], guess: Guess, convert: Converter
    ) -> Iterator[tuple[int, Made]]:
        """Yield what rows became, each with the number of its row, from 1."""
        columns = columns_read(guess.mapping)
        for item in items:
            made = cast(Made | None, self.counter.take(item, columns, convert))
            if made is not None:
                yield self.counter.read, made

    def write_prompts(
        self, items: Iterator[Row | Problem], guess: Guess, *, referenced: bool
    ) -> None:
        """Write prompts, each followed by its reference; `referenced` drops those without one."""
        for number, made in self._converted(items, guess, prompt_converter(guess.mapping)):
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
                self.writer.add(Encoded(whole, trained), number)
                self.counter.keep(made)
                self.counter.hashes.append(content_hash(made))
                self.lengths.append(len(ids))

    def write_rows(self, items: Iterator[Row | Problem], guess: Guess) -> None:
        found = self._converted(items, guess, converter(guess.mapping))
        while batch := [*islice(found, BATCH_ROWS)]:
            self._write_batch(*zip(*batch, strict=True))
            batch.clear()  # before the next one is made: rows may be long

    def _write_batch(self, numbers: Sequence[int], rows: Sequence[Made]) -> None:
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
        self.truncated_tokens += whole - len(cut.row.ids)
        self.writer.add(cut.row, number, whole=whole)

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
        if not all(cut.row.trained[1:].any() for cut in cuts):
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
            self.truncated_tokens += len(one.ids) - len(cut.row.ids)
            self.writer.add_answer(cut.row, number, good=good, prompt=prompt, whole=len(one.ids))
        return None

    def write_text(self, items: Iterator[Row | Problem]) -> None:
        """Write text files as one long text per part: lines joined, files ended, cut into windows.

        Held-out lines are a text of their own, so that no window holds lines of both parts.
        """
        parts, last = {False: _Text(), True: _Text()}, 0
        for item in items:
            if item.line <= last:  # the next file begins
                for text in parts.values():
                    if text.lines and not self.template.eos_ids:
                        text.lines.append("")
                    self._encode(text, ends=True)
            last = item.line
            self.counter.read += 1
            if isinstance(item, Problem):
                self.counter.drop(item)
                continue
            self.counter.kept += 1
            text = parts[item.held_out]
            text.lines.append(item.values["text"])
            text.number, text.size = self.counter.read, text.size + len(text.lines[-1]) + 1
            if text.size >= PIECE_CHARS:
                text.lines.append("")
                self._encode(text)
        for text in parts.values():
            self._encode(text, ends=True)
            self._write_windows(text.waiting, text.number)

    def _encode(self, text: _Text, *, ends: bool = False) -> None:
        """Encode the lines of a text that wait, and write the windows that are full."""
        if not text.size and not text.is_open:
            return
        end = self.template.eos_ids
        ids, readings = self.template.encode_stream("\n".join(text.lines))
        self.readings.update(readings)
        waiting = np.concatenate([text.waiting, ids])
        body = max(1, self.limit - len(self.template.backend.prefix))
        full = len(waiting) // body * body
        self._write_windows(waiting[:full], text.number)
        if ends and ids[-len(end) :].tolist() != end:
            waiting = np.concatenate([waiting, end]).astype(np.int32)
        text.lines, text.size, text.waiting, text.is_open = [], 0, waiting[full:], not ends

    def _write_windows(self, ids: NDArray[np.int32], number: int) -> None:
        for window in windows(ids, limit=self.limit, lead=self.template.backend.prefix):
            self.writer.add(window, number)
            self.lengths.append(len(window.ids))

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

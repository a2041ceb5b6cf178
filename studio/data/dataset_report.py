"""The report on a dataset: rows read, kept and dropped, token lengths, warnings."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from studio.data.column_mapping import Mapping
from studio.data.conversation_records import AnyRecord, Conversation, Document, Problem, Row
from studio.data.preference_pairs import PairCounter
from studio.errors import DataError

if TYPE_CHECKING:
    from studio.data.dataset_files import Origin
    from studio.data.recognise_format import Guess
    from studio.data.template.render_conversation import Reading
    from studio.data.template.template import View
    from studio.data.token_arrays import Tokens

T = TypeVar("T")
LOW_SHARE = 0.05
MANY_MESSAGES = 1000
NUM_BINS = 24
MAX_LISTED, MAX_PROBLEMS, MAX_NAMED = 1000, 100_000, 8


class Frozen(BaseModel):
    """A record that never changes."""

    model_config = ConfigDict(frozen=True)


class ProblemLine(Frozen):
    """One dropped row."""

    line: int
    kind: str
    text: str
    file: str = ""


class RowCounts(Frozen):
    """Rows read, kept and dropped."""

    read: int = 0
    kept: int = 0
    dropped: int = 0


class Suspicion(Frozen):
    """Rows that share a suspicious trait."""

    kind: str
    text: str
    rows: int
    lines: list[int]


class Report(Frozen):
    """Rows of a dataset; the first `near_compared` are compared for near duplicates."""

    format: str = ""
    reason: str = ""
    container: str = ""
    encoding: str = ""
    mapping: Mapping = Mapping()
    rows: RowCounts = RowCounts()
    problems: list[ProblemLine] = []
    problem_counts: dict[str, int] = {}
    warnings: list[str] = []
    duplicates: int = 0
    near_duplicates: int | None = None
    near_compared: int = 0
    empty_answers: int = 0
    suspicious: list[Suspicion] = []
    scripts: dict[str, float] = {}
    languages: dict[str, float] = {}
    characters: int = 0
    answer_share: float = 0.0


class Histogram(Frozen):
    """Rows by token length: `counts[i]` rows lie in `edges[i] <= length < edges[i + 1]`."""

    edges: list[int] = [0, 1]
    counts: list[int] = [0]


class TokenReport(Report):
    """A report with what the rows became on a model.

    `overlap` counts held-out training rows, `lost_parts` the parts that the template cuts, by kind.
    """

    name: str = ""
    template: str = ""
    template_reason: str = ""
    examples: int = 0
    train_examples: int = 0
    validation_examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    trained_token_share: float = 0.0
    truncated: int = 0
    truncated_start: int = 0
    truncated_tokens: int = 0
    limit: int = 0
    context_length: int = 0
    longest: int = 0
    length_histogram: Histogram = Histogram()
    open_ended: int = 0
    overlap: int = 0
    lost_parts: dict[str, int] = {}


@dataclass(slots=True)
class RowCounter:
    """Counts the rows of one pass over a dataset; every report begins with its `fields`."""

    read: int = 0
    kept: int = 0
    last: int = 0  # number of the row that was kept last
    open_ended: int = 0
    muted: int = 0
    weights: array[float] = field(default_factory=lambda: array("d"))  # neither 0 nor 1
    echoes: int = 0  # rows whose answer repeats the question
    most_messages: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)
    pairs: PairCounter = field(default_factory=PairCounter)
    hashes: array[int] = field(default_factory=lambda: array("Q"))  # equal rows have equal ones
    unread_columns: Counter[str] = field(default_factory=Counter)
    unread_keys: Counter[str] = field(default_factory=Counter)

    def take(
        self, item: Row | Problem, columns: Set[str], convert: Callable[[Row], T | Problem]
    ) -> T | None:
        """Count an item that was read, and return what it becomes; None if it is dropped.

        `columns` are those that are read; the others are counted where they say anything.
        """
        self.read += 1
        made: T | Problem
        if isinstance(item, Problem):
            made = item
        else:
            if not item.values.keys() <= columns:
                for name, value in item.values.items():
                    if name not in columns and value not in (None, "", [], {}):
                        self.unread_columns[name] += 1
            made = convert(item)
        if isinstance(made, Problem):
            self.drop(made)
            return None
        return made

    def drop(self, problem: Problem) -> None:
        """Count a row that was read and cannot be used."""
        self.problem_counts[problem.kind] += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def keep(self, row: AnyRecord, number: int = 0) -> None:
        """Count what is used; several records with the number of one row are one row."""
        self.kept += not number or number != self.last
        self.last = number
        if isinstance(row, Document):
            return
        if not isinstance(row, Conversation):
            self.pairs.see(row)
            row = row[0]._replace(muted=())  # answers in a prompt are muted by us, not by the file
        messages = row.messages
        if len(messages) > self.most_messages:
            self.most_messages = len(messages)
        if len(messages) > 1 and messages[-1]["content"] == messages[-2]["content"]:
            self.echoes += messages[-2]["role"] == "user" and messages[-1]["content"] != ""
        if row.open_ended or row.muted or row.unread or row.weights:
            self.open_ended += row.open_ended
            self.muted += len(row.muted)
            self.weights.extend(weight for _, weight in row.weights)
            self.unread_keys.update(row.unread)

    def fields(self, origin: Origin, guess: Guess) -> dict[str, Any]:
        """Return the fields of `Report` that do not depend on what the pass was for.

        Raises:
            DataError: Not one row can be used.
        """
        if not self.kept:
            raise DataError(why_nothing(origin.name, self.read, self.problems, self.problem_counts))
        dropped = sum(self.problem_counts.values())
        notes = list(origin.notes)
        if not guess.sure:
            notes.append(f"The meaning of the columns was guessed: {guess.reason}.")
        if dropped:
            notes.append(f"{dropped:,} of {self.read:,} rows are dropped.")
        if self.open_ended:
            notes.append(f"{self.open_ended:,} rows end with a question; it is left out.")
        notes += self._smells()
        if guess.mapping.format in ("preference", "scored") and not self.pairs.pairs:
            notes.append(
                f"{self.kept:,} rejected answers are not used by plain training (train.loss=sft); "
                "losses on pairs, such as dpo, use both."
            )
        notes += self.pairs.sentences(self.problem_counts)
        if bad := self.problem_counts["judged_bad"]:
            notes.append(f"{bad:,} answers are judged as bad and are not used.")
        if self.muted:
            notes.append(
                f"{self.muted:,} answers are marked in the file (weight 0, or train false) and "
                "carry no loss."
            )
        if self.weights:
            notes.append(
                f"{len(self.weights):,} answers have a loss weight of their own in the file, from "
                f"{min(self.weights):g} to {max(self.weights):g}."
            )
        notes += [*_unread("column", "row", self.unread_columns)]
        notes += [*_unread("key", "message", self.unread_keys)]
        return {
            "format": guess.mapping.format,
            "reason": guess.reason,
            "container": origin.container,
            "encoding": origin.encoding,
            "mapping": guess.mapping,
            "rows": RowCounts(read=self.read, kept=self.kept, dropped=dropped),
            "problems": [ProblemLine(**p._asdict()) for p in self.problems[:MAX_LISTED]],
            "problem_counts": dict(self.problem_counts),
            "warnings": notes,
            "duplicates": len(self.hashes) - len(np.unique(np.asarray(self.hashes))),
            "empty_answers": self.problem_counts["empty_answer"],
        }

    def _smells(self) -> Iterator[str]:
        """Yield what is rarely meant."""
        if self.read == 1:
            yield "The dataset has one row only."
        if count := self.echoes:
            yield f"The answer repeats the question in {count:,} row{'s' * (count != 1)}."
        if self.most_messages >= MANY_MESSAGES:
            yield f"One conversation has {self.most_messages:,} messages: is it many in one row?"


def token_smells(tokens: Tokens, truncated: int, format: str) -> Iterator[str]:
    """Yield what is rarely meant of the tokens of rows."""
    count = len(tokens)
    if truncated * 2 > count:
        yield f"Most rows ({truncated:,} of {count:,}) are longer than what is kept of a row."
    if format in ("text", "labelled"):
        return
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    short = int(np.count_nonzero(trained <= 2))  # one and the end of the turn
    if short * 2 > count:
        yield f"In {short:,} of {count:,} rows at most one token is trained beside the end."


def reading_notes(readings: Counter[Reading]) -> Iterator[str]:
    """Yield how documents with control tokens are read, with their numbers by way of reading."""
    if count := readings["chat"]:
        rows = "1 row is a chat" if count == 1 else f"{count:,} rows are chats"
        yield (
            f"{rows} rendered already: control tokens are read as tokens, and the answers "
            "between them are trained (data.control_tokens)."
        )
    if count := readings["text"]:
        rows = "1 row holds" if count == 1 else f"{count:,} rows hold"
        yield (
            f"{rows} control tokens of the tokenizer, which are read as plain text; "
            "data.control_tokens=tokens reads them as tokens."
        )
    if count := readings["end"]:
        yield (
            f"The tokenizer's end of text in {count:,} line{'s' * (count != 1)} is read as a "
            "token, which separates texts; data.control_tokens=text reads it as plain text."
        )
    if count := readings["foreign"]:
        rows = "1 row holds" if count == 1 else f"{count:,} rows hold"
        yield (
            f"{rows} turns of a chat in another model's control tokens, which this tokenizer "
            "reads as plain text: give the rows as messages, to train the answers only."
        )


def _unread(what: str, holder: str, counts: Counter[str]) -> Iterator[str]:
    """Yield the sentence that names the columns or keys that are not read."""
    if not counts:
        return
    shown = counts.most_common(MAX_NAMED)
    names = [f'"{name[:40]}" of {n:,} {holder}{"s" * (n != 1)}' for name, n in shown]
    more = f" and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else ""
    plural = "s" * (len(counts) != 1)
    yield f"Not read: the {what}{plural} {', '.join(names)}{more}."


@dataclass(slots=True)
class PartCounter:
    """Counts the parts of kept rows that the template cuts, splits off or has to be given back."""

    lost: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    split_rows: int = 0
    split_views: int = 0
    restored: int = 0

    def see(self, view: View) -> None:
        """Count one view of a row."""
        kinds = [part.kind for part in view.lost]
        self.lost.update(kinds)
        self.rows.update({*kinds})
        self.changes.update(view.changes if view.part == 0 else ())
        self.split_rows += view.num_parts > 1 and view.part == 0
        self.split_views += view.num_parts > 1
        self.restored += view.restored

    def sentences(self) -> Iterator[str]:
        """Yield one sentence per kind of part."""
        for kind, text in _LOST.items():
            if count := (self.rows if kind in _BY_ROW else self.lost)[kind]:
                s, them = ("s", "them") if count != 1 else ("", "it")
                yield text.format(n=f"{count:,}", s=s, them=them)
        for change, text in _CHANGES.items():
            if count := self.changes[change]:
                yield text.format(f"{count:,} row{'s' * (count != 1)}")
        if self.split_rows:
            yield (
                "The chat template cuts parts of earlier answers, usually thoughts: "
                f"{_rows(self.split_rows)} trained turn by turn, as each answer was generated, in "
                f"{self.split_views:,} examples (data.thoughts)."
            )
        if self.restored:
            yield (
                f"The chat template cuts the thoughts of {self.restored:,} answers; they are "
                "written back in front of the answers (data.thoughts)."
            )


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"


_CHANGES = {
    "system": "The chat template does not write every system prompt: those of {} stand in front of "
    "a question.",
    "tools": "The chat template writes no tools: those of {} are listed in the system prompt.",
    "calls": "The chat template writes no tool calls: those of {} are trained as lines of JSON.",
    "results": "The chat template writes no tool results: those of {} are written as questions.",
    "thoughts": "The chat template writes no thoughts: those of {} stand between <think> tags in "
    "the answers.",
}
_BY_ROW = ("system", "tools")
_LOST = {
    "system": "The system prompt of {n} row{s} does not appear: the chat template leaves it out.",
    "user": "The chat template leaves out {n} question{s}.",
    "tool": "The chat template leaves out {n} tool result{s}.",
    "tools": "The tools of {n} row{s} do not appear: the chat template leaves them out.",
    "answer": "The chat template cuts the text of {n} answer{s}.",
    "thought": "The chat template cuts the thought{s} of {n} answer{s}; data.thoughts=turns trains "
    "{them}.",
    "call": "The chat template cuts {n} tool call{s}.",
    "end": "The chat template writes no end of turn behind {n} answer{s}.",
}


def histogram(lengths: NDArray[np.int64]) -> Histogram:
    """Count rows by length in equal steps from 0 to the longest."""
    step = max(1, -(-(int(lengths.max()) + 1) // NUM_BINS))
    counts = np.bincount(lengths // step, minlength=1)
    return Histogram(edges=[i * step for i in range(len(counts) + 1)], counts=counts.tolist())


def why_nothing(name: str, read: int, problems: Sequence[Problem], counts: Counter[str]) -> str:
    """Return the sentence for a dataset without one usable row."""
    if read == 0:
        return f"{name} holds no rows."
    kind, count = counts.most_common(1)[0]
    example = next((problem for problem in problems if problem.kind == kind), problems[0])
    share = "every one" if count == read else f"{count:,} of them"
    return (
        f"None of the {read:,} rows of {name} can be used; {share} for this reason: "
        f"{example.text.rstrip('.')} (first at line {example.line:,})."
    )

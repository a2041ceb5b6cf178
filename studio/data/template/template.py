"""Turn messages into token ids with a loss mask, for training, chat and X-ray alike.

Character spans become token masks through the tokenizer's own offsets: a token carries loss when
it covers at least one character of an answer. Offsets vary: byte-level tokens of one character
share its place, tokens of white space may have an empty place behind it, and tokens put in front by
the tokenizer have none at all.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from studio.data.conversation_records import Conversation, Document, Message, Problem
from studio.data.model_tokenizer import Backend
from studio.data.template.adapt_conversation import Change, turns, with_thoughts
from studio.data.template.jinja_sandbox import BREAK, Guard, TemplateRefused
from studio.data.template.lost_parts import Lost, Spans, ways_out
from studio.data.template.render_conversation import Layout, Reading, Rendered
from studio.data.template.rendered_documents import (
    ControlTokens,
    Renderings,
    has_foreign_turns,
    line_readings,
)
from studio.errors import DataError

TrainOn = Literal["assistant", "last", "all"]
Thoughts = Literal["template", "turns", "keep"]
IGNORED = -100
PART_NAMES = {
    "system": "system prompt", "user": "question", "tool": "tool result", "tools": "tools",
    "answer": "text", "thought": "thought", "call": "tool call", "end": "end of turn",
}  # fmt: skip


class Encoded(NamedTuple):
    """Token ids, which of them carry loss, and their weights in it, None where all are 1."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None


class View(NamedTuple):
    """A row as it is trained: all of it, or up to one of its answers.

    `source` is its place among the rows given, `part` its number among the `num_parts` views of
    that row, `lost` what its text does not hold, `restored` the number of thoughts written back
    into it, `changes` the parts that are said in words.
    """

    source: int
    row: Conversation | Document
    laid: Rendered | Problem
    lost: Sequence[Lost] = ()
    restored: int = 0
    part: int = 0
    num_parts: int = 1
    changes: tuple[Change, ...] = ()


class EncodedBatch(NamedTuple):
    """Views encoded together; view `i` reaches from `starts[i]` to `starts[i + 1]`.

    Most rows have one view; `views` say which. A row that the template refuses is empty and in
    `problems`, by its place. `teaches[i]` is True if a token of view `i` is trained; its first does
    not count, nothing predicts it.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.int64]
    teaches: list[bool]
    problems: dict[int, Problem]
    views: list[View]
    weights: NDArray[np.float32] | None = None

    def row(self, index: int) -> Encoded | Problem:
        """Return one view, or why there is none."""
        if index in self.problems:
            return self.problems[index]
        start, stop = self.starts[index : index + 2]
        weights = None if self.weights is None else self.weights[start:stop]
        return Encoded(self.ids[start:stop], self.trained[start:stop], weights)


class Template:
    """A layout on a tokenizer.

    `name` is `model` for the model's own template, `end` the text of the token that ends a turn
    ("" if there is none), `eos_ids` the token that closes a document, if there is one.
    """

    def __init__(
        self,
        backend: Backend,
        layout: Layout,
        reason: str,
        *,
        tool_layout: Layout | None = None,
        thoughts: Thoughts = "template",
        accept_lost: bool = False,
        control_tokens: ControlTokens = "auto",
    ) -> None:
        self.backend, self.reason, self.name, self.end = backend, reason, layout.name, layout.end
        self.thoughts, self.accept_lost = thoughts, accept_lost
        self.control_tokens = control_tokens
        self._layout, self._tool_layout = layout, tool_layout or layout
        self._guard = layout.guard
        self._prefix = list(backend.prefix) if layout.adds_prefix else []
        self.eos_ids = backend.token_ids(backend.eos)
        stops = [*layout.ends.stops, *self._tool_layout.ends.stops]
        self.stop_ids = tuple(dict.fromkeys([*backend.token_ids(*stops), *self.eos_ids]))
        self._controls = frozenset(backend.token_ids(*backend.controls))
        self._bos_ids = backend.token_ids(backend.special.get("bos_token", ""))

    def num_lead_tokens(self, ids: NDArray[np.int32]) -> int:
        """Return how many tokens at the start of a row must survive any cut (`<s>`)."""
        if self._prefix:
            return len(self._prefix)
        return int(len(ids) > 0 and int(ids[0]) in self._bos_ids)

    def is_special(self, token: int) -> bool:
        """Return True if a token is a control token, not text."""
        return token in self._controls

    @property
    def reads_date(self) -> bool:
        """True if rows are rendered with the date of the day."""
        sources = f"{self.backend.chat_template}{self.backend.tool_template}"
        return self.name == "model" and "strftime_now" in sources

    def encode_text(self, text: str) -> NDArray[np.int32]:
        """Return the ids of plain text, with nothing in front or behind."""
        return self._ids(self._guard(text))

    def encode_stream(self, text: str) -> tuple[NDArray[np.int32], Counter[Reading]]:
        """Return the ids of lines of a text file, and how those with control tokens are read.

        The tokenizer's own end of text separates texts: `auto` reads it, and only it, as a token.
        """
        guard, kept = self._stream_guard, self.control_tokens
        readings = line_readings(text, self._guard, guard, "tokens" if kept == "tokens" else "end")
        return self._ids(guard(text)), readings

    def encode_prompt(self, messages: list[Message], tools: list[Any] | None = None) -> list[int]:
        """Return the ids that stand before the next answer, as training saw them.

        Raises:
            DataError: The model's template refuses the conversation.
        """
        return self._prefix + self._ids(self.prompt_text(messages, tools)).tolist()

    def prompt_text(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """Return the text that stands before the next answer.

        Raises:
            DataError: The model's template refuses the conversation.
        """
        try:
            return self._layout_of(tools).prompt(messages, tools)
        except TemplateRefused as refused:
            raise DataError(f"{self._who()} refuses this: {refused}.") from None

    def encode_batch(
        self, rows: Sequence[Conversation | Document], train_on: TrainOn = "assistant"
    ) -> EncodedBatch:
        """Encode many rows at once."""
        views = [v for at, row in enumerate(rows) for v in self._views(at, row, train_on)]
        texts = [view.laid.text for view in views if isinstance(view.laid, Rendered)]
        encodings = iter(self.backend.core.encode_batch(texts, add_special_tokens=False))
        packed: list[bytes] = []
        stops: list[int] = [0]
        teaches: list[bool] = []
        ranges: list[tuple[int, int]] = []
        weighed: list[tuple[int, int, float]] = []
        problems: dict[int, Problem] = {}
        for view in views:
            at = stops[-1]
            found: list[tuple[int, int]] = []
            if isinstance(view.laid, Problem):
                problems[len(teaches)] = view.laid
            else:
                encoding = next(encodings)
                ids, found = self._encoded(view.row, view.laid, encoding, train_on)
                if isinstance(view.row, Conversation) and view.row.weights:
                    places = self._weighed(view.row, view.laid, encoding, train_on)
                    weighed += [(at + start, at + stop, weight) for start, stop, weight in places]
                packed.append(struct.pack(f"={len(ids)}i", *ids))  # the fastest way from a list
                ranges += [(at + start, at + stop) for start, stop in found]
                at += len(ids)
            stops.append(at)
            teaches.append(bool(found) and found[-1][1] > 1)
        trained = np.zeros(stops[-1], bool)
        for start, stop in ranges:
            trained[start:stop] = True
        weights = np.ones(stops[-1], np.float32) if weighed else None
        for start, stop, weight in weighed:
            weights[start:stop] = weight  # type: ignore[index]
        flat = np.frombuffer(b"".join(packed), dtype=np.int32)
        return EncodedBatch(flat, trained, np.array(stops), teaches, problems, views, weights)

    def render(self, row: Conversation | Document) -> Rendered | Problem:
        """Return a row as text with the spans that carry loss: all that training sees of it.

        Every row of every run passes here, with its parts, its text and its spans together; `lost`
        are the parts that the text does not hold.
        """
        if isinstance(row, Document):
            return self._document(row.text)
        try:
            laid = self._layout_of(row.tools).render(row.messages, row.tools)
        except TemplateRefused as refused:
            text = (
                f"{self._who()} refuses it: {str(refused).rstrip('.!')}. {ways_out(row.messages)}."
            )
            return Problem(row.line, "template", text)
        except RecursionError:
            text = "Its tools or the arguments of a call are nested too deeply."
            return Problem(row.line, "json", text)
        return _without_muted(laid, row) if row.muted else laid

    def _who(self) -> str:
        """Return the chat template with the name of its model, to begin a sentence."""
        if self.name != "model":
            return f"The chat template {self.name}"
        of = self.backend.name
        return f"The chat template of {of}" if of else "The model's chat template"

    def _layout_of(self, tools: list[Any] | None) -> Layout:
        return self._tool_layout if tools else self._layout

    def _views(self, at: int, row: Conversation | Document, train_on: TrainOn) -> list[View]:
        """Return a row as it is trained; what is lost decides if it is whole, split or refused."""
        if train_on == "all" and isinstance(row, Conversation) and row.muted:
            row = row._replace(muted=(), weights=(*row.weights, *((n, 0.0) for n in row.muted)))
        laid = self.render(row)
        if isinstance(laid, Problem) or isinstance(row, Document):
            return [View(at, row, laid)]
        if not laid.lost and not laid.changes:
            return [View(at, row, laid)]
        whole = View(at, row, laid, laid.lost, changes=laid.changes)
        missing = _trained_lost(row, laid, train_on)
        if not missing:
            return [whole]
        if self.thoughts == "template":
            return [self._checked(whole, train_on)]
        if self.thoughts == "turns" and any(p.message + 1 < len(row.messages) for p in missing):
            return [*self._turns(whole, train_on)]
        return [self._checked(self._restored(whole, train_on), train_on)]

    def _turns(self, whole: View, train_on: TrainOn) -> Iterator[View]:
        """Yield one view per answer, or the reason why one of them cannot be trained."""
        assert isinstance(whole.row, Conversation)
        rows = [*turns(whole.row)][-1:] if train_on == "last" else [*turns(whole.row)]
        views = [self._single(whole.source, row, train_on) for row in rows]
        if refused := next((view for view in views if isinstance(view.laid, Problem)), None):
            yield refused._replace(row=whole.row)
            return
        for number, view in enumerate(views):
            yield view._replace(part=number, num_parts=len(views), changes=whole.changes)

    def _single(self, at: int, row: Conversation, train_on: TrainOn) -> View:
        """Return the view of one turn: thoughts of the answers before it are not part of it."""
        laid = self.render(row)
        if isinstance(laid, Problem):
            return View(at, row, laid)
        last = len(row.messages) - 1
        lost = [part for part in laid.lost if part.message == last or part.kind != "thought"]
        laid = laid._replace(lost=lost)
        return self._checked(self._restored(View(at, row, laid, lost), train_on), train_on)

    def _restored(self, view: View, train_on: TrainOn) -> View:
        """Write the thoughts back that the template cut from answers that carry loss."""
        row, laid = view.row, view.laid
        assert isinstance(row, Conversation) and isinstance(laid, Rendered)
        cut = {p.message for p in _trained_lost(row, laid, train_on) if p.kind == "thought"}
        if self.thoughts == "keep":
            cut = {part.message for part in laid.lost if part.kind == "thought"}
        if not cut:
            return view
        layout = self._layout_of(row.tools)
        made = with_thoughts(
            row, laid, cut, header=layout.header, cue=layout.cue, quote=self._guard
        )
        if row.muted:
            made = _without_muted(made, row)
        return view._replace(laid=made, lost=made.lost, restored=len(laid.lost) - len(made.lost))

    def _checked(self, view: View, train_on: TrainOn) -> View:
        """Refuse a view that has lost a trained part, unless the user accepts it."""
        row, laid = view.row, view.laid
        assert isinstance(row, Conversation) and isinstance(laid, Rendered)
        missing = _trained_lost(row, laid, train_on)
        if self.thoughts == "template":
            missing = [part for part in missing if part.kind != "thought"]
        if not missing or self.accept_lost:
            return view
        first = missing[0]
        what = f"cuts the {PART_NAMES[first.kind]} of message {first.message + 1}"
        if first.kind == "end":
            what = f"writes nothing that ends message {first.message + 1}"
        ways = ways_out(row.messages)
        text = f"{self._who()} {what}. {ways}; data.accept_lost trains what is left of it."
        return view._replace(laid=Problem(row.line, "lost", text))

    def _encoded(
        self, row: Conversation | Document, laid: Rendered, encoding: Any, train_on: TrainOn
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a row's ids, and the ranges of them that carry loss."""
        is_document = isinstance(row, Document)
        whole = is_document and not laid.spans
        spans = laid.spans[-1:] if train_on == "last" else laid.spans
        if BREAK in laid.text:
            ids, found = without_breaks(self.backend.core, laid.text, encoding, spans)
        else:
            ids, found = encoding.ids, trained_ranges(encoding, spans)
        prefix = list(self.backend.prefix) if is_document else self._prefix
        if prefix and not (is_document and ids[: len(prefix)] == prefix):  # it may bring its own
            ids = [*prefix, *ids]
            found = [(len(prefix) + start, len(prefix) + stop) for start, stop in found]
        if whole and ids[-len(self.eos_ids) :] != self.eos_ids:
            ids = ids + self.eos_ids
        return ids, [(0, len(ids))] if whole or train_on == "all" else found

    def _weighed(
        self, row: Conversation, laid: Rendered, encoding: Any, train_on: TrainOn
    ) -> Iterator[tuple[int, int, float]]:
        """Yield the ranges of tokens that a loss weight of the row applies to, with the weight."""
        of: TrainOn = "last" if train_on == "last" else "assistant"
        for number, weight in row.weights:
            spans = [(a, b if i == number else a) for i, (a, b) in enumerate(laid.spans)]
            for start, stop in self._encoded(row, laid._replace(spans=spans), encoding, of)[1]:
                yield start, stop, weight

    def reading(self, text: str) -> Reading:
        """Return how a document is read that holds control tokens."""
        if self.control_tokens == "text":
            return "text"
        if self._renderings.is_rendering(text):
            return "chat"
        return self.control_tokens if self.control_tokens == "tokens" else "text"

    def _document(self, text: str) -> Rendered:
        guarded = self._guard(text)
        unbroken: Reading = "foreign" if has_foreign_turns(text) else "plain"
        reading = unbroken if guarded is text else self.reading(text)
        spans = self._renderings.answers(text) if reading == "chat" else []
        return Rendered(text if reading in ("chat", "tokens") else guarded, spans, (), reading)

    @cached_property
    def _stream_guard(self) -> Guard:
        """Return what breaks the control tokens in a text file."""
        eos, ids = self.backend.eos, self.eos_ids
        if self.control_tokens == "tokens":
            return Guard(())
        if self.control_tokens == "text" or not ids or self._ids(eos).tolist() != ids:
            return self._guard
        return Guard(tuple(one for one in self.backend.controls if one != eos))

    @cached_property
    def _renderings(self) -> Renderings:
        return Renderings(self._layout, self.backend.controls)

    def _ids(self, text: str) -> NDArray[np.int32]:
        encoding = self.backend.core.encode(text, add_special_tokens=False)
        if BREAK in text:
            return np.array(without_breaks(self.backend.core, text, encoding, [])[0], np.int32)
        return np.array(encoding.ids, dtype=np.int32)


def _without_muted(laid: Rendered, row: Conversation) -> Rendered:
    """Empty the spans of the answers that carry no loss."""
    spans = [(a, a if i in row.muted else b) for i, (a, b) in enumerate(laid.spans)]
    return laid._replace(spans=spans)


def _trained_lost(row: Conversation, laid: Rendered, train_on: TrainOn) -> list[Lost]:
    """Return what is lost of the answers that carry loss."""
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    if train_on == "last":
        trained = {answers[-1]} - {answers[i] for i in row.muted}
    else:
        trained = {index for i, index in enumerate(answers) if i not in row.muted}
    return [part for part in laid.lost if part.message in trained]


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
    """Return a rendered template's ids and trained ranges without the tokens of its BREAK marks."""
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

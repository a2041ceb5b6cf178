"""Turn messages into token ids with a loss mask, for training, chat and X-ray alike.

`choose(tokenizer, name)` takes the model's own template if there is one, else a named one.
Character spans become token masks through the tokenizer's own offsets: a token carries loss when
it covers at least one character of an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from studio.data.records import Conversation, Document, Message, Problem
from studio.data.template.backend import Backend, backend_of
from studio.data.template.layout import STYLES, Layout, NamedLayout, Rendered
from studio.data.template.sandbox import BREAK, Guard, TemplateRefused
from studio.data.template.spans import trained_ranges, without_breaks
from studio.errors import DataError, ModelError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

TrainOn = Literal["assistant", "last", "all"]
IGNORED = -100


class Encoded(NamedTuple):
    """Token ids, and which of them carry loss."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


class Batch(NamedTuple):
    """Rows encoded together; row `i` reaches from `starts[i]` to `starts[i + 1]`.

    A row that the template refuses is empty and in `problems`, by its place. `teaches[i]` is True
    if a token of row `i` is trained; its first does not count, nothing predicts it.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    starts: NDArray[np.int64]
    teaches: list[bool]
    problems: dict[int, Problem]

    def row(self, index: int) -> Encoded | Problem:
        """Return one row, or why there is none."""
        if index in self.problems:
            return self.problems[index]
        start, stop = self.starts[index : index + 2]
        return Encoded(self.ids[start:stop], self.trained[start:stop])


class Template:
    """A layout on a tokenizer.

    `name` is `model` for the model's own template, `end` the text of the token that ends a turn
    ("" if there is none), `eos_ids` the token that closes a document, if there is one.
    """

    def __init__(self, backend: Backend, layout: Layout, reason: str) -> None:
        self.backend, self.reason, self.name, self.end = backend, reason, layout.name, layout.end
        self._layout, self._guard = layout, layout.guard
        self._prefix = list(backend.prefix) if layout.adds_prefix else []
        self.eos_ids = backend.token_ids(backend.eos)
        self.stop_ids = tuple(dict.fromkeys([*backend.token_ids(layout.end), *self.eos_ids]))
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

    def encode_text(self, text: str) -> NDArray[np.int32]:
        """Return the ids of plain text, with nothing in front or behind."""
        return self._ids(self._guard(text))

    def encode_prompt(self, messages: list[Message], tools: list[Any] | None = None) -> list[int]:
        """Return the ids that stand before the next answer, as training saw them.

        Raises:
            DataError: The model's template refuses the conversation.
        """
        try:
            text = self._layout.prompt(messages, tools)
        except TemplateRefused as refused:
            raise DataError(f"The model's chat template refuses this: {refused}.") from None
        return self._prefix + self._ids(text).tolist()

    def encode(
        self,
        messages: list[Message],
        train_on: TrainOn = "assistant",
        tools: list[Any] | None = None,
    ) -> tuple[list[int], list[int]]:
        """Return ids and labels of one conversation; masked labels are -100.

        Raises:
            DataError: The model's template refuses the conversation.
        """
        encoded = self.encode_batch([Conversation(messages, tools)], train_on).row(0)
        if isinstance(encoded, Problem):
            raise DataError(f"The conversation cannot be encoded: {encoded.text}")
        labels = np.where(encoded.trained, encoded.ids, IGNORED)
        return encoded.ids.tolist(), labels.tolist()

    def encode_batch(
        self, rows: Sequence[Conversation | Document], train_on: TrainOn = "assistant"
    ) -> Batch:
        """Encode many rows at once."""
        rendered = [self.render(row) for row in rows]
        texts = [laid.text for laid in rendered if not isinstance(laid, Problem)]
        encodings = iter(self.backend.core.encode_batch(texts, add_special_tokens=False))
        packed: list[bytes] = []
        stops: list[int] = [0]
        teaches: list[bool] = []
        ranges: list[tuple[int, int]] = []
        problems: dict[int, Problem] = {}
        for row, laid in zip(rows, rendered, strict=True):
            at = stops[-1]
            found: list[tuple[int, int]] = []
            if isinstance(laid, Problem):
                problems[len(teaches)] = laid
            else:
                ids, found = self._encoded(row, laid, next(encodings), train_on)
                packed.append(struct.pack(f"={len(ids)}i", *ids))  # the fastest way from a list
                ranges += [(at + start, at + stop) for start, stop in found]
                at += len(ids)
            stops.append(at)
            teaches.append(bool(found) and found[-1][1] > 1)
        trained = np.zeros(stops[-1], bool)
        for start, stop in ranges:
            trained[start:stop] = True
        flat = np.frombuffer(b"".join(packed), dtype=np.int32)
        return Batch(flat, trained, np.array(stops), teaches, problems)

    def render(self, row: Conversation | Document) -> Rendered | Problem:
        """Return a row as text with the spans that carry loss: all that training sees of it.

        Every row of every run passes here, with its parts, its text and its spans together.
        """
        if isinstance(row, Document):
            return Rendered(self._guard(row.text), [])
        try:
            laid = self._layout.render(row.messages, row.tools)
            return _without_muted(laid, row) if row.muted else laid
        except TemplateRefused as refused:
            return Problem(row.line, "template", f"The model's chat template refuses it: {refused}")

    def _encoded(
        self, row: Conversation | Document, laid: Rendered, encoding: Any, train_on: TrainOn
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a row's ids, and the ranges of them that carry loss."""
        whole = isinstance(row, Document)
        spans = laid.spans[-1:] if train_on == "last" else laid.spans
        if BREAK in laid.text:
            ids, found = without_breaks(self.backend.core, laid.text, encoding, spans)
        else:
            ids, found = encoding.ids, trained_ranges(encoding, spans)
        if prefix := self.backend.prefix if whole else self._prefix:
            ids = [*prefix, *ids]
            found = [(len(prefix) + start, len(prefix) + stop) for start, stop in found]
        if whole:
            ids = ids + self.eos_ids
        return ids, [(0, len(ids))] if whole or train_on == "all" else found

    def _ids(self, text: str) -> NDArray[np.int32]:
        encoding = self.backend.core.encode(text, add_special_tokens=False)
        if BREAK in text:
            return np.array(without_breaks(self.backend.core, text, encoding, [])[0], np.int32)
        return np.array(encoding.ids, dtype=np.int32)


def _without_muted(laid: Rendered, row: Conversation) -> Rendered:
    """Empty the spans of the answers that carry no loss."""
    if len(laid.spans) != sum(message["role"] == "assistant" for message in row.messages):
        raise TemplateRefused("it leaves an answer out, so those without loss cannot be told apart")
    spans = [(a, a if i in row.muted else b) for i, (a, b) in enumerate(laid.spans)]
    return Rendered(laid.text, spans)


def choose(tokenizer: Any, name: str = "auto") -> Template:
    """Return the template of a tokenizer: its own if it has one, else a named one.

    Without one, `auto` takes ChatML where the vocabulary has its markers as tokens, else `plain`,
    which costs no marker tokens.

    Raises:
        ModelError: The tokenizer has no fast form, or its own template is broken.
    """
    backend = backend_of(tokenizer)
    guard = Guard(backend.controls)
    if name == "auto" and backend.chat_template:
        try:
            own = Layout(
                backend.chat_template,
                special=backend.special,
                controls=backend.controls,
                guard=guard,
            )
        except TemplateRefused as refused:
            raise ModelError(
                f"The model's own chat template cannot be used: {refused}. "
                f"Choose a named one: {', '.join(STYLES)}."
            ) from None
        return Template(backend, own, "the model's own chat template")
    has_markers = len(backend.token_ids("<|im_start|>", "<|im_end|>")) == 2
    reason = "chosen by hand"
    if name == "auto":
        name = "chatml" if has_markers else "plain"
        why = "its vocabulary has ChatML's markers" if has_markers else "it costs no marker tokens"
        reason = f"the model has no chat template; {name} was taken because {why}"
    if name not in STYLES:
        raise DataError(f'There is no chat template "{name}".{nearest(name, STYLES)}')
    end = "<|im_end|>" if name == "chatml" and has_markers else backend.eos
    end = end if backend.token_ids(end) else ""
    return Template(backend, NamedLayout(name, end=end, guard=guard), reason)

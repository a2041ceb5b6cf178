"""Render a model's own chat template and find which characters of its output are answers.

Rendering is by far the slowest part of preparing short rows, and for plain texts it only ever
inserts them into the same frame. A frame is learned from a true rendering, used only for contents
that the template cannot treat specially, and checked against true renderings again and again: at
the first difference frames are given up for that template.

Templates with `{% generation %}` blocks say so themselves. For all others each message is rendered
between two invisible marks, which gives the exact place of every content; the answer then reaches
from the end of the generation prompt to the token that ends the turn, both learned once from a
probe. A plain second rendering proves that the marks changed nothing; where they did (templates
that rewrite contents), answers are located by rendering the conversation up to each of them.
Text of the data is never searched for markers: special tokens in it have been broken before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes

from studio.data.records import Message
from studio.data.template.layout import Guard, Rendered, calls_as_text, with_tools_as_text
from studio.data.template.sandbox import (
    DATA_END,
    DATA_START,
    GENERATION_START,
    MARKS,
    TemplateRefused,
    compiled,
    render,
)

CHECKS_FIRST = 3
CHECK_EVERY = 64
MAX_FRAMES = 512
_LOOKS_INTO = {
    "startswith", "endswith", "split", "rsplit", "partition", "rpartition", "replace", "find",
    "rfind", "index", "count", "removeprefix", "removesuffix",
}  # fmt: skip
_HARMLESS_FILTERS = {
    "trim", "tojson", "length", "count", "string", "default", "d", "list", "first", "last", "join",
    "selectattr", "rejectattr", "map", "items", "dictsort", "reverse", "int", "safe", "replace",
}  # fmt: skip


@dataclass(slots=True)
class Frame:
    """What stands before, between and behind the contents.

    A part is the text behind a content and, for an answer, how many characters it reaches before
    and behind its content.
    """

    lead: str
    parts: list[tuple[str, tuple[int, int] | None]]
    uses: int = 0

    def fill(self, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Insert contents; returns the text and the answers' spans."""
        pieces, spans, at = [self.lead], [], len(self.lead)
        for message, (behind, reach) in zip(messages, self.parts, strict=True):
            content = message["content"]
            end = at + len(content)
            if reach:
                spans.append((at - reach[0], end + reach[1]))
            pieces += (content, behind)
            at = end + len(behind)
        return "".join(pieces), spans

    def due(self) -> bool:
        """Whether this use has to be checked against a true rendering."""
        self.uses += 1
        return self.uses <= CHECKS_FIRST or self.uses % CHECK_EVERY == 0


class Frames:
    """The frames of one template, by sequence of roles."""

    def __init__(self, source: str) -> None:
        self.trusted, self._sensitive = _sensitive_to(source)
        self._known: dict[tuple[str, ...], Frame] = {}

    def key(self, messages: list[Message]) -> tuple[str, ...] | None:
        """Return the shape of a conversation; None when the template might look into it."""
        if not self.trusted:
            return None
        for message in messages:
            content = message["content"]
            if len(message) != 2 or not content or content[0].isspace() or content[-1].isspace():
                return None
            for text in self._sensitive:
                if text in content:
                    return None
        return tuple([message["role"] for message in messages])

    def get(self, key: tuple[str, ...]) -> Frame | None:
        """Return the frame of a shape that was learned."""
        return self._known.get(key)

    def learn(
        self,
        key: tuple[str, ...],
        text: str,
        places: list[tuple[int, int]],
        spans: list[tuple[int, int]],
    ) -> None:
        """Learn a frame from a true rendering with the place of every content."""
        answers = [i for i, role in enumerate(key) if role == "assistant"]
        if len(places) != len(key) or len(spans) != len(answers):
            return
        if len(self._known) >= MAX_FRAMES:
            self._known.clear()
        edges = [0, *(edge for place in places for edge in place), len(text)]
        texts = [text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
        reach = {
            i: (places[i][0] - start, stop - places[i][1])
            for i, (start, stop) in zip(answers, spans, strict=True)
        }
        parts = [(behind, reach.get(i)) for i, behind in enumerate(texts[1:])]
        self._known[key] = Frame(texts[0], parts)


def _sensitive_to(source: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether frames may be used, and the texts whose presence a template may ask for."""
    environment = jinja2.Environment(
        extensions=["jinja2.ext.loopcontrols", "studio.data.template.sandbox.Generation"]
    )
    tree = environment.parse(source)
    found: set[str] = set()
    for compare in tree.find_all(nodes.Compare):
        if any(op.op in ("in", "notin") for op in compare.ops):
            found |= _texts([compare.expr, *(op.expr for op in compare.ops)])
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            if call.node.attr in _LOOKS_INTO:
                found |= _texts(call.args)
            elif call.node.attr in ("strip", "lstrip", "rstrip"):
                found |= {c for text in _texts(call.args) for c in text if not c.isspace()}
    for used in tree.find_all(nodes.Filter):
        if used.name not in _HARMLESS_FILTERS:
            return False, ()
        if used.name == "replace":
            found |= _texts(used.args)
    return True, tuple(sorted(text for text in found if text))


def _texts(parts: list[nodes.Expr]) -> set[str]:
    return {p.value for p in parts if isinstance(p, nodes.Const) and isinstance(p.value, str)}


_SPLIT = re.compile(f"([{MARKS}])")
_GENERATION = re.compile(r"\{%-?\s*generation\b")
_THOUGHT = re.compile(r".*</think>\s*", re.DOTALL)
_PROBE = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


class OwnLayout:
    """A model's chat template, compiled and probed once."""

    name = "model"
    adds_prefix = False

    def __init__(
        self, source: str, *, special: dict[str, str], controls: tuple[str, ...], guard: Guard
    ) -> None:
        self.guard = guard
        self._special = special
        self._template = compiled(source)
        self._frames = Frames(source)
        self._marked_by_author = bool(_GENERATION.search(source))
        self._knows_tools = "tools" in source
        self._knows_calls = "tool_calls" in source
        self._knows_tool_role = bool(re.search(r"""['"](tool|ipython)['"]""", source))
        self._knows_system = self._accepts([{"role": "system", "content": "s"}, *_PROBE])
        self._cue = self._learn_cue()
        self.end, self._appended = self._learn_end(controls)

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """Lay out a whole conversation.

        Raises:
            TemplateRefused: The template raised on it.
        """
        adapted, tools = self._adapted(messages, tools)
        text, spans = self._located(adapted, tools)
        if self._appended and messages[-1]["role"] == "assistant" and spans:
            text = text[: spans[-1][1]] + self._appended
            spans[-1] = (spans[-1][0], len(text))
        return Rendered(text, spans)

    def prompt(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """Lay out what stands before the next answer."""
        adapted, tools = self._adapted(messages, tools)
        return self._stripped(self._render(adapted, tools, cue=True))

    def _render(self, messages: list[Message], tools: list[Any] | None, *, cue: bool) -> str:
        return render(
            self._template,
            {
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": cue,
                **self._special,
            },
        )

    def _stripped(self, text: str) -> str:
        return _SPLIT.sub("", text) if self._marked_by_author else text

    def _accepts(self, messages: list[Message]) -> bool:
        try:
            return "s" in self._render(messages, None, cue=False)
        except TemplateRefused:
            return False

    def _learn_cue(self) -> str:
        asked = _PROBE[:1]
        try:
            bare = self._render(asked, None, cue=False)
            cued = self._render(asked, None, cue=True)
        except TemplateRefused:
            return ""
        return cued[len(bare) :] if cued.startswith(bare) else ""

    def _learn_end(self, controls: tuple[str, ...]) -> tuple[str, str]:
        """Return the token text that ends a turn, and what has to be appended for lack of one."""
        content = f"{DATA_START}a{DATA_END}"
        messages: list[Message] = [_PROBE[0], {"role": "assistant", "content": content}]
        text = self._render(messages, None, cue=False)
        tail = text.rpartition(DATA_END)[2]
        found = [(tail.find(token), -len(token), token) for token in controls if token in tail]
        if found:
            return min(found)[2], ""
        eos = self._special.get("eos_token", "")
        return eos, eos

    def _adapted(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[list[Message], list[Any] | None]:
        guard = self.guard
        if tools and not self._knows_tools:
            messages, tools = with_tools_as_text(messages, tools), None
        if messages and messages[0]["role"] == "system" and not self._knows_system:
            messages = _system_into_user(messages)
        adapted: list[Message] = []
        for message in messages:
            role = message["role"]
            if len(message) == 2 and (role != "tool" or self._knows_tool_role):
                content = guard(message["content"])
                same = content is message["content"]
                adapted.append(message if same else {"role": role, "content": content})
            elif role == "tool" and not self._knows_tool_role:
                adapted.append({"role": "user", "content": guard(message["content"])})
            elif "tool_calls" in message and not self._knows_calls:
                adapted.append({"role": role, "content": guard(calls_as_text(message))})
            else:
                adapted.append({key: guard.deep(value) for key, value in message.items()})
        return adapted, guard.deep(tools) if tools else None

    def _located(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        key = None if tools else self._frames.key(messages)
        frame = self._frames.get(key) if key else None
        if frame and not frame.due():
            return frame.fill(messages)
        plain, generated = _unmarked(self._render(messages, tools, cue=False))
        if frame:
            filled = frame.fill(messages)
            if filled[0] == plain:
                return filled
            self._frames.trusted, key = False, None
        data = self._data_places(messages, tools, plain)
        spans: list[tuple[int, int]] | None
        if self._marked_by_author:
            spans = self._generation_spans(plain, generated)
        else:
            spans = None if data is None else self._around(plain, messages, data)
        if spans is None:
            return plain, self._by_prefixes(plain, messages, tools)
        if key and data is not None:
            self._frames.learn(key, plain, list(data.values()), spans)
        return plain, spans

    def _generation_spans(self, text: str, marks: list[tuple[str, int]]) -> list[tuple[int, int]]:
        starts = [at for mark, at in marks if mark == GENERATION_START]
        ends = [at for mark, at in marks if mark != GENERATION_START]
        return [
            (start, end + len(self.end) * (bool(self.end) and text.startswith(self.end, end)))
            for start, end in zip(starts, ends, strict=True)
        ]

    def _data_places(
        self, messages: list[Message], tools: list[Any] | None, plain: str
    ) -> dict[int, tuple[int, int]] | None:
        """Return where each message's content stands; None where marks change the text."""
        marked: list[Message] = []
        places: list[int] = []
        for index, message in enumerate(messages):
            content = _between_marks(message["content"], message["role"] == "assistant")
            if content is None:
                marked.append(message)
            else:
                marked.append({**message, "content": content})
                places.append(index)
        try:
            text, marks = _unmarked(self._render(marked, tools, cue=False))
        except TemplateRefused:
            return None
        marks = [(mark, at) for mark, at in marks if mark in (DATA_START, DATA_END)]
        if text != plain or not _in_order(marks, len(places)):
            return None
        return {index: (marks[2 * i][1], marks[2 * i + 1][1]) for i, index in enumerate(places)}

    def _around(
        self, text: str, messages: list[Message], data: dict[int, tuple[int, int]]
    ) -> list[tuple[int, int]] | None:
        """Widen each answer's content from the end of the cue to the token that ends the turn."""
        spans: list[tuple[int, int]] = []
        low = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                low = data[index][1] if index in data else low
                continue
            place = data.get(index)
            later = [data[i][0] for i in range(index + 1, len(messages)) if i in data][:1]
            high = later[0] if later else len(text)
            start = self._start(text, low, place[0] if place else high)
            if start is None:
                if place is None:
                    return None
                start = place[0]
            after = place[1] if place else start
            stop = text.find(self.end, after, high) if self.end else -1
            spans.append((start, stop + len(self.end) if stop >= 0 else after))
            low = spans[-1][1]
        return spans

    def _start(self, text: str, low: int, high: int) -> int | None:
        if not self._cue:
            return None
        at = text.find(self._cue, low, high)
        if at >= 0:
            return at + len(self._cue)
        # The cue may go on with an empty thought that this answer fills: its first line decides.
        line = self._cue.partition("\n")
        at = text.find(line[0] + line[1], low, high)
        return at + len(line[0]) + len(line[1]) if at >= 0 else None

    def _by_prefixes(
        self, text: str, messages: list[Message], tools: list[Any] | None
    ) -> list[tuple[int, int]]:
        """Locate answers by rendering up to and including each; what moved stays masked."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = self._render(messages[:index], tools, cue=True)
                through = self._render(messages[: index + 1], tools, cue=False)
            except TemplateRefused:
                continue
            if index + 1 == len(messages):
                through = text
            if not (text.startswith(before) and text.startswith(through)):
                continue
            stop = text.rfind(self.end, len(before), len(through)) if self.end else -1
            spans.append((len(before), stop + len(self.end) if stop >= 0 else len(through)))
        return spans


def _between_marks(content: Any, answer: bool) -> str | None:
    # The marks go inside the outer white space and after a thought, which templates may cut off.
    if not content or not isinstance(content, str):
        return None
    start = 0
    if answer and "</think>" in content:
        match = _THOUGHT.match(content)
        start = match.end() if match else 0
    start += len(content) - start - len(content[start:].lstrip())
    stop = len(content.rstrip())
    if start >= stop:
        return None
    return f"{content[:start]}{DATA_START}{content[start:stop]}{DATA_END}{content[stop:]}"


def _unmarked(text: str) -> tuple[str, list[tuple[str, int]]]:
    pieces = _SPLIT.split(text)
    at, marks = 0, []
    for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
        at += len(piece)
        marks.append((mark, at))
    return "".join(pieces[::2]), marks


def _in_order(marks: list[tuple[str, int]], count: int) -> bool:
    return [mark for mark, _ in marks] == [DATA_START, DATA_END] * count


def _system_into_user(messages: list[Message]) -> list[Message]:
    system, *rest = messages
    for index, message in enumerate(rest):
        if message["role"] == "user":
            joined = f"{system['content']}\n\n{message['content']}"
            return [*rest[:index], message | {"content": joined}, *rest[index + 1 :]]
    return [{"role": "user", "content": system["content"]}, *rest]

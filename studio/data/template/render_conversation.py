"""Lay out a conversation as text with a chat template, and find which characters are answers.

Templates with `{% generation %}` blocks say so themselves. For all others each message is rendered
between two invisible marks, which gives the exact place of every content; the answer then reaches
from the end of the generation prompt to what ends the turn, both learned once from a probe. A
second rendering without marks proves that they changed nothing; where they did (templates that
rewrite contents), answers are located by rendering the conversation up to each of them.

What a rendering does not hold of its conversation is listed beside it (`parts`): nothing that a
template leaves out is lost without being counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from studio.data.conversation_records import Message
from studio.data.template.adapt_conversation import WAYS, Change, Way, adapted, changes
from studio.data.template.jinja_sandbox import (
    DATA_END,
    DATA_START,
    GENERATION_END,
    GENERATION_START,
    MARKS,
    Frame,
    Frames,
    Guard,
    TemplateRefused,
    compiled,
    render,
)
from studio.data.template.lost_parts import Lost, Spans, find_call, lost_parts
from studio.data.template.probe_template import (
    ANSWER,
    learn_ends,
    learn_facts,
    learn_header,
    learn_opening,
)

Reading = Literal["plain", "foreign", "text", "tokens", "chat", "end"]
_SPLIT = re.compile(f"([{MARKS}])")
_GENERATION = re.compile(r"\{%-?\s*generation\b")
_THOUGHT = re.compile(r".*(</think>|\[/THINK\])\s*", re.DOTALL)
_QUESTION: Message = {"role": "user", "content": "u"}


class Rendered(NamedTuple):
    """A conversation as text (BREAK marks still in it), and a character span per answer.

    A span covers what the model has to write: the answer and what ends its turn; it is empty where
    the answer could not be located. `lost` are the parts that the text does not hold, `reading` is
    how the control tokens of a document are read, `changes` the parts that are said in words.
    """

    text: str
    spans: Spans
    lost: Sequence[Lost] = ()
    reading: Reading = "plain"
    changes: tuple[Change, ...] = ()


class Layout:
    """A chat template, compiled and probed once.

    Args:
        source: The template in Jinja.
        special: The tokenizer's special tokens and other settings by name, for the template.
        controls: The texts of all control tokens; one of them ends a turn.
        guard: Breaks control tokens in the conversation's own text.

    Raises:
        TemplateRefused: The template is not valid.
    """

    name = "model"
    adds_prefix = False

    def __init__(
        self, source: str, *, special: dict[str, Any], controls: tuple[str, ...], guard: Guard
    ) -> None:
        self.guard = guard
        self._special, self._controls = special, controls
        self._template = compiled(source)
        self._frames = Frames(source)
        self._marks_answers = bool(_GENERATION.search(source))
        # Templates of models that take images read a content as a list of parts only.
        self._as_parts = False
        if not self._reads_answers():
            self._as_parts = True
            self._as_parts = self._reads_answers()
        # A template that is broken for every conversation is refused here, with its own words.
        self._render([_QUESTION, {"role": "assistant", "content": "a"}], None)
        self.facts = learn_facts(self._written, source)
        self.ends = learn_ends(self._written, self.facts, controls, special.get("eos_token", ""))
        self.header = learn_header(self._written, self.facts)
        self.cue, self._lead = self._learn_cue()
        self._openings = self._call_openings()

    @property
    def end(self) -> str:
        """The text that ends a turn, "" if there is none."""
        return next(iter(self.ends.texts), self.ends.after_answer)

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """Lay out a whole conversation.

        Tool calls and tools are written in the way that the template reads; where one is lost, the
        other ways are tried.

        Raises:
            TemplateRefused: The template raised on it.
        """
        try:
            laid = self._laid(messages, tools, self.facts.way)
        except TemplateRefused:
            if not tools and not _has_calls(messages):
                raise
            laid = None
        if laid and not (laid.lost and any(p.kind in ("call", "tools") for p in laid.lost)):
            return laid
        for way in WAYS:
            try:
                other = self._laid(messages, tools, way)
            except TemplateRefused:
                continue
            if laid is None or len(other.lost) < len(laid.lost):
                laid = other
            if not laid.lost:
                break
        return laid or self._laid(messages, tools, self.facts.way)

    def prompt(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """Lay out what stands before the next answer."""
        for way in (self.facts.way, *(WAYS if tools or _has_calls(messages) else ())):
            try:
                return self._written(
                    *adapted(messages, tools, self.facts, way, self.guard), cue=True
                )
            except TemplateRefused as refused:
                first = refused
        raise first

    def _laid(self, messages: list[Message], tools: list[Any] | None, way: Way) -> Rendered:
        """Lay out a conversation in one way of writing its calls, and list what it lost."""
        key = None if tools else self._frames.key(messages)
        frame = self._frames.known.get(key) if key else None
        is_due = frame is None or frame.is_due()
        if frame and frame.is_whole and not is_due:
            # Frames have the roles of what is written: where those are given, nothing changes.
            return Rendered(*frame.fill([self.guard(message["content"]) for message in messages]))
        made, made_tools = adapted(messages, tools, self.facts, way, self.guard)
        if frame is None and not made_tools and (key := self._frames.key(made)):
            frame = self._frames.known.get(key)
            is_due = frame is None or frame.is_due()
        if frame and not is_due:
            text, spans = frame.fill([message["content"] for message in made])
        else:
            text, spans = self._located(made, made_tools, key, frame)
        ended = text
        if spans and messages[-1]["role"] == "assistant":
            ended = self._with_end(text, spans, messages[-1])
        lost = lost_parts(messages, tools, ended, spans, ends=self.ends.asked_for, quote=self.guard)
        if frame:
            frame.is_whole = not lost and ended is text
        said = changes(messages, tools, self.facts)
        return Rendered(ended, spans, lost, changes=said)

    def _with_end(self, text: str, spans: Spans, last: Message) -> str:
        """Append what ends the last turn, where the template writes nothing that does."""
        calls = bool(last.get("tool_calls")) and self.facts.calls
        end = self.ends.after_call if calls else self.ends.after_answer
        start, stop = spans[-1]
        if not end or start >= stop or text.endswith(self.ends.texts, start, stop):
            return text
        kept = text[: max(stop, len(text.rstrip()))]
        spans[-1] = (start, len(kept) + len(end))
        return kept + end

    def _call_openings(self) -> list[str]:
        """Return what stands before the name of an answer's first call; the longest first."""
        opening = learn_opening(self._written, self.facts)
        inner = [opening.find(control, 1) for control in self._controls]
        return [opening, *(opening[at:] for at in sorted(inner) if at > 0)] if opening else []

    def _written(
        self, messages: list[Message], tools: list[Any] | None, *, cue: bool = False
    ) -> str:
        text = self._render(messages, tools, cue=cue)
        return re.sub(f"[{GENERATION_START}{GENERATION_END}]", "", text)

    def _render(
        self, messages: list[Message], tools: list[Any] | None, *, cue: bool = False
    ) -> str:
        if self._as_parts:
            messages = [as_parts(message) for message in messages]
        values = {"messages": messages, "tools": tools, "documents": None}
        return render(self._template, {**values, "add_generation_prompt": cue, **self._special})

    def _reads_answers(self) -> bool:
        try:
            return ANSWER in self._render(
                [_QUESTION, {"role": "assistant", "content": ANSWER}], None
            )
        except TemplateRefused:
            return False

    def _learn_cue(self) -> tuple[str, str]:
        """Return the generation prompt, or without one what the model writes before an answer."""
        try:
            bare, cued = (self._written([_QUESTION], None, cue=cue) for cue in (False, True))
            whole = self._written([_QUESTION, {"role": "assistant", "content": ANSWER}], None)
        except TemplateRefused:
            return "", ""
        cue = cued[len(bare) :] if cued.startswith(bare) else ""
        follows = whole.startswith(cued) and not cue
        return cue, whole[len(cued) : whole.find(ANSWER)] if follows else ""

    def _located(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        key: tuple[str, ...] | None,
        frame: Frame | None,
    ) -> tuple[str, Spans]:
        """Render a conversation and return its text with the span of each answer.

        A frame that fits is compared with the rendering, else one is learned under the key.
        """
        text, generated = _unmarked(self._render(messages, tools))
        if frame:
            filled = frame.fill([message["content"] for message in messages])
            if filled[0] == text:
                return filled
            self._frames.trusted, key = False, None
        places = self._content_places(messages, tools, text)
        if self._marks_answers:
            spans = self._generated(text, messages, generated, places)
        else:
            spans = self._around(text, messages, places) if places is not None else None
        if spans is None:
            return text, self._by_prefixes(text, messages, tools)
        if key and places is not None:
            self._frames.learn(key, text, list(places.values()), spans)
        return text, spans

    def _generated(
        self,
        text: str,
        messages: list[Message],
        marks: list[tuple[str, int]],
        places: dict[int, tuple[int, int]] | None,
    ) -> Spans | None:
        """Return the `{% generation %}` block of each answer; several blocks become one span."""
        starts = [at for mark, at in marks if mark == GENERATION_START]
        stops = [at for mark, at in marks if mark == GENERATION_END]
        blocks = []
        for start, stop in zip(starts, stops, strict=True):
            end = next((e for e in self.ends.texts if text.startswith(e, stop)), "")
            blocks.append((start, stop + len(end)))
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(blocks) == len(answers):
            return blocks
        if places is None:
            return None
        spans: Spans = []
        for index in answers:
            low = max((stop for i, (_, stop) in places.items() if i < index), default=0)
            high = min((start for i, (start, _) in places.items() if i > index), default=len(text))
            inside = [(a, b) for a, b in blocks if low <= a and b <= high]
            spans.append((inside[0][0], inside[-1][1]) if inside else (low, low))
        return spans

    def _content_places(
        self, messages: list[Message], tools: list[Any] | None, text: str
    ) -> dict[int, tuple[int, int]] | None:
        """Return where each content that is written stands; None if marks change the text."""
        marked = [_between_marks(message) for message in messages]
        indices = [i for i, message in enumerate(marked) if message is not messages[i]]
        try:
            plain, found = _unmarked(self._render(marked, tools))
        except TemplateRefused:
            return None
        found = [(mark, at) for mark, at in found if mark in (DATA_START, DATA_END)]
        in_order = [mark for mark, _ in found] == [DATA_START, DATA_END] * (len(found) // 2)
        if plain != text or not in_order:
            return None
        edges = [at for _, at in found]
        places = [*zip(edges[::2], edges[1::2], strict=True)]
        if len(places) < len(indices):  # some are left out: the texts of the others show which
            left = iter(indices)
            indices = [
                next((i for i in left if text[slice(*place)] == _inside(marked[i])), -1)
                for place in places
            ]
        if len(places) != len(indices) or -1 in indices:
            return None
        return dict(zip(indices, places, strict=True))

    def _around(
        self, text: str, messages: list[Message], places: dict[int, tuple[int, int]]
    ) -> Spans | None:
        """Widen each answer's content from the end of the cue to what ends the turn."""
        spans: Spans = []
        low = 0
        for index, message in enumerate(messages):
            place = places.get(index)
            if message["role"] != "assistant":
                low = place[1] if place else low
                continue
            high = next((start for i, (start, _) in places.items() if i > index), len(text))
            start = self._start(text, message, low, place[0] if place else high)
            if start is None:
                if place is None:
                    return None
                start = place[0]
                for lead in (_thought_lead(message), self._lead):
                    start -= len(lead) * text.endswith(lead, low, start)
                if self._lead.isspace():  # of which the content may bring more
                    start = low + len(text[low:start].rstrip())
            after = place[1] if place else start
            for call in message.get("tool_calls") or ():
                found = find_call(call, text, after, high, str)
                after = found[1] if found else after
            is_last = index + 1 == len(messages)
            spans.append((start, self._stop(text, after, high, message if is_last else None)))
            low = spans[-1][1]
        return spans

    def _start(self, text: str, message: Message, low: int, high: int) -> int | None:
        """Return where an answer begins; None where only its content can tell."""
        # The cue may go on with an empty thought that the answer fills: its first line decides.
        line = "".join(self.cue.partition("\n")[:2])
        for cue in (self.cue, line):
            at = text.find(cue, low, high) if cue else -1
            if at >= 0:
                return at + len(cue)
        has_text = bool(message["content"])
        if self.header.before and (len(message) > 2 or isinstance(message["content"], list)):
            at = text.find(self.header.before, low, high)
            if at >= 0:
                return at
        for opening in self._openings if message.get("tool_calls") and not has_text else ():
            at = text.find(opening, low, high)
            if at >= 0:
                return at
        return None

    def _stop(self, text: str, after: int, high: int, last: Message | None) -> int:
        """Return where an answer ends: behind the first text that ends a turn."""
        found = [(at, e) for e in self.ends.texts if (at := text.find(e, after, high)) >= 0]
        if not found:
            calls = last is not None and bool(last.get("tool_calls"))
            if last is not None and (self.ends.after_call if calls else self.ends.after_answer):
                return after
            found = [(at, e) for e in self._controls if (at := text.find(e, after, high)) >= 0]
        if not found:
            return after
        at, end = min(found, key=lambda one: (one[0], -len(one[1])))
        return at + len(end)

    def _by_prefixes(self, text: str, messages: list[Message], tools: list[Any] | None) -> Spans:
        """Locate answers by rendering up to and including each; one that moved has no place."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            spans.append((0, 0))
            try:
                before = self._written(messages[:index], tools, cue=True)
                through = self._written(messages[: index + 1], tools)
            except TemplateRefused:
                continue
            if index + 1 == len(messages):
                through = text
            if text.startswith(before) and text.startswith(through):
                stops = [
                    at + len(end)
                    for end in self.ends.texts
                    if (at := text.rfind(end, len(before), len(through))) >= 0
                ]
                spans[-1] = (len(before), max(stops, default=len(through)))
        return spans


def as_parts(message: Message) -> Message:
    """Return a message whose content is a list of parts."""
    content = message["content"]
    if not isinstance(content, str):
        return message
    return message | {"content": [{"type": "text", "text": content}]}


def _has_calls(messages: list[Message]) -> bool:
    return any("tool_calls" in message for message in messages)


def _between_marks(message: Message) -> Message:
    """Return a message with marks around its text, if it has any."""
    content = message["content"]
    if isinstance(content, list):
        parts = [_marked(p["text"], 0) if p.get("type") == "text" else None for p in content]
        found = [p if m is None else p | {"text": m} for p, m in zip(content, parts, strict=True)]
        return {**message, "content": found} if any(parts) else message
    if not content or content.isspace():
        return message
    marked = _marked(content, len(_thought_lead(message)))
    return {**message, "content": marked} if marked else message


def _thought_lead(message: Message) -> str:
    """Return the beginning of an answer's content that is a thought, with its tags."""
    content = message["content"]
    if message["role"] != "assistant" or not isinstance(content, str):
        return ""
    thought = _THOUGHT.match(content)
    return thought[0] if thought else ""


def _marked(content: str, start: int) -> str | None:
    # The marks go inside the outer white space and after a thought, which templates may cut off.
    start += len(content) - start - len(content[start:].lstrip())
    stop = len(content.rstrip())
    if start >= stop:
        return None
    return f"{content[:start]}{DATA_START}{content[start:stop]}{DATA_END}{content[stop:]}"


def _inside(message: Message) -> str:
    """Return the text between the marks of a message."""
    content = message["content"]
    texts = content if isinstance(content, str) else "".join(p.get("text", "") for p in content)
    return str(texts.partition(DATA_START)[2].partition(DATA_END)[0])


def _unmarked(text: str) -> tuple[str, list[tuple[str, int]]]:
    """Return a text without its marks, and each mark with its place in that text."""
    pieces = _SPLIT.split(text)
    at, marks = 0, []
    for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
        at += len(piece)
        marks.append((mark, at))
    return "".join(pieces[::2]), marks

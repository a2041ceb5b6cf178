"""Lay out a conversation as text with a chat template, and find which characters are answers.

Templates with `{% generation %}` blocks say so themselves. For all others each message is rendered
between two invisible marks, which gives the exact place of every content; the answer then reaches
from the end of the generation prompt to the token that ends the turn, both learned once from a
probe. A second rendering without marks proves that they changed nothing; where they did (templates
that rewrite contents), answers are located by rendering the conversation up to each of them.

Models without a template get one of four named ones, all made by the Jinja source `NAMED`: answers
end with one real token of the vocabulary, so generation can stop there; `plain` writes nothing but
the texts and line ends, which costs fewest tokens.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from studio.data.records import Message
from studio.data.template.frames import Frames
from studio.data.template.sandbox import (
    DATA_END,
    DATA_START,
    GENERATION_END,
    GENERATION_START,
    MARKS,
    Guard,
    TemplateRefused,
    compiled,
    render,
)

Spans = list[tuple[int, int]]
_SPLIT = re.compile(f"([{MARKS}])")
_GENERATION = re.compile(r"\{%-?\s*generation\b")
_THOUGHT = re.compile(r".*</think>\s*", re.DOTALL)
_PROBE = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]

NAMED = """
{%- if default_system and (not messages or messages[0].role != 'system') -%}
{{ system[0] ~ default_system ~ system[1] }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ assistant }}{%- generation -%}{{ lead ~ message.content ~ end }}{%- endgeneration -%}
{{ after if add_generation_prompt or not loop.last }}
{%- else -%}
{%- set around = {'system': system, 'user': user, 'tool': tool}[message.role] -%}
{{ around[0] ~ message.content ~ around[1] }}
{%- endif -%}
{%- endfor -%}
{{ assistant if add_generation_prompt }}
"""
_PLAIN = {
    "system": ("", "\n\n"),
    "user": ("", "\n"),
    "tool": ("", "\n"),
    "assistant": "",
    "lead": "",  # written by the model before the answer
    "after": "\n",  # between the end of a turn and the next one
    "default_system": "",
}
STYLES: dict[str, dict[str, Any]] = {
    "chatml": _PLAIN
    | {
        "system": ("<|im_start|>system\n", "{end}\n"),
        "user": ("<|im_start|>user\n", "{end}\n"),
        "tool": ("<|im_start|>tool\n", "{end}\n"),
        "assistant": "<|im_start|>assistant\n",
    },
    "alpaca": _PLAIN
    | {
        "user": ("### Instruction:\n", "\n\n"),
        "tool": ("### Result:\n", "\n\n"),
        "assistant": "### Response:\n",
        "after": "\n\n",
        "default_system": "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
    },
    "vicuna": _PLAIN
    | {
        "system": ("", " "),
        "user": ("USER: ", " "),
        "tool": ("TOOL: ", " "),
        "assistant": "ASSISTANT:",
        "lead": " ",
        "after": "",
        "default_system": "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    },
    "plain": _PLAIN,
}


class Rendered(NamedTuple):
    """A conversation as text (BREAK marks still in it), and a character span per answer.

    A span covers what the model has to write: the answer and the token that ends its turn.
    """

    text: str
    spans: Spans


class Layout:
    """A chat template, compiled and probed once.

    Args:
        source: The template in Jinja.
        special: The tokenizer's special tokens by name, for the template.
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
        self._special = special
        self._template = compiled(source)
        self._frames = Frames(source)
        self._marks_answers = bool(_GENERATION.search(source))
        self._knows_tools = "tools" in source
        self._knows_calls = "tool_calls" in source
        self._knows_tool_role = bool(re.search(r"""['"](tool|ipython)['"]""", source))
        self._knows_system = self._writes_system()
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
        text = self._render(*self._adapted(messages, tools), cue=True)
        return _SPLIT.sub("", text) if self._marks_answers else text

    def _render(
        self, messages: list[Message], tools: list[Any] | None, *, cue: bool = False
    ) -> str:
        values = {"messages": messages, "tools": tools, "documents": None}
        return render(self._template, {**values, "add_generation_prompt": cue, **self._special})

    def _writes_system(self) -> bool:
        try:
            return "s" in self._render([{"role": "system", "content": "s"}, *_PROBE], None)
        except TemplateRefused:
            return False

    def _learn_cue(self) -> str:
        try:
            bare, cued = (self._render(_PROBE[:1], None, cue=cue) for cue in (False, True))
        except TemplateRefused:
            return ""
        return cued[len(bare) :] if cued.startswith(bare) else ""

    def _learn_end(self, controls: tuple[str, ...]) -> tuple[str, str]:
        """Return the token text that ends a turn, and what has to be appended for lack of one."""
        answer = {"role": "assistant", "content": f"{DATA_START}a{DATA_END}"}
        tail = self._render([_PROBE[0], answer], None).rpartition(DATA_END)[2]
        found = [(tail.find(token), -len(token), token) for token in controls if token in tail]
        eos = self._special.get("eos_token", "")
        return (min(found)[2], "") if found else (eos, eos)

    def _adapted(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[list[Message], list[Any] | None]:
        """Return what the template can write: guarded texts, and in words what it does not know."""
        guard = self.guard
        if tools and not self._knows_tools:
            messages, tools = with_tools_as_text(messages, tools), None
        if messages and messages[0]["role"] == "system" and not self._knows_system:
            messages = _system_into_user(messages)
        adapted: list[Message] = []
        for message in messages:
            role = message["role"]
            if role == "tool" and not self._knows_tool_role:
                adapted.append({"role": "user", "content": guard(message["content"])})
            elif len(message) == 2:
                content = guard(message["content"])
                same = content is message["content"]
                adapted.append(message if same else {"role": role, "content": content})
            elif "tool_calls" in message and not self._knows_calls:
                adapted.append({"role": role, "content": guard(calls_as_text(message))})
            else:
                adapted.append({key: guard.deep(value) for key, value in message.items()})
        return adapted, guard.deep(tools) if tools else None

    def _located(self, messages: list[Message], tools: list[Any] | None) -> tuple[str, Spans]:
        """Render a conversation and return its text with the span of each answer."""
        key = None if tools else self._frames.key(messages)
        frame = self._frames.known.get(key) if key else None
        if frame and not frame.is_due():
            return frame.fill(messages)
        text, generated = _unmarked(self._render(messages, tools))
        if frame:
            filled = frame.fill(messages)
            if filled[0] == text:
                return filled
            self._frames.trusted, key = False, None
        places = self._content_places(messages, tools, text)
        spans: Spans | None = None
        if self._marks_answers:
            starts = [at for mark, at in generated if mark == GENERATION_START]
            ends = [at for mark, at in generated if mark == GENERATION_END]
            spans = [
                (start, end + len(self.end) * text.startswith(self.end, end))
                for start, end in zip(starts, ends, strict=True)
            ]
        elif places is not None:
            spans = self._around(text, messages, places)
        if spans is None:
            return text, self._by_prefixes(text, messages, tools)
        if key and places is not None:
            self._frames.learn(key, text, list(places.values()), spans)
        return text, spans

    def _content_places(
        self, messages: list[Message], tools: list[Any] | None, text: str
    ) -> dict[int, tuple[int, int]] | None:
        """Return where each message's content stands; None if marks change the text."""
        marked = [_between_marks(message) for message in messages]
        indices = [i for i, message in enumerate(marked) if message is not messages[i]]
        try:
            plain, found = _unmarked(self._render(marked, tools))
        except TemplateRefused:
            return None
        found = [(mark, at) for mark, at in found if mark in (DATA_START, DATA_END)]
        in_order = [mark for mark, _ in found] == [DATA_START, DATA_END] * len(indices)
        if plain != text or not in_order:
            return None
        return {index: (found[2 * i][1], found[2 * i + 1][1]) for i, index in enumerate(indices)}

    def _around(
        self, text: str, messages: list[Message], places: dict[int, tuple[int, int]]
    ) -> Spans | None:
        """Widen each answer's content from the end of the cue to the token that ends the turn."""
        spans: Spans = []
        low = 0
        for index, message in enumerate(messages):
            place = places.get(index)
            if message["role"] != "assistant":
                low = place[1] if place else low
                continue
            high = next((start for i, (start, _) in places.items() if i > index), len(text))
            start = self._after_cue(text, low, place[0] if place else high)
            if start is None:
                if place is None:
                    return None
                start = place[0]
            after = place[1] if place else start
            stop = text.find(self.end, after, high) if self.end else -1
            spans.append((start, stop + len(self.end) if stop >= 0 else after))
            low = spans[-1][1]
        return spans

    def _after_cue(self, text: str, low: int, high: int) -> int | None:
        # The cue may go on with an empty thought that the answer fills: its first line decides.
        line = "".join(self._cue.partition("\n")[:2])
        for cue in (self._cue, line):
            at = text.find(cue, low, high) if cue else -1
            if at >= 0:
                return at + len(cue)
        return None

    def _by_prefixes(self, text: str, messages: list[Message], tools: list[Any] | None) -> Spans:
        """Locate answers by rendering up to and including each; what moved stays masked."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                before = self._render(messages[:index], tools, cue=True)
                through = self._render(messages[: index + 1], tools)
            except TemplateRefused:
                continue
            if index + 1 == len(messages):
                through = text
            if text.startswith(before) and text.startswith(through):
                stop = text.rfind(self.end, len(before), len(through)) if self.end else -1
                spans.append((len(before), stop + len(self.end) if stop >= 0 else len(through)))
        return spans


class NamedLayout(Layout):
    """One of the named layouts on one tokenizer; `end` is the text of its end-of-turn token."""

    adds_prefix = True

    def __init__(self, name: str, *, end: str, guard: Guard) -> None:
        style = {
            key: tuple(text.replace("{end}", end) for text in value)
            if isinstance(value, tuple)
            else value
            for key, value in STYLES[name].items()
        }
        super().__init__(NAMED, special={**style, "end": end}, controls=(), guard=guard)
        self.name, self.end, self._appended = name, end, ""


def calls_as_text(message: Message) -> str:
    """Return an assistant message's text with its tool calls written out as JSON lines."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    lines = [json.dumps(call, ensure_ascii=False) for call in calls]
    return "\n".join([message["content"], *lines] if message["content"] else lines)


def with_tools_as_text(messages: list[Message], tools: list[Any] | None) -> list[Message]:
    """Write the tools into the system message, for templates that know no tools."""
    if not tools:
        return messages
    text = "You can call these tools:\n"
    text += "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    if messages and messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _system_into_user(messages: list[Message]) -> list[Message]:
    system, *rest = messages
    for index, message in enumerate(rest):
        if message["role"] == "user":
            joined = f"{system['content']}\n\n{message['content']}"
            return [*rest[:index], message | {"content": joined}, *rest[index + 1 :]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _between_marks(message: Message) -> Message:
    # The marks go inside the outer white space and after a thought, which templates may cut off.
    content = message["content"]
    if not content or not isinstance(content, str) or content.isspace():
        return message
    thought = _THOUGHT.match(content) if message["role"] == "assistant" else None
    start = thought.end() if thought else 0
    start += len(content) - start - len(content[start:].lstrip())
    stop = len(content.rstrip())
    if start >= stop:
        return message
    inside = f"{DATA_START}{content[start:stop]}{DATA_END}"
    return {**message, "content": f"{content[:start]}{inside}{content[stop:]}"}


def _unmarked(text: str) -> tuple[str, list[tuple[str, int]]]:
    """Return a text without its marks, and each mark with its place in that text."""
    pieces = _SPLIT.split(text)
    at, marks = 0, []
    for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
        at += len(piece)
        marks.append((mark, at))
    return "".join(pieces[::2]), marks

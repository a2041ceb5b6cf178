"""Layouts for models without a chat template: ChatML, Alpaca, Vicuna, plain text.

`<|im_end|>` in a row becomes `<` BREAK `|im_end|>`, so no tokenizer sees a special token in it; the
mark is taken out of the tokens again. The template's own special tokens stay whole.

Each turn is a head, the content and a tail. Answers end with one real token of the vocabulary
(`<|im_end|>` where ChatML knows it, else the end-of-sequence token), so generation can stop there.
`plain` writes nothing but the texts and line ends: the one that costs fewest tokens.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from studio.data.records import Message
from studio.data.template.sandbox import BREAK, MARKS

_MARKS = re.compile(f"[{MARKS}{BREAK}]")


class Guard:
    """Breaks the given special tokens in any text or nested value."""

    def __init__(self, controls: tuple[str, ...]) -> None:
        literals = sorted((c for c in controls if len(c) > 1), key=len, reverse=True)
        self.starts = tuple({literal[:2] for literal in literals})
        self.pattern = re.compile("|".join(map(re.escape, literals))) if literals else None

    def __call__(self, text: str) -> str:
        """Return the text with every special token broken; most texts come back as they are."""
        if not text.isascii() and _MARKS.search(text):
            text = _MARKS.sub("\ufffd", text)
        for start in self.starts:
            if start in text:
                assert self.pattern is not None
                return self.pattern.sub(_broken, text)
        return text

    def deep(self, value: Any) -> Any:
        """Break special tokens anywhere in a JSON value."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list):
            return [self.deep(item) for item in value]
        if isinstance(value, dict):
            return {self.deep(key): self.deep(item) for key, item in value.items()}
        return value


def _broken(match: re.Match[str]) -> str:
    found = match.group()
    return found[0] + BREAK + found[1:]


class Rendered(NamedTuple):
    """A conversation as text (BREAK marks still in it), and a character span per answer.

    A span covers what the model has to write: the answer and the token that ends its turn.
    """

    text: str
    spans: list[tuple[int, int]]


class Layout(Protocol):
    """How a conversation becomes text; `end` is the text of the token that ends a turn."""

    name: str
    end: str
    adds_prefix: bool

    def render(self, messages: list[Message], tools: list[Any] | None) -> Rendered:
        """Lay out a whole conversation."""

    def prompt(self, messages: list[Message], tools: list[Any] | None) -> str:
        """Lay out what stands before the next answer."""


def calls_as_text(message: Message) -> str:
    """Return an assistant message's text with its tool calls written out as JSON lines."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    lines = [json.dumps(call, ensure_ascii=False) for call in calls]
    return "\n".join([message["content"], *lines] if message["content"] else lines)


def with_tools_as_text(messages: list[Message], tools: list[Any] | None) -> list[Message]:
    """Write the tools into the system message, for layouts that know no tools."""
    if not tools:
        return messages
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = f"You can call these tools:\n{listed}"
    if messages and messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The fixed texts of a named template; `{end}` is the token that ends a turn."""

    system: tuple[str, str] = ("", "\n\n")
    user: tuple[str, str] = ("", "\n")
    tool: tuple[str, str] = ("", "\n")
    assistant: str = ""
    lead: str = ""  # written by the model before the answer
    after: str = "\n"  # between the end of a turn and the next head
    default_system: str = ""


STYLES = {
    "chatml": Style(
        system=("<|im_start|>system\n", "{end}\n"),
        user=("<|im_start|>user\n", "{end}\n"),
        tool=("<|im_start|>tool\n", "{end}\n"),
        assistant="<|im_start|>assistant\n",
    ),
    "alpaca": Style(
        user=("### Instruction:\n", "\n\n"),
        tool=("### Result:\n", "\n\n"),
        assistant="### Response:\n",
        after="\n\n",
        default_system=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request."
        ),
    ),
    "vicuna": Style(
        system=("", " "),
        user=("USER: ", " "),
        tool=("TOOL: ", " "),
        assistant="ASSISTANT:",
        lead=" ",
        after="",
        default_system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
    ),
    "plain": Style(),
}


class NamedLayout:
    """One of the named fallbacks on one tokenizer."""

    adds_prefix = True

    def __init__(self, name: str, *, end: str, guard: Guard) -> None:
        style = STYLES[name]
        self.name, self.end, self.guard = name, end, guard
        self._default = style.default_system
        self._assistant, self._lead, self._after = style.assistant, style.lead, style.after
        self._heads = {
            role: tuple(text.replace("{end}", end) for text in pair)
            for role, pair in (
                ("system", style.system), ("user", style.user), ("tool", style.tool),
            )
        }  # fmt: skip

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """Lay out a whole conversation."""
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for message in self._completed(messages, tools):
            if message["role"] != "assistant":
                head, tail = self._heads[message["role"]]
                piece = f"{head}{self.guard(message['content'])}{tail}"
            else:
                content = calls_as_text(message) if "tool_calls" in message else message["content"]
                answer = f"{self._lead}{self.guard(content)}{self.end}"
                start = at + len(self._assistant)
                spans.append((start, start + len(answer)))
                piece = f"{self._assistant}{answer}{self._after}"
            pieces.append(piece)
            at += len(piece)
        text = "".join(pieces)
        if spans and messages[-1]["role"] == "assistant":
            text = text[: spans[-1][1]]
        return Rendered(text, spans)

    def prompt(self, messages: list[Message], tools: list[Any] | None = None) -> str:
        """Lay out what stands before the next answer."""
        text, spans = self.render(messages, tools)
        if spans and messages[-1]["role"] == "assistant":
            text += self._after
        return text + self._assistant

    def _completed(self, messages: list[Message], tools: list[Any] | None) -> list[Message]:
        messages = with_tools_as_text(messages, tools)
        if self._default and (not messages or messages[0]["role"] != "system"):
            return [{"role": "system", "content": self._default}, *messages]
        return messages

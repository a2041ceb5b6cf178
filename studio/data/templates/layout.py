"""A layout turns messages into text and says which characters the assistant wrote."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

from studio.data.records import Message


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

"""The records that rows pass through: rows of a file, conversations, documents, problems."""

from __future__ import annotations

from typing import Any, NamedTuple

import xxhash

Message = dict[str, Any]


class Row(NamedTuple):
    """One record of a file, not yet interpreted; `line` is where it starts."""

    line: int
    values: dict[str, Any]


class Problem(NamedTuple):
    """Why a row was dropped, and where it stands."""

    line: int
    kind: str
    text: str


class Conversation(NamedTuple):
    """Messages of `role` and `content` (and `tool_calls`), with the tools they may call."""

    messages: list[Message]
    tools: list[Any] | None = None
    line: int = 0
    open_ended: bool = False  # a question at the end had no answer and was left out
    muted: tuple[int, ...] = ()  # which answers, counted from 0, carry no loss
    unread: tuple[str, ...] = ()  # keys of the messages that mean nothing here


class Document(NamedTuple):
    """Plain text: no template, everything trained, the end marked."""

    text: str
    line: int = 0


class Pair(NamedTuple):
    """Two answers to one prompt: the messages before the answers are equal on both sides."""

    chosen: Conversation
    rejected: Conversation


class Judged(NamedTuple):
    """A conversation whose answer was judged as good or bad."""

    conversation: Conversation
    good: bool


class Dropped(Exception):
    """Raised while a row is interpreted: it cannot be used, for this reason."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


def contents(row: Conversation | Document, role: str = "") -> list[str]:
    """Return the texts of a row, or only those of one role; a document counts as an answer."""
    if isinstance(row, Document):
        return [row.text]
    return [m["content"] for m in row.messages if not role or m["role"] == role]


def content_hash(row: Conversation | Document) -> int:
    """Return a 64-bit hash of a row's roles, texts and tool calls."""
    if isinstance(row, Document):
        return bytes_hash(row.text.encode("utf-8", "replace"))
    parts: list[str] = []
    for message in row.messages:
        parts += (message["role"], message["content"])
        if "tool_calls" in message:
            parts.append(str(message["tool_calls"]))
    return bytes_hash("\x00".join(parts).encode("utf-8", "replace"))


def bytes_hash(data: bytes | memoryview) -> int:
    """Return a 64-bit hash: eight bytes a row, so that equal ones are found among millions."""
    return xxhash.xxh3_64_intdigest(data)

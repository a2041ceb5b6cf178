"""The records that rows pass through, and the hashes and words by which they are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

import xxhash

Message = dict[str, Any]


class Row(NamedTuple):
    """One record of a file, not yet interpreted; `line` is where it starts."""

    line: int
    values: dict[str, Any]
    held_out: bool = False  # by a split that is stored with the dataset


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
    weights: tuple[tuple[int, float], ...] = ()  # loss weights of answers, where not 0 or 1
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


AnyRecord = Conversation | Document | Pair | Judged


def messages_of(row: AnyRecord) -> list[Message]:
    """Return the messages of a row; a document counts as one answer.

    Of a pair these are the chosen conversation and what the rejected one has after their prompt.
    """
    if type(row) is Conversation:
        return row.messages
    if isinstance(row, Document):
        return [{"role": "assistant", "content": row.text}]
    if isinstance(row, Pair):
        return [*row.chosen.messages, *row.rejected.messages[num_shared(row) :]]
    assert isinstance(row, Judged)
    return row.conversation.messages


def compared_text(row: AnyRecord) -> str:
    """Return a conversation's text as duplicates are compared: without the shared system prompt."""
    texts = []
    for message in messages_of(row):
        if message["role"] != "system":
            thought = message.get("reasoning_content")
            calls = (call["function"] for call in message.get("tool_calls", ()))
            texts += [thought] if thought else []
            texts += [message["content"], *(json.dumps(c, ensure_ascii=False) for c in calls)]
    return "\n".join(texts)


def content_hash(row: AnyRecord) -> int:
    """Return a 64-bit hash of a row's roles, texts, thoughts, calls, tools and verdict."""
    if isinstance(row, Conversation):
        return _messages_hash(row.messages, str(row.tools or ""))
    if isinstance(row, Document):
        return bytes_hash(row.text.encode("utf-8", "replace"))
    verdict = str(row.good) if isinstance(row, Judged) else ""
    return _messages_hash(messages_of(row), f"{verdict}{row[0].tools or ''}")


def prompt_hash(row: AnyRecord) -> int:
    """Return a hash of what is asked, the same for both sides of a pair.

    Rows with the same one must stay on one side of a split; of other kinds it is the whole row.
    """
    if isinstance(row, Pair):
        return _messages_hash(row.chosen.messages[: num_shared(row)])
    if isinstance(row, Judged):
        messages = row.conversation.messages
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        return _messages_hash(messages[: asked[-1] + 1 if asked else 0])
    return content_hash(row)


def num_shared(pair: Pair) -> int:
    """Return how many messages both sides of a pair begin with."""
    return num_equal(pair.chosen.messages, pair.rejected.messages)


def num_equal(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items two sequences begin with alike."""
    return sum(takewhile(bool, (a == b for a, b in zip(one, other, strict=False))))


def _messages_hash(messages: list[Message], more: str = "") -> int:
    parts = [more] if more else []
    for message in messages:
        parts += (message["role"], message["content"])
        if len(message) > 2:
            parts += [message.get("reasoning_content", ""), str(message.get("tool_calls", ""))]
    return bytes_hash("\x00".join(parts).encode("utf-8", "replace"))


def bytes_hash(data: bytes | memoryview) -> int:
    """Return a 64-bit hash: eight bytes a row, so that equal ones are found among millions."""
    return xxhash.xxh3_64_intdigest(data)


_ASCII = re.compile(r"[^\W_]+")
_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


def words_in(text: str) -> list[str]:
    """Return the runs of letters, digits and combining marks, in lower case.

    In scripts that have no spaces between words, and in Hangul, which joins particles to a word,
    each character is a word.
    """
    return list((_ASCII if text.isascii() else _pattern()).findall(text.lower()))


@cache
def _pattern() -> Any:
    import regex

    return regex.compile(rf"(?V1)[{_ALONE}]\p{{M}}*|[\p{{L}}\p{{N}}\p{{M}}--[{_ALONE}]]+")

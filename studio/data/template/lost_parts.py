"""Find every part of a conversation in its rendering, and name the parts that are not there.

A template is a foreign program: it may cut thoughts, ignore a system prompt, leave out a tool call.
Each answer's text, thought and tool calls must stand inside its span, followed by an end of turn;
every other message must stand outside all spans, in order. Only searches are made here, no second
rendering. A text is found when it is equal after stripping outer white space, as it is or in the
quoting of JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from studio.data.conversation_records import Message

Spans = list[tuple[int, int]]
Quote = Callable[[str], str]
Kind = Literal["system", "user", "tool", "tools", "answer", "thought", "call", "end"]
OPEN_CLOSE = {"<think>": "</think>", "[THINK]": "[/THINK]", "<thinking>": "</thinking>"}
_THOUGHT = re.compile(
    r"\s*(<think>|\[THINK\]|<thinking>)(.*?)(</think>|\[/THINK\]|</thinking>)\s*", re.DOTALL
)


class Lost(NamedTuple):
    """A part of message `message` (-1 for the tools) that its rendering does not hold."""

    message: int
    kind: Kind
    text: str


class Thought(NamedTuple):
    """An answer's content in two: the thought as written with its tags, its text, the rest."""

    lead: str
    text: str
    rest: str


def split_thought(content: str) -> Thought | None:
    """Return the thought at the start of an answer's content; None if there is none."""
    if "</think" not in content and "[/THINK]" not in content:
        return None
    found = _THOUGHT.match(content)
    if found and OPEN_CLOSE[found[1]] == found[3]:
        return Thought(found[0], found[2].strip(), content[found.end() :])
    # Tokenizers that open the thought in the prompt leave answers that only close it.
    before, close, rest = content.partition("</think>")
    if not close or "<think>" in before:
        return None
    return Thought(content[: len(content) - len(rest.lstrip())], before.strip(), rest.lstrip())


def thought_of(message: Message) -> tuple[str, str]:
    """Return an answer's thought and the rest of its content."""
    content = message["content"] or ""
    if thought := message.get("reasoning_content"):
        return thought.strip(), content
    split = split_thought(content)
    return (split.text, split.rest) if split else ("", content)


def lost_parts(
    messages: list[Message],
    tools: list[Any] | None,
    text: str,
    spans: Spans,
    *,
    ends: Sequence[str],
    quote: Quote,
) -> list[Lost]:
    """Return the parts of a conversation that are not where they belong.

    Args:
        messages: The conversation as it was given.
        text: Its rendering.
        spans: The place of each answer; an empty one stands for an answer without a place.
        ends: Texts that may end a turn; without any, no end is asked for.
        quote: Writes a text as the rendering does (control tokens inside data are broken).
    """
    lost: list[Lost] = []
    low = answer = 0
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            start, stop = spans[answer]
            answer += 1
            lost += _lost_of_answer(index, message, text, (start, stop), ends, quote)
            low = max(low, stop)
            continue
        content = message["content"].strip()
        if not content:
            continue
        high = next((a for a, b in spans[answer:] if a < b), len(text))
        place = find_text(content, text, low, high, quote)
        if place:
            low = place[1]
        elif message["role"] != "system" or not _outside(content, text, spans, quote):
            lost.append(Lost(index, message["role"], content))
    for name in _names(tools):
        if not _outside(name, text, spans, quote):
            lost.append(Lost(-1, "tools", name))
    return lost


def find_text(needle: str, text: str, low: int, high: int, quote: Quote) -> tuple[int, int] | None:
    """Return where a text stands between two places, in any quoting that templates use."""
    guarded = quote(needle)  # as it stands, the template may have written it: an end of turn
    at = text.find(guarded, low, high)
    if at >= 0:
        return at, at + len(guarded)
    for form in _forms(needle, guarded):
        at = text.find(form, low, high)
        if at >= 0:
            return at, at + len(form)
    return None


def find_call(
    call: dict[str, Any], text: str, low: int, high: int, quote: Quote
) -> tuple[int, int] | None:
    """Return where a tool call stands: its name, and every leaf of its arguments after it."""
    function = call["function"]
    name = find_text(function["name"], text, low, high, quote)
    if name is None:
        return None
    arguments, last = function["arguments"], name[1]
    if isinstance(arguments, str):
        if whole := find_text(arguments.strip(), text, name[1], high, quote):
            return name[0], whole[1]
        arguments = json_or_same(arguments)
    for leaf in _leaves(arguments):
        found = _find_leaf(leaf, text, name[1], high, quote)
        if found is None:
            return None
        last = max(last, found[1])
    return name[0], last


def ways_out(messages: Sequence[Message]) -> str:
    """Return what can be done about a row that a template does not write."""
    several = any(len(message.get("tool_calls", ())) > 1 for message in messages)
    change = "give each tool call a message of its own" if several else "change the row"
    for index, message in enumerate(messages):
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            if arguments and not isinstance(json_or_same(arguments), dict):
                change = f"make the arguments of message {index + 1} a JSON object"
    return f"Choose another data.chat_template, or {change}"


def json_or_same(value: Any) -> Any:
    """Return what a text holds as JSON; other texts and values come back as they are."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _lost_of_answer(
    index: int,
    message: Message,
    text: str,
    span: tuple[int, int],
    ends: Sequence[str],
    quote: Quote,
) -> Iterator[Lost]:
    """Yield the parts of an answer that its span does not hold."""
    start, stop = span
    at = start
    thought, content = thought_of(message)
    content = content.strip()
    after_thought = find_text(thought, text, start, stop, quote) if thought else None
    if after_thought:
        at = after_thought[1]
    if content:
        place = find_text(content, text, at, stop, quote)
        if place is None and after_thought:
            # The text stands only before or over what looked like the thought: that was the text.
            place = find_text(content, text, start, stop, quote)
            after_thought = None if place else after_thought
        if place is None:
            yield Lost(index, "answer", content)
        at = place[1] if place else at
    if thought and after_thought is None:
        yield Lost(index, "thought", thought)
    for call in message.get("tool_calls") or ():
        found = find_call(call, text, at, stop, quote)
        if found is None:
            yield Lost(index, "call", call_text(call))
        else:
            at = found[1]
    if ends and at > start and not any(text.find(end, at, stop) >= 0 for end in ends):
        yield Lost(index, "end", ends[0])


def call_text(call: dict[str, Any]) -> str:
    """Return a tool call as one line of JSON."""
    function = call["function"]
    called = {"name": function["name"], "arguments": json_or_same(function["arguments"])}
    return json.dumps(called, ensure_ascii=False)


def _outside(needle: str, text: str, spans: Spans, quote: Quote) -> bool:
    edges = [0, *(edge for span in spans if span[0] < span[1] for edge in span), len(text)]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return any(find_text(needle, text, low, high, quote) for low, high in gaps)


def _names(tools: list[Any] | None) -> Iterator[str]:
    for tool in tools or ():
        inner = tool.get("function", tool)
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(name, str) and name:
            yield name


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _find_leaf(leaf: Any, text: str, low: int, high: int, quote: Quote) -> tuple[int, int] | None:
    if isinstance(leaf, str):
        return find_text(leaf.strip(), text, low, high, quote)
    for form in dict.fromkeys((json.dumps(leaf), str(leaf))):
        at = text.find(form, low, high)
        if at >= 0:
            return at, at + len(form)
    return None


def _forms(needle: str, guarded: str) -> Iterator[str]:
    """Yield the other ways in which templates write a text."""
    if needle.isascii() and needle.isprintable() and not any(c in needle for c in "\"'\\"):
        return  # JSON and Python write it as it is
    for ascii_only in (False, True):
        once = json.dumps(guarded, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]  # arguments as text inside JSON
        yield once.replace('\\"', '"').replace("'", "\\'")  # between single quotes

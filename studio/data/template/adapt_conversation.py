"""Adapt a conversation to what a template reads: system prompts, thoughts, tools, calls, results.

Rows name the same thing in several ways, and each template reads one of them: tool arguments as
text or as an object, a call beside empty content or beside null, a thought inside the content or
under a key. `Facts` say what the template reads (`learn_facts` finds them); what it cannot write at
all is said in words: tools in the system prompt, calls as JSON, the system prompt before the first
question.

Templates cut the thoughts of earlier answers, because a model never reads them again; some cut all.
As it was generated, each answer followed its own prompt: `turns` gives one conversation per answer,
of which the others carry no loss. `with_thoughts` writes a thought in front of its answer, with the
text that the template itself puts around thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import xxhash

from studio.data.conversation_records import Conversation, Message
from studio.data.template.jinja_sandbox import Guard
from studio.data.template.lost_parts import (
    Quote,
    call_text,
    find_text,
    json_or_same,
    split_thought,
    thought_of,
)

if TYPE_CHECKING:
    from studio.data.template.probe_template import ThoughtFrame
    from studio.data.template.render_conversation import Rendered

PARTS = "parts"  # a thought as a part of the content, beside its text
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
Arguments = Literal["given", "object", "text"]
ToolForm = Literal["given", "wrapped", "bare"]


class Way(NamedTuple):
    """One way of writing tool calls and tools; `given` leaves them as the row has them."""

    arguments: Arguments = "given"
    null: bool = False  # the content of a call without text is null, not empty
    tools: ToolForm = "given"


AS_GIVEN = Way()
WAYS = [
    Way(arguments, null, tools)
    for tools in get_args(ToolForm) for null in (False, True) for arguments in get_args(Arguments)
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The forms that a template reads.

    `thought_keys` are the names under which it reads thoughts, in the order of choice; `inline` is
    True if it keeps those inside the content, `tags` are the closing tags that it looks for.
    `later_system` is True if it writes system prompts where they stand, also behind other messages.
    `id_length` is the length that it demands of the ids of calls; 0 accepts any.
    """

    system: bool = True
    later_system: bool = True
    tools: bool = True
    calls: bool = True
    tool_role: bool = True
    way: Way = AS_GIVEN
    call_ids: bool = False
    id_length: int = 0
    thought_keys: tuple[str, ...] = ()
    inline: bool = True
    tags: tuple[str, ...] = ()

    @cached_property
    def all_said(self) -> bool:
        """True if the template writes every part under a name of its own."""
        own = self.system and self.later_system and self.tools and self.calls and self.tool_role
        return own and bool(self.thought_keys or not self.inline)


Change = Literal["system", "tools", "calls", "results", "thoughts"]


def changes(messages: list[Message], tools: list[Any] | None, facts: Facts) -> tuple[Change, ...]:
    """Return the parts that are said in words, because the template cannot write them."""
    if facts.all_said:
        return ()
    found: set[Change] = set()
    if tools and not facts.tools:
        found.add("tools")
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and not (facts.later_system if index else facts.system):
            found.add("system")
        elif role == "tool" and not facts.tool_role:
            found.add("results")
        elif role == "assistant" and len(message) > 2:
            if "tool_calls" in message and not facts.calls:
                found.add("calls")
            if "reasoning_content" in message and not facts.thought_keys and facts.inline:
                found.add("thoughts")
    return tuple(change for change in get_args(Change) if change in found) if found else ()


def adapted(
    messages: list[Message], tools: list[Any] | None, facts: Facts, way: Way, guard: Guard
) -> tuple[list[Message], list[Any] | None]:
    """Return messages and tools as the template reads them, with control tokens broken."""
    if tools and not facts.tools:
        messages, tools = with_tools_as_text(messages, tools), None
    if not (facts.system and facts.later_system):
        messages = systems_into_questions(messages, facts)
    if not facts.tool_role:
        messages = results_as_questions(messages)
    if facts.call_ids and any("tool_calls" in message for message in messages):
        messages = with_ids(messages, facts.id_length)
    found = [_adapted(message, facts, way, guard) for message in messages]
    return found, guard.deep(_tools(tools, way)) if tools else None


def _adapted(message: Message, facts: Facts, way: Way, guard: Guard) -> Message:
    role, content = message["role"], message["content"]
    if role == "assistant":
        if len(message) > 2 or "</think" in content or "[/THINK]" in content:
            message = _with_thought(_with_calls(message, facts, way), facts)
    if len(message) == 2 and isinstance(message["content"], str):
        content = guard(message["content"])
        same = content is message["content"]
        return message if same else {"role": role, "content": content}
    return {key: guard.deep(value) for key, value in message.items()}


def _with_calls(message: Message, facts: Facts, way: Way) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    if not facts.calls:
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        lines = [message["content"], *map(call_text, calls)]  # of JSON
        return rest | {"content": "\n".join(filter(None, lines))}
    made = message | {"tool_calls": [_call(call, way) for call in calls]}
    if way.null and not message["content"]:
        made["content"] = None
    return made


def _call(call: dict[str, Any], way: Way) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if way.arguments == "object" and isinstance(arguments, str):
        values = json_or_same(arguments) if arguments.strip() else {}
        arguments = values if isinstance(values, dict) else arguments
    elif way.arguments == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}


def _with_thought(message: Message, facts: Facts) -> Message:
    """Write an answer's thought under the name that the template reads, if there is one."""
    content, keys = message["content"], facts.thought_keys
    thought = message.get("reasoning_content", "")
    if not thought:
        split = split_thought(content) if content and keys else None
        known = split is not None and any(tag in split.lead for tag in facts.tags)
        if split is None or (facts.inline and known):
            return message
        thought, content = split.text, split.rest
    elif "reasoning_content" in keys:
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    if not keys:
        return rest | {"content": inline(thought, content or "")} if facts.inline else message
    if keys[0] == PARTS:
        parts = [{"type": "thinking", "thinking": thought}]
        parts += [{"type": "text", "text": content}] if content else []
        return rest | {"content": parts}
    return rest | {"content": content, keys[0]: thought}


def inline(thought: str, content: str) -> str:
    """Return an answer's content with its thought in front, as most models write it."""
    return f"<think>\n{thought.strip()}\n</think>\n\n{content}"


def _tools(tools: list[Any], way: Way) -> list[Any]:
    if way.tools == "wrapped":
        return [t if "function" in t else {"type": "function", "function": t} for t in tools]
    if way.tools == "bare":
        return [t["function"] if isinstance(t.get("function"), dict) else t for t in tools]
    return tools


def with_tools_as_text(messages: list[Message], tools: list[Any]) -> list[Message]:
    """Write the tools into the system message, for templates that know no tools."""
    text = "You can call these tools:\n"
    text += "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    if messages and messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def systems_into_questions(messages: list[Message], facts: Facts) -> list[Message]:
    """Write the system prompts that the template does not carry in front of the next question.

    One with an answer behind it stands behind the question before.
    """
    made: list[Message] = []
    waiting: Message | None = None
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "system" and not (facts.later_system if index else facts.system):
            message = {"role": "user", "content": message["content"]}
            waiting = _joined(waiting, message) if waiting else message
            continue
        if waiting and role == "user":
            message, waiting = _joined(waiting, message), None
        elif waiting and role == "assistant":
            made, waiting = _with_question(made, waiting), None
        made.append(message)
    return _with_question(made, waiting) if waiting else made


def results_as_questions(messages: list[Message]) -> list[Message]:
    """Write the results of tools as questions; several in a row, and a question beside, as one."""
    made: list[Message] = []
    after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            made = _with_question(made, {"role": "user", "content": message["content"]})
        elif after_result and message["role"] == "user":
            made = _with_question(made, message)
        else:
            made.append(message)
        after_result = is_result
    return made


def _with_question(messages: list[Message], question: Message) -> list[Message]:
    """Return messages with a question at the end, which the last one takes in if it is one."""
    if not messages or messages[-1]["role"] != "user":
        return [*messages, question]
    return [*messages[:-1], _joined(messages[-1], question)]


def _joined(first: Message, second: Message) -> Message:
    texts = [text for text in (first["content"], second["content"]) if text.strip()]
    return first | {"content": "\n\n".join(texts)}


def with_ids(messages: list[Message], length: int) -> list[Message]:
    """Give every call an id and every result the id of its call.

    Valid ids are kept. Results without one belong to the calls before them, by name, else in order.
    """
    made: list[Message] = []
    new: dict[str, str] = {}
    open_calls: list[tuple[str, str]] = []
    number = 0
    for message in messages:
        if calls := message.get("tool_calls"):
            open_calls, named = [], []
            for call in calls:
                number += 1
                old = call.get("id", "")
                fits = len(old) == length and old.isalnum() if length else bool(old)
                identity = old if fits else _id(f"{number}{call['function']['name']}{old}", length)
                new[old] = identity if old else ""
                open_calls.append((call["function"]["name"], identity))
                named.append(call | {"id": identity})
            message = message | {"tool_calls": named}
        elif message["role"] == "tool":
            identity = new.get(message.get("tool_call_id", ""), "")
            if not identity and open_calls:
                names = [name for name, _ in open_calls]
                name = message.get("name")
                identity = open_calls[names.index(name) if name in names else 0][1]
            open_calls = [call for call in open_calls if call[1] != identity]
            message = message | {"tool_call_id": identity} if identity else message
        made.append(message)
    return made


def _id(seed: str, length: int) -> str:
    number = xxhash.xxh3_64_intdigest(seed.encode("utf-8", "replace"))
    letters = ""
    for _ in range(length or 9):
        number, at = divmod(number, len(_ID_LETTERS))
        letters += _ID_LETTERS[at]
    return letters


def turns(row: Conversation) -> Iterator[Conversation]:
    """Yield one conversation per answer that carries loss, up to that answer."""
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    for number, index in enumerate(answers):
        if number not in row.muted:
            muted = tuple(range(number))
            yield row._replace(messages=row.messages[: index + 1], muted=muted)


def with_thoughts(
    row: Conversation,
    laid: Rendered,
    messages: Collection[int],
    *,
    header: ThoughtFrame,
    cue: str,
    quote: Quote,
) -> Rendered:
    """Write the thoughts of some messages in front of their answers.

    An answer without text, or whose text has no place, stays as it is: its thought stays lost.

    Args:
        messages: The messages, by their place in the conversation, whose thoughts are written.
        header: What stands around a thought.
        cue: The generation prompt; what it opens of a thought is not trained.
        quote: Breaks control tokens inside data.
    """
    text, spans, lost = laid.text, list(laid.spans), list(laid.lost)
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    for number, index in enumerate(answers):
        thought, content = thought_of(row.messages[index])
        start, stop = spans[number]
        place = find_text(content.strip(), text, start, stop, quote) if content.strip() else None
        if index not in messages or place is None:
            continue
        split = split_thought(row.messages[index]["content"])
        at, written = place[0], header.before + quote(thought) + header.after
        if split and not header.learned:
            written = quote(split.lead)
            space = split.lead[len(split.lead.rstrip()) :]
            if header.leaves_space and text.endswith(space, 0, at):
                at -= len(space)
        elif header.instead and text.endswith(header.instead, 0, at):
            at -= len(header.instead)
        elif header.instead:
            continue
        text = text[:at] + written + text[place[0] :]
        grown = len(written) - (place[0] - at)
        opened = _num_opened(text, min(start, at), at, cue)
        spans[number] = (opened, stop + grown)
        spans[number + 1 :] = [(a + grown, b + grown) for a, b in spans[number + 1 :]]
        lost = [part for part in lost if (part.message, part.kind) != (index, "thought")]
    return laid._replace(text=text, spans=spans, lost=lost)


def _num_opened(text: str, start: int, at: int, cue: str) -> int:
    """Return where a span begins whose first characters the generation prompt has written."""
    for known in range(len(cue), 0, -1):
        if text.endswith(cue[:known], 0, at) and text.startswith(cue[known:], at):
            return at + len(cue) - known
    return start

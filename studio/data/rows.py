"""Turn rows of each format into conversations, and say why a row cannot be used.

A row becomes one conversation (or document), or is dropped with a sentence; nothing is repaired by
guessing. A new format is an entry of `_MAKERS`, of `mapping.PARTS` and a rule in `recognise`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from studio.data.mapping import Mapping, as_text, getter
from studio.data.message_parts import Parts, read_content, refuse_media
from studio.data.records import Conversation, Document, Dropped, Message, Problem, Row

Made = Conversation | Document
Converter = Callable[[Row], Made | Problem]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "instruction": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "ai": "assistant",
    "agent": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
THOUGHT_NAMES = ("reasoning_content", "reasoning", "thinking", "thought")
READ_KEYS = frozenset({
    "role", "from", "content", "value", "text", "parts", "tool_calls", "function_call", "name",
    "tool_call_id", "weight", "loss_weight", "train", *THOUGHT_NAMES,
})  # fmt: skip


def converter(mapping: Mapping) -> Converter:
    """Return the function that turns rows into conversations, compiled once for a file."""
    mapping.checked()
    make = _MAKERS[mapping.format](mapping)

    def convert(row: Row) -> Made | Problem:
        try:
            refuse_media(row.values)
            return make(row)
        except Dropped as dropped:
            return Problem(row.line, dropped.kind, dropped.text)

    return convert


class _Part:
    """One part of the rows; an optional one may have no source, or be missing in some rows."""

    def __init__(self, mapping: Mapping, part: str) -> None:
        self.name = mapping.columns.get(part, part)
        self.get = getter(mapping, part) or (lambda _: None)

    def text(self, values: dict[str, Any]) -> str:
        return as_text(self.get(values), self.name)

    def value_or_none(self, values: dict[str, Any]) -> Any:
        try:
            return self.get(values)
        except Dropped as dropped:
            if dropped.kind == "missing":
                return None
            raise

    def text_or_empty(self, values: dict[str, Any]) -> str:
        return as_text(self.value_or_none(values), self.name)

    def empty(self, kind: str) -> Dropped:
        return Dropped(kind, f'"{self.name}" is empty.')


def _text(mapping: Mapping) -> Callable[[Row], Made]:
    part = _Part(mapping, "text")

    def make(row: Row) -> Document:
        text = part.text(row.values)
        if not text.strip():
            raise part.empty("empty")
        return Document(text, row.line)

    return make


def _pair(mapping: Mapping, ask: str, reply: str, extra: str = "") -> Callable[[Row], Made]:
    question, answer, system = (_Part(mapping, part) for part in (ask, reply, "system"))
    more, history = _Part(mapping, extra), _Part(mapping, "history")
    extra_first = extra == "context"

    def make(row: Row) -> Conversation:
        values = row.values
        asked, answered = question.get(values), answer.get(values)
        if type(asked) is list and asked and _is_message(asked[0]):
            turns = [*asked, *_as_messages(answered, answer.name)]
            return _conversation(turns, mapping, row, system.text_or_empty(values))
        text, reply = as_text(asked, question.name), as_text(answered, answer.name)
        if not reply.strip():
            raise answer.empty("empty_answer")
        added = more.text_or_empty(values)
        if added.strip():
            first, second = (added, text) if extra_first else (text, added)
            text = f"{first}\n\n{second}" if first.strip() else second
        if not text.strip():
            raise question.empty("empty_prompt")
        messages = _system(system.text_or_empty(values)) + _history(history.value_or_none(values))
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": reply})
        return Conversation(messages, None, row.line)

    return make


def _labelled(mapping: Mapping) -> Callable[[Row], Made]:
    text_part, label_part, system = (_Part(mapping, part) for part in ("text", "label", "system"))
    ask = "" if "text" in mapping.templates else f"What is the {label_part.name.lower()}?\n"

    def make(row: Row) -> Conversation:
        text, label = text_part.text(row.values), label_part.text(row.values)
        if not text.strip():
            raise text_part.empty("empty_prompt")
        if not label.strip():
            raise label_part.empty("empty_answer")
        messages = _system(system.text_or_empty(row.values))
        messages.append({"role": "user", "content": ask + text})
        messages.append({"role": "assistant", "content": label})
        return Conversation(messages, None, row.line)

    return make


def _preference(mapping: Mapping) -> Callable[[Row], Made]:
    """Return the maker of conversations that end with the chosen answer of a pair."""
    answer, whole = _Part(mapping, "chosen"), _answered(mapping)
    return lambda row: whole(row, _as_messages(answer.get(row.values), answer.name))


def _judged(mapping: Mapping) -> Callable[[Row], Made]:
    """Return the maker of conversations with the answers that are judged as good."""
    answer, label, whole = _Part(mapping, "answer"), _Part(mapping, "label"), _answered(mapping)

    def make(row: Row) -> Conversation:
        verdict = truth(label.get(row.values))
        if verdict is None:
            raise Dropped("label", f'"{label.name}" is neither true nor false.')
        if not verdict:
            raise Dropped("judged_bad", "The answer is judged as bad: only good ones are trained.")
        return whole(row, _as_messages(answer.get(row.values), answer.name))

    return make


def truth(value: Any) -> bool | None:
    """Return what a judgement says of an answer; None if it is neither yes nor no."""
    return _TRUTHS.get(str(value).strip().lower())


_TRUTHS = dict.fromkeys(("true", "1", "yes", "good", "desirable", "chosen"), True) | dict.fromkeys(
    ("false", "0", "no", "bad", "undesirable", "rejected"), False
)


def _answered(mapping: Mapping) -> Callable[[Row, list[Any]], Conversation]:
    """Return the function that puts a row's prompt in front of its answer."""
    prompt, more, system, tools = (
        _Part(mapping, part) for part in ("prompt", "input", "system", "tools")
    )

    def make(row: Row, turns: list[Any]) -> Conversation:
        asked = prompt.value_or_none(row.values)
        if isinstance(asked, str) and asked.lstrip().startswith(("[{", "[ {")):
            asked = _parsed(asked, prompt.name)
        if asked and not any(_role(turn, mapping) == "user" for turn in turns):
            if type(asked) is not list:
                texts = (as_text(asked, prompt.name), more.text_or_empty(row.values))
                text = "\n\n".join(text for text in texts if text.strip())
                asked = [{"role": "user", "content": text}]
            turns = [*asked, *turns]
        known = _tools(tools.value_or_none(row.values))
        return _conversation(turns, mapping, row, system.text_or_empty(row.values), known)

    return make


def _messages(mapping: Mapping) -> Callable[[Row], Made]:
    messages, tools, system = (_Part(mapping, part) for part in ("messages", "tools", "system"))
    older = mapping.columns.get("tools") == "functions"  # OpenAI's older name, without wrappers

    def make(row: Row) -> Conversation:
        turns = messages.get(row.values)
        if isinstance(turns, str):
            turns = _parsed(turns, messages.name)
        if not isinstance(turns, list):
            raise Dropped("type", f'"{messages.name}" is not a list of messages.')
        known = _tools(tools.value_or_none(row.values))
        if older and known:
            known = [t if "function" in t else {"type": "function", "function": t} for t in known]
        return _conversation(
            turns, mapping, row, _system_text(system.value_or_none(row.values)), known
        )

    return make


_MAKERS: dict[str, Callable[[Mapping], Callable[[Row], Made]]] = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": lambda m: _pair(m, "instruction", "output", "input"),
    "prompt_completion": lambda m: _pair(m, "prompt", "completion"),
    "question_answer": lambda m: _pair(m, "question", "answer", "context"),
    "preference": _preference,
    "judged": _judged,
    "labelled": _labelled,
    "text": _text,
}


def _conversation(
    turns: list[Any], mapping: Mapping, row: Row, system: str, tools: list[Any] | None = None
) -> Conversation:
    messages: list[Message] = []
    muted: list[int] = []
    unread: list[str] = []
    last_answer, num_answers = -1, 0
    for index, turn in enumerate(turns):
        if type(turn) is not dict:
            raise Dropped("type", f"Message {index + 1} is not an object with a role.")
        role = _role(turn, mapping)
        if not role:
            got = str(turn.get("role", turn.get("from", "")))[:40]
            raise Dropped("roles", f'Message {index + 1} has the unknown role "{got}".')
        message = _message(turn, role, index)
        if message["role"] == "assistant":
            last_answer = len(messages)
            if _is_muted(turn, index):
                muted.append(num_answers)
            num_answers += 1
        if len(turn) > 2 and not turn.keys() <= READ_KEYS:
            unread += [key for key in turn if key not in READ_KEYS and has_value(turn[key])]
        messages.append(message)
    if last_answer < 0:
        raise Dropped("no_answer", "No message is from the assistant: there is nothing to learn.")
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
        last_answer += 1
    open_ended = last_answer + 1 < len(messages)
    kept = messages[: last_answer + 1]
    return Conversation(kept, tools, row.line, open_ended, tuple(muted), tuple(unread))


def has_value(value: Any) -> bool:
    """Return True if a value of a file says anything."""
    return value is not None and value != "" and value != [] and value != {}


def _is_muted(turn: dict[str, Any], index: int) -> bool:
    """Return True if an answer is marked in the file to carry no loss."""
    for name in ("weight", "loss_weight"):
        weight = turn.get(name)
        if weight is not None and weight not in (0, 1):
            shown = str(weight)[:20]
            raise Dropped("weight", f"Message {index + 1} has the {name} {shown}: use 0 or 1.")
        if weight == 0 and weight is not None:
            return True
    return turn.get("train") is False


def _message(turn: dict[str, Any], role: str, index: int) -> Message:
    content = turn.get("content", turn.get("value", turn.get("text", turn.get("parts"))))
    found = Parts(content) if type(content) is str else read_content(content, index)
    text = found.text
    calls: list[Any] | None = _calls_of(turn, found)
    if text and ("\x00" in text or not text.isascii()):
        as_text(text, f"message {index + 1}")
    if role == "call":
        role, calls = "assistant", _calls_in(text)
        text = "" if calls else text
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        if calls:
            message["tool_calls"] = [_call(call, index) for call in calls]
        elif not text.strip():
            raise Dropped("empty_answer", f"Message {index + 1} is an empty answer.")
        if thought := found.thought or _thought(turn):
            message["reasoning_content"] = as_text(thought, "reasoning_content")
    elif role == "user" and not text.strip():
        raise Dropped("empty_prompt", f"Message {index + 1} is an empty question.")
    elif role == "tool":
        for key in ("name", "tool_call_id"):
            if isinstance(turn.get(key), str):
                message[key] = turn[key]
    return message


def _thought(turn: dict[str, Any]) -> str:
    """Return the thought of a message, under whichever name it stands."""
    if len(turn) > 2:
        for key in THOUGHT_NAMES:
            thought = turn.get(key)
            if isinstance(thought, str) and thought.strip():
                return thought
    return ""


def _calls_of(turn: dict[str, Any], content: Parts) -> list[Any]:
    """Return the tool calls of a message: today's list, the older single one, parts of content."""
    calls = turn.get("tool_calls") or turn.get("function_call") or content.calls
    if isinstance(calls, str):
        calls = _calls_in(calls) or [calls]
    if not calls:
        return []
    return [*calls] if isinstance(calls, list | tuple) else [calls]


def _calls_in(text: str) -> list[Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = found if isinstance(found, list) else [found]
    named = all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls)
    return calls if calls and named else None


def _call(call: Any, index: int) -> dict[str, Any]:
    """Return a call in one shape; arguments stay text or object, as the file has them."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Dropped("type", f"Message {index + 1} has a tool call without a name.")
    arguments = inner.get("arguments", inner.get("parameters", inner.get("input")))
    function = {"name": inner["name"], "arguments": {} if arguments is None else arguments}
    made = {"type": "function", "function": function}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _tools(value: Any) -> list[Any] | None:
    """Return the tools of a conversation, given as a list or as JSON text."""
    if isinstance(value, str):
        value = _parsed(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Dropped("type", '"tools" is not a list of objects.')
    return value


def _system_text(value: Any) -> str:
    """Return a system prompt, given as text or as an object with its parts."""
    if isinstance(value, dict):
        return read_content(value.get("content", value.get("parts", value.get("text"))), 0).text
    return as_text(value, "system")


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text.strip() else []


def _history(value: Any) -> list[Message]:
    messages: list[Message] = []
    pairs = [] if value is None or value == "" or value != value else value
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise Dropped("type", '"history" is not a list of question and answer pairs.')
    for question, answer in pairs:
        messages.append({"role": "user", "content": as_text(question, "history")})
        messages.append({"role": "assistant", "content": as_text(answer, "history")})
    return messages


def _as_messages(value: Any, name: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith(("[{", "[ {")):
        value = _parsed(value, name)
    if isinstance(value, list) and value and _is_message(value[0]):
        return value
    if _is_message(value):
        return [value]
    text = as_text(value, name)
    if not text.strip():
        raise Dropped("empty_answer", f'"{name}" is empty.')
    return [{"role": "assistant", "content": text}]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _role(turn: Any, mapping: Mapping) -> str:
    name = turn.get("role", turn.get("from")) if type(turn) is dict else None
    if type(name) is not str:
        return ""
    return mapping.roles.get(name) or ROLES.get(name) or ROLES.get(name.strip().lower(), "")


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Dropped("json", f'"{name}" is text that is not valid JSON.') from None

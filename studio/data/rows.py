"""Turn rows of each format into conversations, and say why a row cannot be used.

A row either becomes one conversation (or document) or is dropped with a sentence; nothing is
repaired by guessing. It knows columns and roles, not tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from studio.data.mapping import Getter, Mapping, as_text, getter
from studio.data.records import Conversation, Document, Dropped, Message, Problem, Row


def message_of(turn: dict[str, Any], role: str, index: int) -> Message:
    """Return one turn as a message of ours.

    Raises:
        Dropped: It is empty where it may not be, or holds something other than text.
    """
    content = turn.get("content", turn.get("value", turn.get("text", turn.get("parts"))))
    text = content if type(content) is str else _content(content, index)
    if text and ("\x00" in text or not text.isascii()):
        as_text(text, f"message {index + 1}")
    calls = turn.get("tool_calls") or None
    if role == "call":
        role, calls = "assistant", _calls(text)
        if calls:
            text = ""
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        if calls:
            message["tool_calls"] = [_call(call, index) for call in _listed(calls)]
        elif not text.strip():
            raise Dropped("empty_answer", f"Message {index + 1} is an empty answer.")
        thought = turn.get("reasoning_content")
        if isinstance(thought, str) and thought.strip():
            message["reasoning_content"] = as_text(thought, "reasoning_content")
    elif role == "user" and not text.strip():
        raise Dropped("empty_prompt", f"Message {index + 1} is an empty question.")
    if role == "tool" and isinstance(turn.get("name"), str):
        message["name"] = turn["name"]
    return message


def _content(content: Any, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                kind = part.get("type", "?") if isinstance(part, dict) else type(part).__name__
                raise Dropped("type", f'Message {index + 1} holds "{str(kind)[:30]}", not text.')
        return "".join(texts)
    if isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False)
    return as_text(content, f"message {index + 1}")


def _calls(text: str) -> list[Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = _listed(found)
    fine = all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls)
    return calls if calls and fine else None


def _call(call: Any, index: int) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Dropped("type", f"Message {index + 1} has a tool call without a name.")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass  # templates take text as well
    made = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def system_of(value: Any) -> str:
    """Return a system prompt, given as text or as an object with its parts."""
    if isinstance(value, dict):
        value = value.get("content", value.get("parts", value.get("text")))
        return _content(value, 0)
    return as_text(value, "system")


def is_muted(turn: dict[str, Any]) -> bool:
    """Whether a turn says itself that it carries no loss: `weight: 0` or `train: false`."""
    return turn.get("weight") == 0 or turn.get("train") is False


def tools_of(value: Any) -> list[Any] | None:
    """Return the tools of a conversation, given as a list or as JSON text."""
    if isinstance(value, str):
        value = parsed(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Dropped("type", '"tools" is no list of objects.')
    return value


def parsed(text: str, name: str) -> Any:
    """Parse a cell that holds JSON as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Dropped("json", f'"{name}" is text that is not valid JSON.') from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


Converter = Callable[[Row], Conversation | Document | Problem]

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


def converter(mapping: Mapping) -> Converter:
    """Return the function that turns rows into conversations, compiled once for a file."""
    mapping.checked()
    make = _MAKERS[mapping.format](mapping)

    def convert(row: Row) -> Conversation | Document | Problem:
        try:
            return make(row)
        except Dropped as dropped:
            return Problem(row.line, dropped.kind, dropped.text)

    return convert


def _text(mapping: Mapping) -> Callable[[Row], Document]:
    get, name = _needed(mapping, "text"), _name(mapping, "text")

    def make(row: Row) -> Document:
        text = as_text(get(row.values), name)
        if not text.strip():
            raise Dropped("empty", f'"{name}" is empty.')
        return Document(text, row.line)

    return make


def _pair(mapping: Mapping, ask: str, answer: str, extra: str = "") -> Callable[[Row], Any]:
    ask_get, ask_name = _needed(mapping, ask), _name(mapping, ask)
    answer_get, answer_name = _needed(mapping, answer), _name(mapping, answer)
    extra_get, system_get = getter(mapping, extra), getter(mapping, "system")
    history_get = getter(mapping, "history")
    lead = extra == "context"

    def make(row: Row) -> Conversation:
        values = row.values
        question_value, answer_value = ask_get(values), answer_get(values)
        if type(question_value) is list and question_value and _is_message(question_value[0]):
            turns = [*question_value, *_as_messages(answer_value, answer_name)]
            return _conversation(turns, mapping, row, _optional(system_get, values, "system"))
        question = as_text(question_value, ask_name)
        text = as_text(answer_value, answer_name)
        if not text.strip():
            raise Dropped("empty_answer", f'"{answer_name}" is empty.')
        more = _optional(extra_get, values, extra) if extra_get else ""
        if more and more.strip():
            first, second = (more, question) if lead else (question, more)
            question = f"{first}\n\n{second}" if first.strip() else second
        if not question.strip():
            raise Dropped("empty_prompt", f'"{ask_name}" is empty.')
        messages = _system(_optional(system_get, values, "system")) if system_get else []
        if history_get:
            messages += _history(_quiet(history_get, values))
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": text})
        return Conversation(messages, None, row.line)

    return make


def _labelled(mapping: Mapping) -> Callable[[Row], Conversation]:
    text_get, text_name = _needed(mapping, "text"), _name(mapping, "text")
    label_get, label_name = _needed(mapping, "label"), _name(mapping, "label")
    system_get = getter(mapping, "system")
    ask = "" if "text" in mapping.templates else f"What is the {label_name.lower()}?\n"

    def make(row: Row) -> Conversation:
        text = as_text(text_get(row.values), text_name)
        label = as_text(label_get(row.values), label_name)
        if not text.strip():
            raise Dropped("empty_prompt", f'"{text_name}" is empty.')
        if not label.strip():
            raise Dropped("empty_answer", f'"{label_name}" is empty.')
        messages = _system(_optional(system_get, row.values, "system"))
        messages.append({"role": "user", "content": ask + text})
        messages.append({"role": "assistant", "content": label})
        return Conversation(messages, None, row.line)

    return make


def _preference(mapping: Mapping) -> Callable[[Row], Conversation]:
    chosen_get, chosen_name = _needed(mapping, "chosen"), _name(mapping, "chosen")
    prompt_get, system_get = getter(mapping, "prompt"), getter(mapping, "system")

    def make(row: Row) -> Conversation:
        chosen = chosen_get(row.values)
        asked = _quiet(prompt_get, row.values) if prompt_get else None
        system = _optional(system_get, row.values, "system")
        turns = _as_messages(chosen, chosen_name)
        if asked and not any(_role(turn, mapping) == "user" for turn in turns):
            is_chat = type(asked) is list
            turns = [
                *(asked if is_chat else [{"role": "user", "content": as_text(asked, "prompt")}]),
                *turns,
            ]
        return _conversation(turns, mapping, row, system)

    return make


def _messages(mapping: Mapping) -> Callable[[Row], Conversation]:
    get, name = _needed(mapping, "messages"), _name(mapping, "messages")
    tools_get, system_get = getter(mapping, "tools"), getter(mapping, "system")

    def make(row: Row) -> Conversation:
        turns = get(row.values)
        if isinstance(turns, str):
            turns = parsed(turns, name)
        if not isinstance(turns, list):
            raise Dropped("type", f'"{name}" is no list of messages.')
        tools = tools_of(_quiet(tools_get, row.values)) if tools_get else None
        system = system_of(_quiet(system_get, row.values)) if system_get else ""
        return _conversation(turns, mapping, row, system, tools)

    return make


def _conversation(
    turns: list[Any], mapping: Mapping, row: Row, system: str, tools: list[Any] | None = None
) -> Conversation:
    messages: list[Message] = []
    muted: list[int] = []
    last_answer, num_answers = -1, 0
    for index, turn in enumerate(turns):
        if type(turn) is not dict:
            raise Dropped("type", f"Message {index + 1} is no object with a role.")
        role = _role(turn, mapping)
        if not role:
            got = str(turn.get("role", turn.get("from", "")))[:40]
            raise Dropped("roles", f'Message {index + 1} has the role "{got}", which is not known.')
        message = message_of(turn, role, index)
        if message["role"] == "assistant":
            last_answer = len(messages)
            if is_muted(turn):
                muted.append(num_answers)
            num_answers += 1
        messages.append(message)
    if last_answer < 0:
        raise Dropped("no_answer", "No message is from the assistant: there is nothing to learn.")
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
        last_answer += 1
    cut = last_answer + 1 < len(messages)
    return Conversation(messages[: last_answer + 1], tools, row.line, cut, tuple(muted))


def _history(value: Any) -> list[Message]:
    messages: list[Message] = []
    pairs = [] if value is None or value == "" or value != value else value
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise Dropped("type", '"history" is no list of question and answer pairs.')
    for pair in pairs:
        messages.append({"role": "user", "content": as_text(pair[0], "history")})
        messages.append({"role": "assistant", "content": as_text(pair[1], "history")})
    return messages


def _as_messages(value: Any, name: str) -> list[Any]:
    if isinstance(value, list) and value and _is_message(value[0]):
        return value
    text = as_text(value, name)
    if not text.strip():
        raise Dropped("empty_answer", f'"{name}" is empty.')
    return [{"role": "assistant", "content": text}]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _role(turn: Any, mapping: Mapping) -> str:
    if type(turn) is not dict:
        return ""
    name = turn.get("role", turn.get("from"))
    if type(name) is not str:
        return ""
    known = ROLES.get(name)
    if known and not mapping.roles:
        return known
    return mapping.roles.get(name) or ROLES.get(name.strip().lower(), "")


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text.strip() else []


def _quiet(get: Getter, values: dict[str, Any]) -> Any:
    # An optional part may be missing in some rows.
    try:
        return get(values)
    except Dropped as dropped:
        if dropped.kind == "missing":
            return None
        raise


def _optional(get: Getter | None, values: dict[str, Any], name: str) -> str:
    return as_text(_quiet(get, values), name) if get else ""


def _needed(mapping: Mapping, part: str) -> Getter:
    found = getter(mapping, part)
    assert found is not None, part
    return found


def _name(mapping: Mapping, part: str) -> str:
    return mapping.columns.get(part, part)


_MAKERS: dict[str, Callable[[Mapping], Callable[[Row], Any]]] = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": lambda m: _pair(m, "instruction", "output", "input"),
    "prompt_completion": lambda m: _pair(m, "prompt", "completion"),
    "question_answer": lambda m: _pair(m, "question", "answer", "context"),
    "preference": _preference,
    "labelled": _labelled,
    "text": _text,
}

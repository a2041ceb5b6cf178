"""One message at a time: its text, its tool calls, and why it cannot be used."""

from __future__ import annotations

import json
from typing import Any

from studio.data.mapping import as_text
from studio.data.records import Dropped, Message


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

"""Read messages in any of the shapes in use: roles, contents, thoughts, tool calls.

Role names, tool calls, thoughts, marks that mute an answer, and the keys that mean nothing here.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import orjson

from studio.data.column_mapping import Mapping, as_text
from studio.data.conversation_records import Conversation, Dropped, Message, Row
from studio.data.template.lost_parts import json_or_same, split_thought

_TEXTS = {"text", "input_text", "output_text", "refusal"}
_THOUGHTS = {"reasoning", "thinking", "thought", "think", "reasoning_content"}
_CALLS = {"tool_call", "tool_calls", "function_call", "tool_use", "function"}
_MEDIA = {
    "image": "an image", "image_url": "an image", "input_image": "an image", "img": "an image",
    "audio": "audio", "input_audio": "audio", "audio_url": "audio",
    "video": "a video", "video_url": "a video", "file": "a file", "document": "a file",
}  # fmt: skip
_VALUES = ("text", "value", "content")
_PARTS = {*_TEXTS, *_THOUGHTS, *_MEDIA}
_NAMED = {*_VALUES, *_TEXTS, *_THOUGHTS, *_CALLS}
_COLUMNS = {
    "image": "an image", "images": "images", "audio": "audio", "audios": "audio",
    "video": "a video", "videos": "videos",
}  # fmt: skip
MEDIA_COLUMNS = frozenset(_COLUMNS)
_ONLY_TEXT = "only text is trained."

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
_CONTENT_NAMES = ("content", "value", "text", "parts")
_MARKS = ("weight", "loss_weight", "train")
_TRAIN = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
MAX_WEIGHT = 100
_SPEAKERS = ("user", "assistant", "system")
_KEYS_OF = {
    "assistant": ("tool_calls", "function_call", *_MARKS, *THOUGHT_NAMES),
    "tool": ("name", "tool_call_id"),
}
READ_KEYS = frozenset(
    ("role", "from", *_CONTENT_NAMES, *(key for keys in _KEYS_OF.values() for key in keys))
)
_BEGINS_LIKE_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from)"\s*:')
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_CALL_KEYS = frozenset(("name", "id", "call_id", "type", "index", "function", *_ARGUMENTS))


def conversation(
    turns: list[Any], mapping: Mapping, row: Row, system: str, tools: list[Any] | None = None, *,
    may_ask: bool = False,
) -> Conversation:  # fmt: skip
    """Return the messages of a row, up to its last answer, as a conversation.

    `mapping` names the roles; `may_ask` keeps a question at the end.

    Raises:
        Dropped: A message cannot be read, or none is an answer.
    """
    messages: list[Message] = []
    muted: list[int] = []
    weights: list[tuple[int, float]] = []
    unread: list[str] = []
    last_answer, num_answers = -1, 0
    for index, turn in enumerate(turns):
        if type(turn) is not dict:
            raise Dropped("type", f"Message {index + 1} is not an object with a role.")
        role = role_of(turn, mapping)
        if not role:
            got = str(turn.get("role", turn.get("from", "")))[:40]
            raise Dropped("roles", f'Message {index + 1} has the unknown role "{got}".')
        message = _message(turn, role, index)
        if message["role"] == "assistant":
            last_answer = len(messages)
            if len(turn) > 2 and (weight := _loss_weight(turn, index)) != 1:
                if weight:
                    weights.append((num_answers, weight))
                else:
                    muted.append(num_answers)
            num_answers += 1
        if len(turn) > 2 or len(message) > 2:
            unread += _unread(turn, message)
        messages.append(message)
    if may_ask:
        last_answer = len(messages) - 1
    if last_answer < 0:
        raise Dropped("no_answer", "No message is from the assistant: there is nothing to learn.")
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
        last_answer += 1
    elif system.strip() and system.strip() != messages[0]["content"].strip():
        unread.append("system")
    open_ended = last_answer + 1 < len(messages)
    kept = messages[: last_answer + 1]
    return Conversation(
        kept, tools, row.line, open_ended, tuple(muted), tuple(weights), tuple(unread)
    )


def has_value(value: Any) -> bool:
    """Return True if a value of a file says anything."""
    return value is not None and value != "" and value != [] and value != {}


def _unread(turn: dict[str, Any], message: Message) -> list[str]:
    """Return the keys of a message that say something that is not read."""
    known = ("role", "from", *_KEYS_OF.get(message["role"], ()))
    read = next((key for key in _CONTENT_NAMES if turn.get(key) is not None), "")
    if _trains(turn) is None:
        known = tuple(key for key in known if key != "train")
    extra = [key for key in turn if key not in known and key != read and has_value(turn[key])]
    unread = [k for k in extra if turn[k] != turn.get(read) and (turn[k] or k not in _MARKS)]
    if thought := message.get("reasoning_content"):
        found = {key: _thought_text(turn.get(key)) for key in THOUGHT_NAMES}
        unread += [key for key, text in found.items() if text and text != thought]
    for call in message.get("tool_calls", ()):
        unread += call.pop("unread", ())
    return unread


def _loss_weight(turn: dict[str, Any], index: int) -> float:
    """Return how much the loss of an answer counts, 1 unless the file says otherwise."""
    given = [(name, turn[name]) for name in _MARKS[:2] if turn.get(name) is not None]
    for name, weight in given:
        if not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
            shown = str(weight)[:20]
            raise Dropped(
                "weight",
                f"Message {index + 1} has the {name} {shown}: use a number from 0 to {MAX_WEIGHT}.",
            )
    if _trains(turn) is False or any(weight == 0 for _, weight in given):
        return 0.0
    return float(given[0][1]) if given else 1.0


def _trains(turn: dict[str, Any]) -> bool | None:
    """Return what the key `train` says, None if that is neither true nor false."""
    return _TRAIN.get(str(turn.get("train", True)).lower())


def _message(turn: dict[str, Any], role: str, index: int) -> Message:
    content = turn.get("content")
    if content is None:
        content = next((turn[k] for k in _CONTENT_NAMES if turn.get(k) is not None), None)
    if len(turn) == 2 and type(content) is str and role in _SPEAKERS and _is_plain(content):
        return {"role": role, "content": content}
    if role == "tool" and isinstance(content, list) and not are_parts(content):
        content = json_text(content)
    found = Parts(content) if type(content) is str else read_content(content, index)
    text = found.text
    calls = _calls_of(turn, found, index)
    if text and ("\x00" in text or not text.isascii()):
        as_text(text, f"message {index + 1}")
    if role == "call":
        role, calls = "assistant", [_call(call, index) for call in _calls_in(text) or ()]
        text = "" if calls else text
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        if calls:
            message["tool_calls"] = calls
        elif not text.strip():
            raise Dropped("empty_answer", f"Message {index + 1} is an empty answer.")
        if thought := found.thought or _thought(turn):
            message["reasoning_content"] = as_text(thought, "reasoning_content")
            split = split_thought(text)
            if split and split.text == thought.strip() and (split.rest.strip() or calls):
                message["content"] = split.rest  # it stands in the content, too
    elif role == "user" and not text.strip():
        raise Dropped("empty_prompt", f"Message {index + 1} is an empty question.")
    elif role == "tool":
        for key in ("name", "tool_call_id"):
            if isinstance(turn.get(key), str | int):
                message[key] = as_text(turn[key], key)
    return message


def _is_plain(text: str) -> bool:
    """Return True if a text needs no check: most texts, found at little cost."""
    return text.isascii() and "\x00" not in text and not text.isspace() and text != ""


def _thought(turn: dict[str, Any]) -> str:
    """Return the thought of a message, under whichever name it stands."""
    if len(turn) > 2:
        for key in THOUGHT_NAMES:
            if thought := _thought_text(turn.get(key)):
                return thought
    return ""


def _thought_text(value: Any) -> str:
    """Return a thought given as text or as parts; "" if it is blank."""
    if type(value) is not str:
        parts = read_content(value, 0) if value else Parts("")
        value = parts.thought or parts.text
    return value if value.strip() else ""


def _calls_of(turn: dict[str, Any], content: Parts, index: int) -> list[dict[str, Any]]:
    """Return the tool calls of a message: today's list, the older single one, parts of content.

    A message may name the same calls in two of these ways.
    """
    made: list[dict[str, Any]] = []
    for given in (turn.get("tool_calls"), turn.get("function_call"), content.calls):
        if not given:
            continue
        calls = (_calls_in(given) or [given]) if isinstance(given, str) else given
        calls = calls if isinstance(calls, list | tuple) else [calls]
        known = [_said(call) for call in made]
        found = [_call(call, index) for call in calls]
        made += [call for call in found if _said(call) not in known]
    return made


def _said(call: dict[str, Any]) -> tuple[str, Any]:
    """Return a call's name and its arguments as values, equal however they are written."""
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json_or_same(arguments) if arguments.strip() else {}
    return function["name"], arguments


def _calls_in(text: str) -> list[Any] | None:
    found = json_or_same(text)
    calls = found if isinstance(found, list) else [found]
    named = all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls)
    return calls if calls and named else None


def _call(call: Any, index: int) -> dict[str, Any]:
    """Return a call in one shape; arguments stay text or object, as the file has them."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Dropped("type", f"Message {index + 1} has a tool call without a name.")
    given = (inner[key] for key in _ARGUMENTS if inner.get(key) is not None)
    arguments: Any = next(given, {})
    made = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    if unread := [key for key in inner if key not in _CALL_KEYS and has_value(inner[key])]:
        made["unread"] = unread
    identity = call.get("id", call.get("call_id"))
    made = {"id": str(identity), **made} if isinstance(identity, str | int) else made
    return _whole(made, f"message {index + 1}")


def tools_of(value: Any) -> list[Any] | None:
    """Return the tools of a conversation, given as a list or as JSON text."""
    if isinstance(value, str):
        value = parsed(value, "tools") if value.strip() else None
    if not value:
        return None
    if isinstance(value, list):
        value = [parsed(tool, "tools") if isinstance(tool, str) else tool for tool in value]
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Dropped("type", '"tools" is not a list of objects.')
    return _whole(value, "tools")


def _whole(value: Any, what: str) -> Any:
    """Return a value as it is, unless a text in it holds half a character."""
    try:
        orjson.dumps(value)  # refuses half characters, many times as fast as the other writer
    except TypeError:
        as_text(json_text(value), what)
    return value


def system_text(value: Any) -> str:
    """Return a system prompt, given as text or as an object with its parts."""
    if isinstance(value, dict):
        value = read_content(value.get("content", value.get("parts", value.get("text"))), 0).text
    return as_text(value, "system")


def system_message(text: str) -> list[Message]:
    """Return a system prompt as messages, none if it is empty."""
    return [{"role": "system", "content": text}] if text.strip() else []


def history_of(value: Any) -> list[Message]:
    """Return the messages of earlier question and answer pairs."""
    messages: list[Message] = []
    pairs = [] if value is None or value == "" or value != value else value
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise Dropped("type", '"history" is not a list of question and answer pairs.')
    for question, answer in pairs:
        messages.append({"role": "user", "content": as_text(question, "history")})
        messages.append({"role": "assistant", "content": as_text(answer, "history")})
    return messages


def as_messages(value: Any, name: str) -> list[Any]:
    """Return the messages of an answer: a list, one message, JSON of either, or plain text."""
    value = messages_in(value, name) or value
    if isinstance(value, list) and value and is_message(value[0]):
        return value
    if is_message(value):
        return [value]
    text = as_text(value, name)
    if not text.strip():
        raise Dropped("empty_answer", f'"{name}" is empty.')
    return [{"role": "assistant", "content": text}]


def thread(tree: Any, last: Any) -> list[Any]:
    """Return the messages that lead to the message `last` in a tree of them, by their ids."""
    turns: list[Any] = []
    while isinstance(tree, dict) and isinstance(last, str) and len(turns) <= len(tree):
        turn = tree.get(last)
        if not isinstance(turn, dict) or not is_message(turn):
            break
        turns.insert(0, {key: turn[key] for key in READ_KEYS if key in turn})
        last = turn.get("parentId")
    return turns


def messages_in(value: Any, name: str) -> list[Any] | None:
    """Return the messages that a text holds as JSON; None of other texts, JSON answers among them.

    Raises:
        Dropped: It begins like messages and is not JSON.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return None
    found = parsed(value, name) if _BEGINS_LIKE_MESSAGES.match(value) else json_or_same(value)
    return found if isinstance(found, list) and found and all(map(is_message, found)) else None


def is_message(value: Any) -> bool:
    """Return True if a value is an object with a role."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def role_of(turn: Any, mapping: Mapping) -> str:
    """Return our name of a message's role; "" if it is not known."""
    name = turn.get("role", turn.get("from")) if type(turn) is dict else None
    if type(name) is not str:
        return ""
    known = ROLES.get(name)
    if known and not mapping.roles:
        return known
    return mapping.roles.get(name) or known or ROLES.get(name.strip().lower(), "")


def parsed(text: str, name: str) -> Any:
    """Return the value of a column that holds JSON as text."""
    if (found := json_or_same(text)) is text:
        raise Dropped("json", f'"{name}" is text that is not valid JSON.')
    return found


class Parts(NamedTuple):
    """A message's text, its thought and its tool calls as they stand in the row."""

    text: str
    thought: str = ""
    calls: tuple[Any, ...] = ()


def read_content(content: Any, index: int) -> Parts:
    """Return what a message's content holds; `index` counts messages from 0.

    Raises:
        Dropped: It holds something that is not text.
    """
    if isinstance(content, dict):
        if isinstance(content.get("parts"), list):
            return read_content(content["parts"], index)
        known = str(content.get("type")) in _PARTS
        return read_content([content], index) if known else Parts(json_text(content))
    if not isinstance(content, list):
        return Parts("" if content is None else as_text(content, f"message {index + 1}"))
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind, value = _kind_and_value(part, index)
        if kind == "call":
            calls += _calls(value, index)
        else:
            text = as_text(value, f"message {index + 1}")
            (thoughts if kind == "thought" else texts).append(text)
    return Parts("".join(texts), "\n\n".join(thoughts), tuple(calls))


def are_parts(content: list[Any]) -> bool:
    """Return True if all items of a list are parts of a content, not values of a tool's result."""
    return all(
        isinstance(part, dict) and (str(part.get("type")) in _PARTS or part.keys() == {"text"})
        for part in content
    )


def refuse_media(values: dict[str, Any]) -> None:
    """Refuse a row that comes with images, audio or video in a column of its own.

    A column of plain texts (an address, a file name) says nothing about the row's texts, unless
    they hold a place for it, such as `<image>`.

    Raises:
        Dropped: Names the column.
    """
    for name, what in _COLUMNS.items():
        value = values.get(name)
        if not value:
            continue
        is_name = isinstance(value, str | int | float)
        if not is_name or f"<{name.rstrip('s')}>" in json_text(values):
            raise Dropped("type", f'The row comes with {what} (column "{name}"): {_ONLY_TEXT}')


def _kind_and_value(part: Any, index: int) -> tuple[str, Any]:
    """Return what a part is (text, thought or call) and its value."""
    where = f"Message {index + 1}"
    if not isinstance(part, dict):
        raise Dropped("type", f"{where} holds a part that is not an object with a type.")
    given = [key for key, value in part.items() if value is not None]
    kind = str(part.get("type") or next((key for key in given if key in _NAMED), ""))
    if media := _MEDIA.get(kind) or next((_MEDIA[key] for key in given if key in _MEDIA), None):
        raise Dropped("type", f"{where} holds {media}: {_ONLY_TEXT}")
    if kind in _CALLS:
        inner = next((part[k] for k in (kind, *_VALUES) if k in given), part)
        return "call", inner
    name = "thought" if kind in _THOUGHTS else "text" if kind in {*_TEXTS, *_VALUES} else ""
    names = [key for key in (kind, *_VALUES, *_THOUGHTS) if key in part]
    found = next((part[key] for key in names if key in given), "" if names else None)
    if isinstance(found, list):  # Mistral's thoughts are lists of texts again
        found = read_content(found, index).text
    if not name or not isinstance(found, str):
        raise Dropped("type", f'{where} holds a part of type "{kind[:30]}", which is not text.')
    return name, found


def _calls(value: Any, index: int) -> list[Any]:
    if isinstance(value, str):
        given, value = value, json_or_same(value)
        if value is given:
            raise Dropped("json", f"Message {index + 1} holds a tool call that is not valid JSON.")
    return value if isinstance(value, list) else [value]


def json_text(value: Any) -> str:
    """Return a value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, default=str)

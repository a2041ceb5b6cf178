"""Read a message's content: text, or a list of parts under the names that are in use.

Text, thoughts and tool calls may come as parts (`text`, `reasoning`, `thinking`, `tool_call`), with
their value under `text`, `value`, `content` or the part's own name. Images, audio and video are
named and refused: only text is trained.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from studio.data.mapping import as_text
from studio.data.records import Dropped

_TEXTS = {"text", "input_text", "output_text", "refusal"}
_THOUGHTS = {"reasoning", "thinking", "thought", "think", "reasoning_content"}
_CALLS = {"tool_call", "tool_calls", "function_call", "tool_use", "function"}
_MEDIA = {
    "image": "an image", "image_url": "an image", "input_image": "an image", "img": "an image",
    "audio": "audio", "input_audio": "audio", "audio_url": "audio",
    "video": "a video", "video_url": "a video", "file": "a file", "document": "a file",
}  # fmt: skip
_VALUES = ("text", "value", "content")
_NAMED = {*_VALUES, *_TEXTS, *_THOUGHTS, *_CALLS}
_COLUMNS = {
    "image": "an image", "images": "images", "audio": "audio", "audios": "audio",
    "video": "a video", "videos": "videos",
}  # fmt: skip
MEDIA_COLUMNS = frozenset(_COLUMNS)


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
        known = content.get("type") in _MEDIA or content.get("type") in _TEXTS | _THOUGHTS
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
    kinds = {*_TEXTS, *_THOUGHTS, *_MEDIA}
    return all(
        isinstance(part, dict) and (part.get("type") in kinds or part.keys() == {"text"})
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


_ONLY_TEXT = "only text is trained."


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
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Dropped(
                "json", f"Message {index + 1} holds a tool call that is not valid JSON."
            ) from None
    calls = value if isinstance(value, list) else [value]
    # Anthropic's form names the arguments `input`.
    return [
        {**call, "arguments": call["input"]}
        if isinstance(call, dict) and "input" in call and "arguments" not in call
        else call
        for call in calls
    ]


def json_text(value: Any) -> str:
    """Return a value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, default=str)

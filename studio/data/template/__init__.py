"""Chat templates: from messages to token ids with the trained spans; settings of a template.

Settings (`chat_template_kwargs`) are what a template reads beside the conversation. They are
written `enable_thinking=false, reasoning_effort=high`, or given as a mapping (JSON, YAML).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
_NAME = re.compile(r"[A-Za-z_]\w*")
_WORD = re.compile(r"[A-Za-z][\w.+-]*")


def read_settings(value: Any) -> dict[str, Any]:
    """Return settings by name.

    Raises:
        ValueError: They have another form, or a name is not the template's to read.
    """
    pairs: Any = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            pairs = json.loads(value)
        except ValueError:
            raise ValueError("it is not valid JSON") from None
    elif isinstance(value, str):
        parts = [part.partition("=") for part in re.split(r"[,\s]+", value) if part]
        if any(not equals for _, equals, _ in parts):
            raise ValueError("write it as enable_thinking=false, reasoning_effort=high")
        pairs = {name: _value(text) for name, _, text in parts}
    if not isinstance(pairs, Mapping):
        raise ValueError("write it as enable_thinking=false, reasoning_effort=high")
    for name, one in pairs.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(f'"{name}" cannot be set: name a variable of the chat template')
        if not isinstance(one, str | int | float | bool) or (
            isinstance(one, str) and not _WORD.fullmatch(one)
        ):
            raise ValueError(f"{name} must be a word, a number, true or false")
    return dict(pairs)


def written_settings(value: Any) -> str:
    """Return settings in their one written form.

    Raises:
        ValueError: As in `read_settings`.
    """
    found = read_settings(value)
    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in found.items()}
    return ", ".join(f"{name}={word}" for name, word in words.items())


ChatTemplateKwargs = Annotated[str, BeforeValidator(written_settings)]


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except ValueError:
        return text

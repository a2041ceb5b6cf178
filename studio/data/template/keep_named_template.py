"""Keep the named template of an adapter with a merged model, so that any program renders it.

A model without a chat template is trained with a named layout. As Jinja in the folder, it renders
the same tokens in transformers, vLLM, llama.cpp and here.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from studio.data.conversation_records import Message
from studio.data.template.named_templates import NAMED, styled
from studio.data.template.template import Template, choose

logger = logging.getLogger(__name__)

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Where is the map?"},
    {"role": "assistant", "content": "In the chest."},
    {"role": "user", "content": "¿Quién tiene la llave? 你好"},
]


def keep_template(tokenizer: Any, name: str) -> list[int]:
    """Give a tokenizer the chat template of that name; return the ids of a rendered conversation.

    Args:
        tokenizer: transformers' tokenizer.
        name: A named template, as in training; `auto` changes nothing.
    """
    template = choose(tokenizer, name)
    ids = template.encode_prompt(CONVERSATION)
    if name == "auto":
        return ids
    # Some tokenizers put a space in front of a text, but not of what follows `<s>`.
    for space in ("", " "):
        tokenizer.chat_template = jinja_of(template, space=space)
        if (written := conversation_ids(tokenizer)) == ids:
            return ids
    logger.warning("The template %s renders to other tokens when it is saved.", name)
    return written


def conversation_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the conversation as a tokenizer's own template renders it."""
    return choose(tokenizer).encode_prompt(CONVERSATION)


def jinja_of(template: Template, *, space: str = "") -> str:
    """Return a named template as Jinja without anything from outside, `<s>` in front included.

    Args:
        template: A named one.
        space: Written behind what the tokenizer puts in front.
    """
    backend = template.backend
    values = styled(template.name, template.end)
    sets = [f"{{%- set {key} = {_literal(value)} -%}}" for key, value in values.items()]
    body = re.sub(r"\{%- (end)?generation -%\}\s*", "", NAMED).strip()  # few programs know them
    is_bos = [*backend.prefix] == backend.token_ids(backend.special.get("bos_token", ""))
    pieces = [backend.core.id_to_token(token) or "" for token in backend.prefix]
    lead = f"bos_token ~ {_literal(space)}" if is_bos else _literal("".join(pieces) + space)
    start = f"{{{{- {lead} -}}}}" if backend.prefix else ""
    return "".join([*sets, start, "\n", body])


def _literal(value: Any) -> str:
    """Return a text, or texts in a row, as Jinja reads them."""
    return json.dumps(value if isinstance(value, str) else [*value], ensure_ascii=False)

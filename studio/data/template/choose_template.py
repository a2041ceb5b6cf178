"""Choose the chat template of a tokenizer: its own, or one of four named layouts.

The named ones are for models without a chat template, all made by the Jinja source `NAMED`. Answers
end with one real token of the vocabulary, so generation can stop there; `plain` writes nothing but
the texts and line ends, which costs fewest tokens. A merged model keeps the one it was trained with
as Jinja in its folder, so that transformers, vLLM and llama.cpp render the same tokens.
"""

from __future__ import annotations

import json
import logging
import re
from functools import lru_cache
from typing import Any

from studio.data.conversation_records import Message
from studio.data.model_tokenizer import Backend, backend_of
from studio.data.template import read_settings
from studio.data.template.jinja_sandbox import Guard, TemplateRefused
from studio.data.template.probe_template import Ends
from studio.data.template.render_conversation import Layout
from studio.data.template.rendered_documents import ControlTokens
from studio.data.template.template import Template, Thoughts
from studio.errors import DataError, ModelError, nearest
from studio.spec import DataSource

logger = logging.getLogger(__name__)

NAMED = """
{%- if default_system and (not messages or messages[0].role != 'system') -%}
{{ system[0] ~ default_system ~ system[1] }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ assistant }}{%- generation -%}{{ lead ~ message.content ~ end }}{%- endgeneration -%}
{{ after if add_generation_prompt or not loop.last }}
{%- else -%}
{%- set around = {'system': system, 'user': user, 'tool': tool}[message.role] -%}
{{ around[0] ~ message.content ~ around[1] }}
{%- endif -%}
{%- endfor -%}
{{ assistant if add_generation_prompt }}
"""
_PLAIN = {
    "system": ("", "\n\n"),
    "user": ("", "\n"),
    "tool": ("", "\n"),
    "assistant": "",
    "lead": "",  # written by the model before the answer
    "after": "\n",  # between the end of a turn and the next one
    "default_system": "",
}
STYLES: dict[str, dict[str, Any]] = {
    "chatml": _PLAIN
    | {
        "system": ("<|im_start|>system\n", "{end}\n"),
        "user": ("<|im_start|>user\n", "{end}\n"),
        "tool": ("<|im_start|>tool\n", "{end}\n"),
        "assistant": "<|im_start|>assistant\n",
    },
    "alpaca": _PLAIN
    | {
        "user": ("### Instruction:\n", "\n\n"),
        "tool": ("### Result:\n", "\n\n"),
        "assistant": "### Response:\n",
        "after": "\n\n",
        "default_system": "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
    },
    "vicuna": _PLAIN
    | {
        "system": ("", " "),
        "user": ("USER: ", " "),
        "tool": ("TOOL: ", " "),
        "assistant": "ASSISTANT:",
        "lead": " ",
        "after": "",
        "default_system": "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    },
    "plain": _PLAIN,
}
CONVERSATION: list[Message] = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Where is the map?"},
    {"role": "assistant", "content": "In the chest."},
    {"role": "user", "content": "¿Quién tiene la llave? 你好"},
]


def choose_for(tokenizer: Any, source: DataSource) -> Template:
    """Return the template that a dataset is trained with on a tokenizer."""
    return choose(
        tokenizer,
        source.chat_template,
        chat_template_kwargs=source.chat_template_kwargs,
        thoughts=source.thoughts,
        accept_lost=source.accept_lost,
        control_tokens=source.control_tokens,
    )


def choose(
    tokenizer: Any,
    name: str = "auto",
    *,
    chat_template_kwargs: str = "",
    thoughts: Thoughts = "template",
    accept_lost: bool = False,
    control_tokens: ControlTokens = "auto",
) -> Template:
    """Return the template of a tokenizer: its own if it has one, else a named one.

    Without one, `auto` takes ChatML where the vocabulary has its markers as tokens, else `plain`,
    which costs no marker tokens. A tokenizer with several templates uses `tool_use` for rows with
    tools, as transformers does.

    Args:
        tokenizer: transformers' tokenizer, or a `Backend`.
        name: `auto` or a named template.
        chat_template_kwargs: Settings of the tokenizer's own template.
        thoughts: What is done where the template cuts thoughts.
        accept_lost: Train rows of which the template cuts other trained parts.
        control_tokens: How control tokens in documents are read.

    Raises:
        ModelError: The tokenizer has no fast form, or its own template is broken.
        DataError: The template does not read a setting.
    """
    backend = backend_of(tokenizer)
    own_template = (backend.chat_template or "") if name == "auto" else ""
    settings = read_settings(chat_template_kwargs)
    sources = own_template + (backend.tool_template or "")
    for setting in settings:
        if not own_template or not re.search(rf"\b{setting}\b", sources):
            raise DataError(
                f'The chat template does not read "{setting}": remove it from '
                "chat_template_kwargs, or choose a model whose own template does."
            )
    how: dict[str, Any] = {
        "thoughts": thoughts, "accept_lost": accept_lost, "control_tokens": control_tokens,
    }  # fmt: skip
    if own_template:
        own = _own_layout(backend, own_template, settings)
        tool_use = backend.tool_template
        other = _own_layout(backend, tool_use, settings) if tool_use else None
        reason = "the model's own chat template"
        if not own.facts.system:
            reason += "; system prompts stand in front of a question"
        return Template(backend, own, reason, tool_layout=other, **how)
    has_markers = len(backend.token_ids("<|im_start|>", "<|im_end|>")) == 2
    reason = "chosen by hand"
    if name == "auto":
        name = "chatml" if has_markers else "plain"
        why = "its vocabulary has ChatML's markers" if has_markers else "it costs no marker tokens"
        reason = f"the model has no chat template; {name} was taken because {why}"
    if name not in STYLES:
        raise DataError(f'There is no chat template "{name}".{nearest(name, STYLES)}')
    end = "<|im_end|>" if name == "chatml" and has_markers else backend.eos
    end = end if backend.token_ids(end) else ""
    return Template(backend, _named(name, end, backend.controls), reason, **how)


def keep_template(tokenizer: Any, name: str) -> list[int]:
    """Give transformers' tokenizer the named template of a run; `auto` changes nothing.

    Returns the ids of a rendered conversation.
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

    `space` is written behind what the tokenizer puts in front.
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


def styled(name: str, end: str) -> dict[str, Any]:
    """Return what `NAMED` is rendered with: the texts of a style and the end of a turn."""
    style = {
        key: tuple(text.replace("{end}", end) for text in value)
        if isinstance(value, tuple)
        else value
        for key, value in STYLES[name].items()
    }
    return {**style, "end": end}


def _own_layout(backend: Backend, source: str, settings: dict[str, Any]) -> Layout:
    known = {**settings, **backend.special}
    try:
        return _learned(source, tuple(known.items()), backend.controls)
    except TemplateRefused as refused:
        raise ModelError(
            f"The model's own chat template cannot be used: {refused}. "
            f"Choose a named one: {', '.join(STYLES)}."
        ) from None


@lru_cache(maxsize=32)
def _learned(
    source: str, special: tuple[tuple[str, Any], ...], controls: tuple[str, ...]
) -> Layout:
    """Return a template's layout; what it reads is learned once in a process."""
    return Layout(source, special=dict(special), controls=controls, guard=Guard(controls))


@lru_cache(maxsize=32)
def _named(name: str, end: str, controls: tuple[str, ...]) -> Layout:
    """Return a named layout; `end` is the text of the tokenizer's end-of-turn token."""
    layout = Layout(NAMED, special=styled(name, end), controls=(), guard=Guard(controls))
    ends = (end,) if end else ()
    layout.name, layout.adds_prefix, layout.ends = name, True, Ends(texts=ends, stops=ends)
    return layout


def _literal(value: Any) -> str:
    """Return a text, or texts in a row, as Jinja reads them."""
    return json.dumps(value if isinstance(value, str) else [*value], ensure_ascii=False)

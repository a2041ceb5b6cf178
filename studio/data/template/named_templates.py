"""Four named layouts for models without a chat template, all made by the Jinja source `NAMED`.

Answers end with one real token of the vocabulary, so generation can stop there; `plain` writes
nothing but the texts and line ends, which costs fewest tokens.
"""

from __future__ import annotations

from typing import Any

from studio.data.template.jinja_sandbox import Guard
from studio.data.template.probe_template import Ends
from studio.data.template.render_conversation import Layout

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


def styled(name: str, end: str) -> dict[str, Any]:
    """Return what `NAMED` is rendered with: the texts of a style and the end of a turn."""
    style = {
        key: tuple(text.replace("{end}", end) for text in value)
        if isinstance(value, tuple)
        else value
        for key, value in STYLES[name].items()
    }
    return {**style, "end": end}


class NamedLayout(Layout):
    """One of the named layouts on one tokenizer; `end` is the text of its end-of-turn token."""

    adds_prefix = True

    def __init__(self, name: str, *, end: str, guard: Guard) -> None:
        super().__init__(NAMED, special=styled(name, end), controls=(), guard=guard)
        self.name, self.ends = name, Ends(texts=(end,) if end else (), stops=(end,) if end else ())

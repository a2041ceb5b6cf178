"""Chat templates as they come with models: rendered in Jinja's immutable sandbox, as transformers
does, with one addition: `{% generation %}` blocks leave a mark where they begin and end.

A template is somebody else's program. It can loop and raise, it cannot reach Python.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Unicode noncharacters: never in text that is meant to be exchanged; `guard` takes them out.
DATA_START, DATA_END, GENERATION_START, GENERATION_END, BREAK = map(chr, range(0xFDD0, 0xFDD5))
MARKS = DATA_START + DATA_END + GENERATION_START + GENERATION_END


class TemplateRefused(Exception):
    """The template refuses this conversation; the text is the template's own, shortened."""


class Generation(Extension):
    """The `{% generation %}` block: its output stands between two invisible marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block; Jinja calls this at its first word."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_marked"), [], [], body)
        return block.set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{GENERATION_START}{caller()}{GENERATION_END}"


def compiled(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        TemplateRefused: It is no valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateRefused(f"the chat template is not valid: {_short(error)}") from None


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """Render a template.

    Raises:
        TemplateRefused: It raised, or used what is not there.
    """
    try:
        return template.render(**values)
    except TemplateRefused:
        raise
    except Exception as error:  # whatever a foreign program stumbles over is its refusal
        raise TemplateRefused(_short(error)) from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise TemplateRefused(str(message)[:200])


def _short(error: BaseException) -> str:
    return (str(error).split("\n")[0] or type(error).__name__)[:200]

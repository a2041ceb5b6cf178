"""Render chat templates in Jinja's immutable sandbox; break control tokens typed inside data.

As in transformers, with one addition: `{% generation %}` blocks leave a mark where they begin and
end. A template is a foreign program: it can loop and raise, it cannot reach Python. `<|im_end|>` in
a row becomes `<` BREAK `|im_end|>`, so that no tokenizer sees a special token in it; the mark is
taken out of the tokens again. The template's own special tokens stay whole.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

logger = logging.getLogger(__name__)

# Unicode noncharacters: never in text that is meant for exchange; `Guard` removes them.
DATA_START, DATA_END, GENERATION_START, GENERATION_END, BREAK = map(chr, range(0xFDD0, 0xFDD5))
MARKS = DATA_START + DATA_END + GENERATION_START + GENERATION_END


_MARKS = re.compile(f"[{MARKS}{BREAK}]")


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


class Guard:
    """Breaks the given special tokens in any text or nested value."""

    def __init__(self, controls: tuple[str, ...]) -> None:
        literals = sorted((c for c in controls if len(c) > 1), key=len, reverse=True)
        self._starts = tuple({literal[:2] for literal in literals})
        self._pattern = re.compile(
            "|".join(f"{re.escape(c[0])}(?={re.escape(c[1:])})" for c in literals)
        )

    def __call__(self, text: str) -> str:
        """Return the text with every special token broken; most texts come back as they are."""
        if not text.isascii() and _MARKS.search(text):
            text = _MARKS.sub("\ufffd", text)
        for start in self._starts:
            if start in text:
                return self._pattern.sub(lambda match: match[0] + BREAK, text)
        return text

    def deep(self, value: Any) -> Any:
        """Break special tokens anywhere in a JSON value."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list):
            return [self.deep(item) for item in value]
        if isinstance(value, dict):
            return {self.deep(key): self.deep(item) for key, item in value.items()}
        return value


def compiled(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        TemplateRefused: It is not valid Jinja.
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
    except Exception as error:  # any failure of a foreign program counts as its refusal
        logger.debug("A chat template refused a trial: %s", _short(error))
        raise TemplateRefused("a part has another form than it reads") from None


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

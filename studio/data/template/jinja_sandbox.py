"""Render chat templates in Jinja's sandbox, reuse renderings; break control tokens inside data.

As in transformers, with one addition: `{% generation %}` blocks leave a mark where they begin and
end. A template is a foreign program: it can loop and raise, it cannot reach Python. `<|im_end|>` in
a row becomes `<` BREAK `|im_end|>`, so that no tokenizer sees a special token in it; the mark is
taken out of the tokens again. The template's own special tokens stay whole.

Rendering is by far the slowest part of preparing short rows, and for plain texts it only inserts
them into the same frame. A frame is learned from a true rendering, used only for contents that the
template cannot treat specially, and compared with true renderings again and again: at the first
difference frames are given up for that template.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from studio.data.conversation_records import Message

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


CHECKS_FIRST, CHECK_EVERY, MAX_FRAMES = 3, 64, 512
_SEARCHES = {
    "startswith", "endswith", "split", "rsplit", "partition", "rpartition", "replace", "find",
    "rfind", "index", "count", "removeprefix", "removesuffix",
}  # fmt: skip
_HARMLESS_FILTERS = {
    "trim", "tojson", "length", "count", "string", "default", "d", "list", "first", "last", "join",
    "selectattr", "rejectattr", "map", "items", "dictsort", "reverse", "int", "safe", "replace",
}  # fmt: skip


@dataclass(slots=True)
class Frame:
    """The text before, between and after the contents.

    A part is the text after a content and, for an answer, how many characters its span reaches
    before and after the content. `is_whole` is True if a true rendering was searched and held every
    part: with other contents in the same places, so does the frame.
    """

    lead: str
    parts: list[tuple[str, tuple[int, int] | None]]
    uses: int = 0
    is_whole: bool = False

    def fill(self, contents: list[str]) -> tuple[str, list[tuple[int, int]]]:
        """Insert contents; return the text and the answers' spans."""
        pieces, spans, at = [self.lead], [], len(self.lead)
        for content, (after, reach) in zip(contents, self.parts, strict=True):
            end = at + len(content)
            if reach:
                spans.append((at - reach[0], end + reach[1]))
            pieces += (content, after)
            at = end + len(after)
        return "".join(pieces), spans

    def is_due(self) -> bool:
        """Count a use; return True if it has to be compared with a true rendering."""
        self.uses += 1
        return self.uses <= CHECKS_FIRST or self.uses % CHECK_EVERY == 0


class Frames:
    """The frames of one template, by sequence of roles."""

    def __init__(self, source: str) -> None:
        self.trusted, found = _sensitive_texts(source)
        # Thoughts at the start of an answer may be cut: their place is not that of the content.
        found = {*found, "</think", "[/THINK]"}
        self._sensitive = [one for one in found if not any(o in one for o in found - {one})]
        self.known: dict[tuple[str, ...], Frame] = {}

    def key(self, messages: list[Message]) -> tuple[str, ...] | None:
        """Return the roles of a conversation; None if the template might look into its contents."""
        if not self.trusted:
            return None
        for message in messages:
            content = message["content"]
            if (
                len(message) != 2
                or not content
                or type(content) is not str
                or content[0].isspace()
                or content[-1].isspace()
            ):
                return None
            for text in self._sensitive:
                if text in content:
                    return None
        return tuple([message["role"] for message in messages])

    def learn(
        self,
        key: tuple[str, ...],
        text: str,
        places: list[tuple[int, int]],
        spans: list[tuple[int, int]],
    ) -> None:
        """Learn a frame from a true rendering with the place of every content."""
        answers = [i for i, role in enumerate(key) if role == "assistant"]
        if len(places) != len(key) or len(spans) != len(answers):
            return
        if len(self.known) >= MAX_FRAMES:
            self.known.clear()
        edges = [0, *(edge for place in places for edge in place), len(text)]
        lead, *after = [text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
        reach = {
            i: (places[i][0] - start, stop - places[i][1])
            for i, (start, stop) in zip(answers, spans, strict=True)
        }
        self.known[key] = Frame(lead, [(part, reach.get(i)) for i, part in enumerate(after)])


def _sensitive_texts(source: str) -> tuple[bool, set[str]]:
    """Return whether frames may be used, and the texts that a template may search contents for."""
    tree = jinja2.Environment(extensions=[Generation, loopcontrols]).parse(source)
    found: set[str] = set()
    for compare in tree.find_all(nodes.Compare):
        if any(op.op in ("in", "notin") for op in compare.ops):
            found |= _constants([compare.expr, *(op.expr for op in compare.ops)])
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            if call.node.attr in _SEARCHES:
                found |= _constants(call.args)
            elif call.node.attr in ("strip", "lstrip", "rstrip"):
                found |= {c for text in _constants(call.args) for c in text if not c.isspace()}
    for used in tree.find_all(nodes.Filter):
        if used.name not in _HARMLESS_FILTERS:
            return False, set()
        if used.name == "replace":
            found |= _constants(used.args)
    return True, found - {""}


def _constants(parts: list[nodes.Expr]) -> set[str]:
    return {p.value for p in parts if isinstance(p, nodes.Const) and isinstance(p.value, str)}

"""Keeps text text: special tokens that are typed inside data are broken by an invisible mark.

`<|im_end|>` in a row becomes `<` BREAK `|im_end|>`, so no tokenizer sees a special token in it; the
mark is taken out of the tokens again. The template's own special tokens stay whole.
"""

from __future__ import annotations

import re
from typing import Any

from studio.data.templates.sandbox import BREAK, MARKS

_MARKS = re.compile(f"[{MARKS}{BREAK}]")


class Guard:
    """Breaks the given special tokens in any text or nested value."""

    def __init__(self, controls: tuple[str, ...]) -> None:
        literals = sorted((c for c in controls if len(c) > 1), key=len, reverse=True)
        self.starts = tuple({literal[:2] for literal in literals})
        self.pattern = re.compile("|".join(map(re.escape, literals))) if literals else None

    def __call__(self, text: str) -> str:
        """Return the text with every special token broken; most texts come back as they are."""
        if not text.isascii() and _MARKS.search(text):
            text = _MARKS.sub("\ufffd", text)
        for start in self.starts:
            if start in text:
                assert self.pattern is not None
                return self.pattern.sub(_broken, text)
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


def _broken(match: re.Match[str]) -> str:
    found = match.group()
    return found[0] + BREAK + found[1:]

"""Split a text into words, in scripts with and without spaces between words."""

import re
from functools import cache
from typing import Any

_ASCII = re.compile(r"[^\W_]+")
_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


def words_in(text: str) -> list[str]:
    """Return the runs of letters, digits and combining marks, in lower case.

    In scripts that have no spaces between words, and in Hangul, which joins particles to a word,
    each character is a word.
    """
    return list((_ASCII if text.isascii() else _pattern()).findall(text.lower()))


@cache
def _pattern() -> Any:
    import regex

    return regex.compile(rf"(?V1)[{_ALONE}]\p{{M}}*|[\p{{L}}\p{{N}}\p{{M}}--[{_ALONE}]]+")

"""Scores of one answer against the expected one: exact match, ROUGE-L, a pattern, valid JSON.

Words are runs of letters and digits without case; everything else separates them.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Literal

from studio.errors import SpecError

Score = Literal["exact_match", "rouge_l", "regex", "json"]
SCORES: tuple[Score, ...] = ("exact_match", "rouge_l", "regex", "json")
PATTERN_SECONDS = 1.0


def scorers(chosen: Sequence[str], pattern: str = "") -> dict[str, Callable[[str, str], float]]:
    """Return the chosen scores, each a function of (answer, expected) from 0 to 1.

    Raises:
        SpecError: A score is unknown, or the pattern is missing or invalid.
    """
    if unknown := [name for name in chosen if name not in SCORES]:
        raise SpecError(f'Unknown score "{unknown[0]}". Known: {", ".join(SCORES)}.')
    if "regex" in chosen:
        if not pattern:
            raise SpecError("The score regex needs a pattern (--pattern).", field="pattern")
        if why := pattern_fault(pattern):
            raise SpecError(f"{why}.", field="pattern")
    known: dict[str, Callable[[str, str], float]] = {
        "exact_match": exact_match,
        "rouge_l": rouge_l,
        "json": valid_json,
        "regex": lambda answer, _: match_pattern(pattern, answer)[0] or 0.0,
    }
    return {name: known[name] for name in chosen}


def pattern_fault(pattern: str) -> str:
    """Return why a regular expression is invalid; empty if it is valid."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        return f'"{pattern}" is not a valid regular expression: {error}'
    return ""


def match_pattern(
    pattern: str, text: str, *, seconds: float = PATTERN_SECONDS
) -> tuple[float | None, str | None]:
    """Return 1 if the pattern is in the text, else 0; or None and why it is unknown."""
    import regex

    try:
        return float(regex.search(pattern, text, timeout=seconds) is not None), None
    except TimeoutError:
        return None, f"The pattern took longer than {seconds:g} s on this answer."


def exact_match(answer: str, expected: str) -> float:
    """Return 1 if both are equal up to white space around and between words."""
    return float(answer.split() == expected.split())


def rouge_l(answer: str, expected: str) -> float:
    """Return the F1 score of the longest common subsequence of words.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
    """
    given, right = _words(answer), _words(expected)
    if not given or not right:
        return float(given == right)
    lengths = [0] * (len(right) + 1)
    for word in given:
        diagonal = 0
        for place, other in enumerate(right, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(given) + len(right))


def valid_json(answer: str, expected: str) -> float:
    """Return 1 if the answer is a JSON object or array, alone or in one code fence."""
    text = answer.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    try:
        return float(isinstance(json.loads(fenced[1] if fenced else text), dict | list))
    except ValueError:
        return 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())

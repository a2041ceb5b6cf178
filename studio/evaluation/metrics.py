"""How close an answer is to the wanted one: exact match, ROUGE-L, a pattern, valid JSON. Pure text.

Words are runs of letters and digits without case; everything else only separates them.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Literal

from studio.errors import SpecError

Score = Literal["exact_match", "rouge_l", "regex", "json"]
SCORES: tuple[Score, ...] = ("exact_match", "rouge_l", "regex", "json")


def scorers(chosen: Sequence[str], pattern: str = "") -> dict[str, Callable[[str, str], float]]:
    """Return the chosen scores, each a function of (answer, wanted) from 0 to 1.

    Raises:
        SpecError: A score is unknown, or the pattern is missing or no regular expression.
    """
    if unknown := [name for name in chosen if name not in SCORES]:
        raise SpecError(f'There is no score "{unknown[0]}". Known: {", ".join(SCORES)}.')
    found: dict[str, Callable[[str, str], float]] = {
        "exact_match": exact_match, "rouge_l": rouge_l, "json": valid_json,
    }  # fmt: skip
    if "regex" in chosen:
        if not pattern:
            raise SpecError("The score regex needs a pattern (--pattern).", field="pattern")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise SpecError(
                f'"{pattern}" is no regular expression: {error}.', field="pattern"
            ) from None
        found["regex"] = lambda answer, _: float(compiled.search(answer) is not None)
    return {name: found[name] for name in chosen}


def exact_match(answer: str, wanted: str) -> float:
    """Whether both are the same but for space around and between words."""
    return float(answer.split() == wanted.split())


def rouge_l(answer: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
    """
    ours, theirs = _words(answer), _words(wanted)
    if not ours or not theirs:
        return float(ours == theirs)
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for place, other in enumerate(theirs, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(ours) + len(theirs))


def valid_json(answer: str, wanted: str) -> float:
    """Whether the answer is a JSON object or array, alone or in one code fence."""
    text = answer.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    try:
        return float(isinstance(json.loads(fenced[1] if fenced else text), dict | list))
    except ValueError:
        return 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())

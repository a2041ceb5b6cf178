"""Scores of one answer, from 0 to 1, and gates: bounds on what was measured.

Most scores compare an answer with the expected one (the reference): exact match, ROUGE-L, contains,
equal numbers; a pattern, valid JSON and a JSON schema need no reference. Words are those of
`words_in`, so signs do not count. A gate is a bound such as `accuracy=0.8`; a job whose gate fails
has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from studio.data.conversation_records import words_in
from studio.errors import GateFailed, SpecError, nearest

SCORES = ("exact_match", "rouge_l", "contains", "number", "regex", "json", "json_schema")
COMPARING = ("exact_match", "rouge_l", "contains", "number")  # these need a reference
ALIASES = {"pattern": "regex"}
PATTERN_SECONDS, MOST_WEIGHT = 1.0, 1000.0
Scorer = Callable[[str, str], float]
CLASSIFIED = ("accuracy", "macro_f1", "ece", "mae", "rmse", "pearson")
FORGOTTEN = ("forgetting", "rise", "changed")
FIGURES = ("eval_loss", "perplexity", "token_accuracy", *CLASSIFIED, *FORGOTTEN, *SCORES)


def scorers(
    chosen: Sequence[str], pattern: str = "", schema: str = "", *, prefix: str = "",
    source: str = "scores",
) -> dict[str, Scorer]:  # fmt: skip
    """Return the chosen scores, each a function of (answer, expected) from 0 to 1.

    Args:
        chosen: Names; `pattern` is another name of `regex`.
        prefix: Begins the names of the fields of both, in errors.
        source: Field that holds the names, in errors.

    Raises:
        SpecError: A score is unknown, or its pattern or schema is missing or invalid.
    """
    known: dict[str, Scorer] = {
        "exact_match": exact_match, "rouge_l": rouge_l, "contains": contains,
        "number": equal_number, "json": valid_json,
    }  # fmt: skip
    needed = {"regex": (pattern, "pattern", pattern_fault),
              "json_schema": (schema, "json_schema", schema_fault)}  # fmt: skip
    for name in chosen:
        own = ALIASES.get(name, name)
        if own not in SCORES:
            raise SpecError(f'Unknown score "{name}".{nearest(name, SCORES)}', field=source)
        if own in needed:
            given, where, fault = needed[own]
            missing = f"The score {name} needs a {where.replace('_', ' ')}: set {prefix}{where}"
            if why := fault(given) if given.strip() else missing:
                raise SpecError(f"{why}.", field=f"{prefix}{where}")
        if own == "regex":
            known[own] = lambda answer, _: match_pattern(pattern, answer)[0] or 0.0
        elif own == "json_schema":
            known[own] = partial(fits_schema, validator(schema))
    return {name: known[ALIASES.get(name, name)] for name in chosen}


def weights_in(text: str) -> dict[str, float]:
    """Return the scores and weights of `train.rewards`, such as `number:1, pattern:0.2`.

    Raises:
        SpecError: It names no score, one twice, or a weight is not a number other than 0.
    """
    field, found = "train.rewards", dict[str, float]()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = (piece.strip() for piece in part.partition(":"))
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if not value or abs(value) > MOST_WEIGHT or value != value:
            raise SpecError(
                f'{field} gives {name} the weight "{weight}": use a number other than 0.',
                field=field,
            )
        if ALIASES.get(name, name) in {ALIASES.get(one, one) for one in found}:
            raise SpecError(f"{field} names {name} twice: give it one weight.", field=field)
        found[name] = value
    if not found:
        raise SpecError(
            f"{field} names no score: set it to scores with weights, such as number:1, "
            f"pattern:0.2. Known: {', '.join(SCORES).replace('regex', 'pattern')}.", field=field,
        )  # fmt: skip
    return found


def needs_reference(scores: Iterable[str]) -> bool:
    """Return True if one of the scores compares the answer with an expected one."""
    return any(name in COMPARING for name in scores)


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
    given, right = words_in(answer), words_in(expected)
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
    try:
        return float(isinstance(_read_json(answer), dict | list))
    except (ValueError, RecursionError):
        return 0.0


def contains(answer: str, expected: str) -> float:
    """Return 1 if the expected words stand in the answer in one piece, in either case."""
    given, wanted = words_in(answer), words_in(expected)
    starts = range(len(given) - len(wanted) + 1)
    return float(bool(wanted) and any(given[i : i + len(wanted)] == wanted for i in starts))


def equal_number(answer: str, expected: str) -> float:
    """Return 1 if the last number of the answer equals the last one of the expected answer."""
    wanted = last_number(expected)
    return float(wanted is not None and last_number(answer) == wanted)


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text; commas separate thousands, a point the decimals."""
    found = _NUMBER.findall(text.replace("\u2212", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


_NUMBER = re.compile(
    r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<![\w.])(?=\.\d))(?:\.\d+)?"
    r"(?:[eE][-+]?\d{1,3}(?!\d))?"
)


def schema_fault(schema: str) -> str:
    """Return why a text is not a JSON schema; empty if it is one."""
    from jsonschema.exceptions import SchemaError

    try:
        validator(schema)
    except ValueError:
        return "The JSON schema is not valid JSON"
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        return "The JSON schema is invalid" + (f' at "{where}"' if where else "")
    return ""


def validator(schema: str) -> Any:
    """Return the validator of a JSON schema: no network, and its patterns have a time limit."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    def pattern(_: Any, wanted: str, value: Any, __: Any) -> Any:
        if isinstance(value, str) and not match_pattern(wanted, value)[0]:
            yield ValidationError("pattern")

    read = json.loads(schema)
    kind = validator_for(read, default=Draft202012Validator)
    kind.check_schema(read)
    registry: Registry[Any] = Registry()
    return extend(kind, {"pattern": pattern})(read, registry=registry)


def fits_schema(checker: Any, answer: str, expected: str) -> float:
    """Return 1 if the answer is JSON that the schema allows, alone or in one code fence."""
    from referencing.exceptions import Unresolvable

    try:
        return float(checker.is_valid(_read_json(answer)))
    except (ValueError, RecursionError, Unresolvable):
        return 0.0


def _read_json(answer: str) -> Any:
    text = answer.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    return json.loads(fenced[1] if fenced else text)


# -- gates -----------------------------------------------------------------------------------------


def bounds(texts: Sequence[str]) -> dict[str, float]:
    """Return the bounds of a gate by figure; those of standard tasks are `task:metric`.

    Raises:
        SpecError: A text is not FIGURE=NUMBER, or the figure is unknown.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        name = ALIASES.get(name, name)
        if name not in FIGURES and ":" not in name:
            raise SpecError(f'Unknown figure "{name}" in a gate.{nearest(name, FIGURES)}')
        try:
            found[name] = float(value)
        except ValueError:
            raise SpecError(f'"{text}" is not a bound: write it as {name}=0.8.') from None
    return found


def check_gate(
    report: Mapping[str, Any], least: Sequence[str], most: Sequence[str], what: str
) -> None:
    """Check a report against bounds.

    Raises:
        GateFailed: Names every figure that misses its bound.
    """
    figures = {**report, **report.get("scores", {})}
    figures = {ALIASES.get(name, name): value for name, value in figures.items()}
    bad = []
    for limits, word, sign in ((bounds(least), "below", -1), (bounds(most), "above", 1)):
        for name, limit in limits.items():
            value = figures.get(name)
            if value is None:
                task = name[: name.find(":") + 1]
                known = [other for other, number in figures.items()
                         if isinstance(number, int | float) and other.startswith(task)]  # fmt: skip
                bad.append(f"{name} was not measured (measured: {', '.join(known) or 'nothing'})")
            elif not sign * (value - limit) <= 0:  # NaN fails
                bad.append(f"{name} is {value:.4g}, {word} {limit:g}")
    if bad:
        raise GateFailed(f"{what} failed its gate: {'; '.join(bad)}.")

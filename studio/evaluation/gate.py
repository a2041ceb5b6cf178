"""Gates: bounds on what was measured, such as `accuracy=0.8`; a job whose gate fails has failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.errors import GateFailed, SpecError, nearest
from studio.evaluation.answer_scores import ALIASES, SCORES

CLASSIFIED = ("accuracy", "macro_f1", "ece", "mae", "rmse", "pearson")
FORGOTTEN = ("forgetting", "rise", "changed")
FIGURES = ("eval_loss", "perplexity", "token_accuracy", *CLASSIFIED, *FORGOTTEN, *SCORES)


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


def check(report: Mapping[str, Any], least: Sequence[str], most: Sequence[str], what: str) -> None:
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

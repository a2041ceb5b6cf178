"""One self-contained HTML page: tables, curves as SVG, samples, rows as tokens.

One template with autoescape: whatever users and models wrote is shown as text. The page has no
script and loads nothing, which its own policy also forbids; it reads well printed and in the dark.
Its own words are in the language of the window that asks (`use_language`); those of users stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio.names import tilde

COLOURS = (
    "#3350cf", "#d06a12", "#0d8a78", "#b5318b", "#768a0b", "#2389bd", "#c4392f", "#7a4fc0",
    "#8a5a34", "#5f6b76",
)  # fmt: skip
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BASE = 720, 230, 52, 708, 10, 206
MADE = "Made with Adapter Studio. This file is whole in itself: it has no script and loads nothing."
Cell = tuple[str, int | None]  # text, hue
Curves = Mapping[str, Sequence[tuple[float, float]]]  # by name: (step, value)


_translate: Callable[[str], str] = str
_language: Callable[[], str] = "en".lower


def use_language(translate: Callable[[str], str], language: Callable[[], str]) -> None:
    """Write pages from now on through this translation, in the language that is named then."""
    global _translate, _language
    _translate, _language = translate, language


def say(text: str) -> str:
    """Return a text of ours in the language of the page."""
    return _translate(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One part of the page; what is empty is left out."""

    heading: str
    note: str = ""
    pairs: Sequence[tuple[str, str]] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    code: str = ""
    charts: Sequence[dict[str, Any]] = ()
    answers: Sequence[dict[str, Any]] = ()  # prompt, and answers as (name, text, mark)
    tokens: Sequence[dict[str, Any]] = ()  # title, note, and tokens as (text, state)


def text_of(value: Any) -> str:
    """Return a value as a report shows it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    if isinstance(value, float):
        value = round(value) if 9999.5 <= abs(value) < math.inf else f"{value:.4g}"
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else str(value)


def table(heading: str, head: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> Section:
    """Return a section with a table of plain values."""
    cells = [[(text_of(cell), None) for cell in row] for row in rows]
    return Section(heading=heading, head=head, rows=cells, **more)


def chart(title: str, curves: Curves) -> dict[str, Any] | None:
    """Return a line chart as the template draws it; None without a finite point."""
    lines = {name: [p for p in line if math.isfinite(p[1])] for name, line in curves.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    first, last = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    air = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.1 or 1.0
    low, high = min(ys) - air, max(ys) + air
    low = max(0.0, low) if min(ys) >= 0 else low

    def across(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - first) / (last - first), 1)

    def up(y: float) -> float:
        return round(BASE - (BASE - TOP) * (y - low) / (high - low), 1)

    drawn = [
        {"name": name, "colour": COLOURS[place % len(COLOURS)], "last": text_of(line[-1][1]),
         "points": " ".join(f"{across(x)},{up(y)}" for x, y in line),
         "dots": [(across(x), up(y)) for x, y in line] if len(line) <= 12 else []}
        for place, (name, line) in enumerate(lines.items()) if line
    ]  # fmt: skip
    return {
        "title": title, "lines": drawn, "left": LEFT, "right": RIGHT, "base": BASE,
        "width": WIDTH, "height": HEIGHT,
        "x": [(across(mark), text_of(round(mark))) for mark in ticks(first, last, 7, whole=True)],
        "y": [(up(mark), f"{mark:,.10g}".replace(",", "\u202f")) for mark in ticks(low, high, 5)],
    }  # fmt: skip


def ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """Return about `wanted` round values between two others."""
    power = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / wanted * 0.99)
    step = max(1.0, float(round(step))) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def page(title: str, summary: str, sections: Sequence[Section | None]) -> str:
    """Return the whole page as HTML, with `~` for the user's own folder."""
    shown = [one for one in sections if one is not None]
    made = {"title": title, "summary": summary, "sections": shown, "made": say(MADE)}
    return tilde(str(_template().render(language=_language(), **made)))


@cache
def _template() -> Any:
    from jinja2 import Environment

    text = Path(__file__).with_name("report_page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)

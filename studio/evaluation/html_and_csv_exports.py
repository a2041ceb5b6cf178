"""Exports: one self-contained HTML page of any parts; votes and suites as page, csv or jsonl.

One template with autoescape: whatever users and models wrote is shown as text. The page has no
script and loads nothing, which its own policy also forbids; it reads well printed and in the dark.
Its own words are in the language of the window that asks (`use_language`); those of users stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from studio.adapter_stack import StackItem, lane_note, read_lane
from studio.errors import AdapterError, ChatError
from studio.names import tilde

COLOURS = (
    "#3350cf", "#d06a12", "#0d8a78", "#b5318b", "#768a0b", "#2389bd", "#c4392f", "#7a4fc0",
    "#8a5a34", "#5f6b76",
)  # fmt: skip
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BASE = 720, 230, 52, 708, 10, 206
MADE = "Made with Adapter Studio. This file is whole in itself: it has no script and loads nothing."
Cell = tuple[str, int | None]  # text, hue
Curves = Mapping[str, Sequence[tuple[float, float]]]  # by name: (step, value)
Form = Literal["csv", "jsonl", "html"]
MEDIA: dict[Form, str] = {"csv": "text/csv", "jsonl": "application/x-ndjson", "html": "text/html"}
Row = dict[str, Any]
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


# -- votes and suites ------------------------------------------------------------------------------


def form_of(name: str) -> Form:
    """Return the format that a file's suffix names.

    Raises:
        ChatError: The suffix is none of them.
    """
    for form in MEDIA:
        if name.endswith(f".{form}"):
            return form
    raise ChatError(f'"{name}" must end in .csv, .jsonl or .html.')


def votes_as(form: Form, votes: Sequence[Row], board: Row) -> str:
    """Return the votes as text, in HTML with the leaderboard."""
    if form == "jsonl":
        return _jsonl(votes)
    if form == "csv":
        from studio.data.readers.tables import csv_text

        header = ("id", "created", "prompt", "verdict", "blind", "lane", "won", "answer")
        return csv_text([header, *(
            (vote["id"], vote["created"], vote["prompt"], verdict(vote), bool(vote["blind"]), lane,
             vote["winner"] == place, (vote["answers"] + [""] * 99)[place])
            for vote in votes for place, lane in enumerate(vote["lanes"])
        )])  # fmt: skip
    standings = [
        (place, title(one["lane"]), f"{one['score']:.0f}", f"{one['low']:.0f} – {one['high']:.0f}",
         one["wins"], one["losses"], one["ties"], one["bad"])
        for place, one in enumerate(board["standings"], 1)
    ]  # fmt: skip
    detail = [(vote["prompt"], said(vote), " · ".join(map(title, vote["lanes"]))) for vote in votes]
    head = ("", say("Lane"), say("Score"), say("95 % interval"), say("Won"), say("Lost"),
            say("Tied"), say("Bad"))  # fmt: skip
    summary = say(f"{board['votes']} votes. Bradley-Terry scores around 1000.")
    return page(say("Leaderboard"), summary, [
        table(say("Ranking"), head, standings),
        _wins(board["lanes"], board["wins"]),
        table(say("Votes"), (say("Prompt"), say("Verdict"), say("Lanes")), detail),
    ])  # fmt: skip


def suite_as(
    form: Form, name: str, summary: Row, rows: Sequence[Row],
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> str:  # fmt: skip
    """Return a suite's answers as text, in HTML with tables and the loss curves of the runs."""
    lanes = summary["lanes"]
    if form == "jsonl":
        return _jsonl(rows)
    if form == "csv":
        from studio.data.readers.tables import csv_text

        measured = [key for key in rows[0]["answers"][0] if key != "text"] if rows else []
        header = ("case", "prompt", "expected", "pattern", "lane", "text", *measured)
        return csv_text([header, *(
            (row["case"] + 1, row["prompt"], row["expected"], row["pattern"], lane, answer["text"],
             *(answer[key] for key in measured))
            for row in rows for lane, answer in zip(lanes, row["answers"], strict=True)
        )])  # fmt: skip
    keys = [key for key in (summary["means"] or [{}])[0] if key != "lane"]
    means = [(title(one["lane"]), *(one[key] for key in keys)) for one in summary["means"]]
    detail = [
        (row["case"] + 1, row["prompt"], row["expected"] or row["pattern"] or "",
         *(answer["error"] or answer["text"] for answer in row["answers"]))
        for row in rows
    ]  # fmt: skip
    names, drawn = [title(lane) for lane in lanes], chart(say("Training loss"), curves)
    return page(name, say(f"{summary['cases']} prompts, {len(lanes)} lanes."), [
        table(say("Means"), (say("Lane"), *(key.replace("_", " ") for key in keys)), means),
        _wins(lanes, summary["wins"]),
        table(say("Answers"), ("", say("Prompt"), say("Expected"), *names), detail),
        Section(heading=say("Training loss of the lanes' runs"), charts=[drawn]) if drawn else None,
    ])  # fmt: skip


def title(lane: str) -> str:
    """Return a lane's name for display: `starter + pirate × 0.5`."""
    try:
        found = read_lane(lane)
    except AdapterError:  # of another version
        return lane
    names = [found["model"], *(str(StackItem(**item)) for item in found["stack"])]
    return " + ".join(name.rstrip("/").rpartition("/")[2] for name in names) + lane_note(lane)


def verdict(vote: Row) -> str:
    """Return the lane that won a vote, or how it ended."""
    if vote["winner"] is None:
        return "all bad" if vote["bad"] else "tie"
    return title(vote["lanes"][vote["winner"]])


def said(vote: Row) -> str:
    """Return the verdict on a vote in the language of the page."""
    if vote["winner"] is None:
        return say("all bad") if vote["bad"] else say("tie")
    return verdict(vote)


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _wins(lanes: Sequence[str], wins: Sequence[Sequence[float]]) -> Section:
    names = [title(lane) for lane in lanes]
    rows: list[list[Cell]] = []
    for i, row in enumerate(wins):
        cells: list[Cell] = [(names[i], None)]
        for j, won in enumerate(row):
            games = won + wins[j][i]
            played = i != j and games
            cells.append((f"{won:g}", round(120 * won / games)) if played else ("–", None))
        rows.append(cells)
    heading = say("Wins of the row against the column")
    return Section(heading=heading, head=["", *names], rows=rows)

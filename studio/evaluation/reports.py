"""Export votes and suites: csv without formulas, jsonl, and one self-contained HTML page.

The page is one template with autoescape: whatever users and models wrote is shown as text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

from studio.errors import ChatError

Form = Literal["csv", "jsonl", "html"]
MEDIA: dict[Form, str] = {"csv": "text/csv", "jsonl": "application/x-ndjson", "html": "text/html"}
COLOURS = ("#3350cf", "#d06a12", "#0d8a78", "#b5318b", "#768a0b", "#2389bd")
Row = dict[str, Any]
Table = dict[str, Any]  # heading, head, rows; cells are texts or (text, hue)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:14px/1.5 system-ui,sans-serif;margin:32px auto;max-width:1100px;padding:0 16px;
color-scheme:light dark}table{border-collapse:collapse;margin:8px 0}td,th{border:1px solid #8886;
padding:4px 10px;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums;
white-space:pre-wrap;overflow-wrap:anywhere;max-width:420px}h1{font-size:20px}
h2{font-size:16px;margin-top:32px}</style>
<h1>{{ title }}</h1><p>{{ summary }}</p>
{% if curves %}<h2>Training loss of the lanes' runs</h2>
<svg width="1000" height="300" fill="none" stroke-width="1.5">
{% for name, colour, points in curves %}<polyline stroke="{{ colour }}" points="{{ points }}"/>
<text x="700" y="{{ 20 + 18 * loop.index0 }}" font-size="12" fill="{{ colour }}">{{ name }}</text>
{% endfor %}</svg><p>0 to {{ last }} steps, loss 0 to {{ highest }}.</p>{% endif %}
{% for table in tables %}<h2>{{ table.heading }}</h2><table>
<tr>{% for word in table.head %}<th>{{ word }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for text, hue in row %}<td
{%- if hue is not none %} style="background:hsl({{ hue }} 60% 50% / .35)"{% endif %}>{{ text }}</td>
{%- endfor %}</tr>
{% endfor %}</table>{% endfor %}</html>
"""


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
        header = ("id", "created", "prompt", "verdict", "blind", "lane", "won", "answer")
        return _csv(header, [
            (vote["id"], vote["created"], vote["prompt"], _verdict(vote), bool(vote["blind"]), lane,
             vote["winner"] == place, (vote["answers"] + [""] * 99)[place])
            for vote in votes for place, lane in enumerate(vote["lanes"])
        ])  # fmt: skip
    standings = [
        (place, title(one["lane"]), f"{one['score']:.0f}", f"{one['low']:.0f} – {one['high']:.0f}",
         one["wins"], one["losses"], one["ties"], one["bad"])
        for place, one in enumerate(board["standings"], 1)
    ]  # fmt: skip
    detail = [
        (vote["prompt"], _verdict(vote), " · ".join(map(title, vote["lanes"]))) for vote in votes
    ]
    head = ("", "Lane", "Score", "95 % interval", "Won", "Lost", "Tied", "Bad")
    summary = f"{board['votes']} votes. Bradley-Terry scores around 1000."
    return _page("Leaderboard", summary, [
        _table("Ranking", head, standings),
        _wins(board["lanes"], board["wins"]),
        _table("Votes", ("Prompt", "Verdict", "Lanes"), detail),
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
        measured = [key for key in rows[0]["answers"][0] if key != "text"] if rows else []
        header = ("case", "prompt", "expected", "pattern", "lane", "text", *measured)
        return _csv(header, [
            (row["case"] + 1, row["prompt"], row["expected"], row["pattern"], lane, answer["text"],
             *(answer[key] for key in measured))
            for row in rows for lane, answer in zip(lanes, row["answers"], strict=True)
        ])  # fmt: skip
    keys = [key for key in (summary["means"] or [{}])[0] if key != "lane"]
    means = [(title(one["lane"]), *(one[key] for key in keys)) for one in summary["means"]]
    detail = [
        (row["case"] + 1, row["prompt"], row["expected"] or row["pattern"] or "",
         *(answer["error"] or answer["text"] for answer in row["answers"]))
        for row in rows
    ]  # fmt: skip
    names = [title(lane) for lane in lanes]
    return _page(name, f"{summary['cases']} prompts, {len(lanes)} lanes.", [
        _table("Means", ("Lane", *(key.replace("_", " ") for key in keys)), means),
        _wins(lanes, summary["wins"]),
        _table("Answers", ("", "Prompt", "Expected", *names), detail),
    ], curves)  # fmt: skip


def title(lane: str) -> str:
    """Return a lane's name for display: `starter + pirate × 0.5`."""
    model, tilde, stack = lane.partition("~")
    parts = [model.rstrip("/").rpartition("/")[2]]
    for part in stack.split("+") if tilde else ():
        name, _, weight = part.rpartition(":")
        name = unquote(name).rstrip("/").rpartition("/")[2]
        parts.append(name if weight == "1" else f"{name} × {weight}")
    return " + ".join(parts)


def _verdict(vote: Row) -> str:
    if vote["winner"] is None:
        return "all bad" if vote["bad"] else "tie"
    return title(vote["lanes"][vote["winner"]])


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    from studio.data.curate import harmless

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:  # a number's own minus is not a formula; a text may be one
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def _table(heading: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    def shown(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [[(shown(cell), None) for cell in row] for row in rows]
    return {"heading": heading, "head": head, "rows": cells}


def _wins(lanes: Sequence[str], wins: Sequence[Sequence[float]]) -> Table:
    names = [title(lane) for lane in lanes]
    rows: list[list[tuple[str, int | None]]] = []
    for i, row in enumerate(wins):
        cells: list[tuple[str, int | None]] = [(names[i], None)]
        for j, won in enumerate(row):
            games = won + wins[j][i]
            played = i != j and games
            cells.append((f"{won:g}", round(120 * won / games)) if played else ("–", None))
        rows.append(cells)
    return {"heading": "Wins of the row against the column", "head": ["", *names], "rows": rows}


def _page(
    name: str, summary: str, tables: Sequence[Table],
    curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> str:  # fmt: skip
    from jinja2 import Environment

    points = [point for curve in (curves or {}).values() for point in curve]
    last = max((x for x, _ in points), default=0) or 1.0
    highest = max((y for _, y in points), default=0) or 1.0
    drawn = [
        (label, COLOURS[place % len(COLOURS)],
         " ".join(f"{640 * x / last:.1f},{290 - 270 * y / highest:.1f}" for x, y in curve))
        for place, (label, curve) in enumerate((curves or {}).items())
    ]  # fmt: skip
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        title=name, summary=summary, tables=tables, curves=drawn, last=f"{last:.0f}",
        highest=f"{highest:.2f}",
    )  # fmt: skip

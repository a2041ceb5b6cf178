"""Votes and suites as files: csv without formulas, jsonl, and one self-contained HTML page.

Everything a person or a model wrote is escaped; pictures are drawn as SVG in the page.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal
from urllib.parse import unquote

from studio.errors import ChatError

Form = Literal["csv", "jsonl", "html"]
FORMS: tuple[Form, ...] = ("csv", "jsonl", "html")
COLOURS = ("#3350cf", "#d06a12", "#0d8a78", "#b5318b", "#768a0b", "#2389bd")
MEDIA = {"csv": "text/csv", "jsonl": "application/x-ndjson", "html": "text/html"}
STYLE = """body{font:14px/1.5 system-ui,sans-serif;margin:32px auto;max-width:1100px;padding:0 16px;
color:#1b1c1a;background:#f6f6f3}h1{font-size:20px}h2{font-size:16px;margin-top:32px}
table{border-collapse:collapse;background:#fff;margin:8px 0}td,th{border:1px solid #e3e3dd;
padding:4px 10px;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}
th{font-weight:600;color:#5f615b}.t{white-space:pre-wrap;overflow-wrap:anywhere;max-width:420px}
.q{color:#5f615b}svg{background:#fff;border:1px solid #e3e3dd}
@media(prefers-color-scheme:dark){body{background:#121311;color:#ecece6}table,svg{background:#1a1b19}
td,th,svg{border-color:#2d2f2b}th,.q{color:#a3a59c}}"""


def form_of(name: str) -> Form:
    """Return the form that a file's ending asks for.

    Raises:
        ChatError: It is another one.
    """
    for form in FORMS:
        if name.endswith(f".{form}"):
            return form
    raise ChatError(f'"{name}" must end in .csv, .jsonl or .html.')


def votes_as(form: Form, votes: Sequence[dict[str, Any]], board: dict[str, Any]) -> str:
    """Return the votes, and as HTML the leaderboard made from them."""
    if form == "jsonl":
        return _jsonl(votes)
    if form == "csv":
        header = ("id", "created", "prompt", "verdict", "blind", "lane", "won", "answer")
        return _csv(header, [
            (vote["id"], vote["created"], vote["prompt"], _verdict(vote), bool(vote["blind"]), lane,
             vote["winner"] == place, (vote["answers"] + [""] * 99)[place])
            for vote in votes for place, lane in enumerate(vote["lanes"])
        ])  # fmt: skip
    rows = [
        (i + 1, title(one["lane"]), f"{one['score']:.0f}", f"{one['low']:.0f} – {one['high']:.0f}",
         one["wins"], one["losses"], one["ties"], one["bad"])
        for i, one in enumerate(board["standings"])
    ]  # fmt: skip
    head = ("", "Lane", "Score", "95 % interval", "Won", "Lost", "Tied", "Bad")
    detail = [
        (vote["prompt"], _verdict(vote), " · ".join(map(title, vote["lanes"]))) for vote in votes
    ]
    return _page("Leaderboard", [
        _paragraph(f"{board['votes']} votes. Bradley-Terry scores around 1000."),
        _intervals(board["standings"]), _table(head, rows),
        "<h2>Wins of the row against the column</h2>", _heat(board["lanes"], board["wins"]),
        "<h2>Votes</h2>", _table(("Prompt", "Verdict", "Lanes"), detail),
    ])  # fmt: skip


def suite_as(
    form: Form, name: str, summary: dict[str, Any], rows: Sequence[dict[str, Any]],
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> str:  # fmt: skip
    """Return a suite's answers, and as HTML its tables and the loss curves of the lanes' runs."""
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
    return _page(name, [
        _paragraph(f"{summary['cases']} prompts, {len(lanes)} lanes."),
        _table(("Lane", *(key.replace("_", " ") for key in keys)), means),
        "<h2>Wins of the row against the column</h2>", _heat(lanes, summary["wins"]),
        "<h2>How the lanes were trained</h2>" + _curves(curves) if curves else "",
        "<h2>Answers</h2>", _table(("", "Prompt", "Wanted", *map(title, lanes)), detail),
    ])  # fmt: skip


def title(lane: str) -> str:
    """Return a lane's name as a person reads it: `starter + pirate × 0.5`."""
    model, tilde, stack = lane.partition("~")
    parts = [model.rstrip("/").rpartition("/")[2]]
    for part in stack.split("+") if tilde else ():
        name, _, weight = part.rpartition(":")
        name = unquote(name).rstrip("/").rpartition("/")[2]
        parts.append(name if weight == "1" else f"{name} × {weight}")
    return " + ".join(parts)


def _verdict(vote: dict[str, Any]) -> str:
    if vote["winner"] is None:
        return "all bad" if vote["bad"] else "tie"
    return title(vote["lanes"][vote["winner"]])


def _jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    from studio.data.curate import harmless

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        # A number's own minus is no formula; what a person wrote may be one.
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def _page(name: str, parts: Sequence[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{STYLE}</style><h1>{escape(name)}</h1>{''.join(parts)}</html>"
    )


def _paragraph(text: str) -> str:
    return f'<p class="q">{escape(text)}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [
        "<tr>" + "".join(f'<td class="t">{escape(_shown(cell))}</td>' for cell in row) + "</tr>"
        for row in rows
    ]
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _heat(lanes: Sequence[str], wins: Sequence[Sequence[float]]) -> str:
    names = [escape(title(lane)) for lane in lanes]
    lines = []
    for i, row in enumerate(wins):
        cells = []
        for j, won in enumerate(row):
            games = won + wins[j][i]
            if i == j or not games:
                cells.append('<td class="q">–</td>')
                continue
            hue = round(120 * won / games)
            cells.append(f'<td style="background:hsl({hue} 60% 50% / .35)">{won:g}</td>')
        lines.append(f"<tr><th>{names[i]}</th>{''.join(cells)}</tr>")
    top = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr><th></th>{top}</tr>{''.join(lines)}</table>"


def _intervals(standings: Sequence[dict[str, Any]]) -> str:
    if not standings:
        return ""
    low, high = min(s["low"] for s in standings), max(s["high"] for s in standings)
    span = (high - low) or 1.0
    marks = []
    for row, one in enumerate(standings):
        left, dot, right = (20 + 660 * (one[k] - low) / span for k in ("low", "score", "high"))
        y, colour = 24 * row + 16, COLOURS[row % len(COLOURS)]
        marks.append(
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="3"/><circle cx="{dot:.1f}" cy="{y}" r="5" fill="{colour}"/>'
            f'<text x="700" y="{y + 4}" font-size="12" fill="{colour}">{escape(title(one["lane"]))}'
            "</text>"
        )
    return f'<svg width="1000" height="{24 * len(standings) + 8}">{"".join(marks)}</svg>'


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    last, top = max(p[0] for p in points) or 1.0, max(p[1] for p in points) or 1.0
    marks = []
    for row, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[row % len(COLOURS)]
        line = " ".join(f"{40 + 640 * x / last:.1f},{290 - 270 * y / top:.1f}" for x, y in curve)
        marks.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>'
            f'<text x="700" y="{20 + 18 * row}" font-size="12" fill="{colour}">{escape(name)}'
            "</text>"
        )
    axis = (
        f'<text x="40" y="306" font-size="11" fill="#888">step 0</text>'
        f'<text x="640" y="306" font-size="11" fill="#888">{last:.0f}</text>'
        f'<text x="4" y="24" font-size="11" fill="#888">{top:.2f}</text>'
    )
    return f'<svg width="1000" height="312">{axis}{"".join(marks)}</svg>'

"""Export votes and suites: csv without formulas, jsonl, and one self-contained HTML page.

The page is one template with autoescape: whatever users and models wrote is shown as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

from studio.adapter_stack import NOTE, lane_note
from studio.errors import ChatError
from studio.evaluation.html_page import Cell, Section, chart, page, say, table

Form = Literal["csv", "jsonl", "html"]
MEDIA: dict[Form, str] = {"csv": "text/csv", "jsonl": "application/x-ndjson", "html": "text/html"}
Row = dict[str, Any]


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
    model, tilde, stack = lane.partition(NOTE)[0].partition("~")
    parts = [model.rstrip("/").rpartition("/")[2]]
    for part in stack.split("+") if tilde else ():
        name, _, weight = part.rpartition(":")
        name = unquote(name).rstrip("/").rpartition("/")[2]
        parts.append(name if weight == "1" else f"{name} × {weight}")
    return " + ".join(parts) + lane_note(lane)


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

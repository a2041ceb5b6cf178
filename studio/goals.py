"""Goals of the guided start: what the data must look like, and settings with a reason each.

A goal is what a user wants, in words that need no method. It leads to ordinary settings of a run;
nothing here is set that the form does not show.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from studio.errors import InputError, nearest
from studio.spec import DataSource
from studio.train_args import TrainArgs

TemplateFormat = Literal["xlsx", "csv", "jsonl"]
CHATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "question_answer")
MANY_ROWS = 5000
ENOUGH_STEPS = 130
"""Optimizer steps that a guided run aims at, at least, within the most epochs of its goal."""
LEAST_HELD_OUT = 8
"""Held-out rows from which a loss on them chooses between checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One goal; `rows` are the least, the usual and the most rows that help.

    `epochs` are the usual and the most; `settings` are values with their reasons, `chats` says that
    the model should have learned to chat, and `examples` fill the template file.
    """

    name: str
    title: str
    about: str
    needs: str
    rows: tuple[int, int, int]
    formats: tuple[str, ...]
    examples: tuple[Mapping[str, str], ...]
    epochs: tuple[int, int] = (3, 20)
    settings: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    chats: bool = True


def _rows(names: str, *rows: tuple[str, ...]) -> tuple[Mapping[str, str], ...]:
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


GOALS = (
    Goal(
        name="voice", title="A voice or a format",
        about="How it says things: short, polite, in JSON, as a character. Your rows vary in what "
        "is asked and share the manner.",
        needs="A question and the answer you would have liked, in each row. All answers share the "
        "voice or format; the questions vary.",
        rows=(50, 300, 1000), formats=CHATS,
        examples=_rows(
            "question answer",
            ("When do you open on Sunday?", "Good day! On Sundays we open at ten."),
            ("Can I bring my dog?", "Good day! Dogs on a leash are welcome."),
            ("Do you sell gift cards?", "Good day! Yes, at the desk and by e-mail."),
        ),
        settings={
            "method.r": (8, "A voice is a small change: few parameters hold it and forget less."),
        },
    ),
    Goal(
        name="answers", title="Answers from my examples",
        about="What it says: your rows hold facts and answers that the model does not "
        "know yet.",
        needs="A question and its full answer, in each row; several ways to ask the same help. "
        "Facts that change, or must be exact, belong into the prompt instead.",
        rows=(200, 1000, 20_000), formats=CHATS,
        examples=_rows(
            "question answer",
            ("The pump shows error 12. What now?",
             "Error 12 is air in the line. Close the valve, bleed the pump, then start it again."),
            ("How often is the filter changed?", "Every 500 hours, or when the lamp is yellow."),
            ("Which oil does the gearbox take?", "Class VG 220, 1.4 litres, changed every year."),
        ),
        settings={
            "method.r": (32, "Knowledge of a field takes more parameters than a voice."),
        },
    ),
    Goal(
        name="classify", title="Sort texts into classes",
        about="It answers each text with one of your labels.",
        needs="A text and its label, in each row. Every label has at least 20 rows, and about as "
        "many as the others.",
        rows=(100, 1000, 10_000), formats=("labelled",),
        examples=_rows(
            "text label",
            ("The parcel came two weeks late.", "complaint"),
            ("Could you send me the price list?", "request"),
            ("Thank you, everything works again!", "praise"),
        ),
        settings={
            "method.r": (8, "The change is small: from a text to one of a few words."),
            "train.load_best_model_at_end": (
                True, "Labels are memorised soon: the checkpoint that sorts held-out rows best "
                "becomes the adapter."
            ),
        },
    ),
    Goal(
        name="prefer", title="Prefer some answers over others",
        about="It learns from pairs: this answer is better than that one.",
        needs="A prompt, a better and a worse answer, in each row. The answers differ in what "
        "matters to you, not in their length alone.",
        rows=(200, 1000, 20_000), formats=("preference", "scored"), epochs=(1, 3),
        examples=_rows(
            "prompt chosen rejected",
            ("Explain rain to a child.", "Clouds are full of tiny drops. When they grow heavy, "
             "they fall.", "Precipitation results from the condensation of vapour."),
            ("Is this mushroom edible?", "I cannot say from a description: ask an expert before "
             "you eat it.", "Yes, it looks fine."),
            ("Write a short toast.", "To old friends and new beginnings!", "Toast."),
        ),
        settings={
            "train.loss": ("dpo", "DPO raises the better answer above the worse one."),
        },
    ),
    Goal(
        name="texts", title="Continue my texts",
        about="It writes on in the style of your documents, without questions.",
        needs="One document or chapter in each row, or plain .txt and .md files. 100 pages are a "
        "beginning.",
        rows=(20, 200, 100_000), formats=("text",), chats=False, epochs=(3, 6),
        examples=_rows(
            "text",
            ("The lighthouse had not been lit for years. Still, on the first night of winter, "
             "Mara saw it blink.",),
            ("The village never spoke of the mill. It spoke of the river, which was safe.",),
            ("On Mondays the harbour smelled of tar. She liked it, and never said so.",),
        ),
        settings={
            "method.r": (32, "Style of whole texts shows in many words and takes more parameters."),
            "data.max_length": (2048, "Longer passages teach how a text goes on."),
        },
    ),
)  # fmt: skip


def goal(name: str) -> Goal:
    """Return a goal by its name.

    Raises:
        InputError: There is none.
    """
    names = [one.name for one in GOALS]
    if name not in names:
        raise InputError(f'There is no goal "{name}".{nearest(name, names)}')
    return GOALS[names.index(name)]


def settings(chosen: Goal, rows: int, method: str = "lora") -> dict[str, tuple[Any, str]]:
    """Return the fields that lead to a goal, with value and reason.

    Args:
        rows: Number of rows; 0 if it is not known.
        method: What fits on the device: `lora`, or `qlora` where memory is short.
    """
    why = "Trains a small addition and leaves the model as it is: the usual choice."
    if method == "qlora":
        why = "As LoRA, over a base in 4 bit: without that it does not fit into memory here."
    found: dict[str, tuple[Any, str]] = {"method.name": (method, why)}
    found["train.num_train_epochs"] = _epochs(chosen, rows)
    found |= chosen.settings
    if "method.r" in found:
        alpha = 2 * found["method.r"][0]
        found["method.lora_alpha"] = alpha, "Twice the rank, as by default: the same scale."
    if 0 < rows * DataSource().validation_fraction < LEAST_HELD_OUT:
        found.pop("train.load_best_model_at_end", None)  # a choice by a few rows is chance
    return found


def _epochs(chosen: Goal, rows: int) -> tuple[int, str]:
    """Return the epochs that make enough optimizer steps, and the reason."""
    usual, most = chosen.epochs
    if rows > MANY_ROWS:
        return 1, f"One pass over {rows:,} rows is enough."
    batch, held = TrainArgs().rows_per_step, round(DataSource().validation_fraction * rows)
    trained = max(1, rows - held)
    epochs = min(most, max(usual, math.ceil(ENOUGH_STEPS * batch / trained))) if rows else usual
    if epochs == usual == 1:
        return 1, "Pairs are learned fast, and then overdone."
    if epochs == usual:
        return usual, "Three passes learn without memorising, as a rule."
    steps = math.ceil(trained * epochs / batch)
    if steps < ENOUGH_STEPS:
        return (
            epochs,
            f"{rows:,} rows are few: {epochs} passes, about {steps} steps, are the most that help.",
        )
    return (
        epochs,
        f"{rows:,} rows are few: {epochs} passes make about {steps} steps, enough to learn from.",
    )


def verdict(chosen: Goal, rows: int, row_format: str) -> tuple[bool, str]:
    """Return whether rows of a format lead to a goal, and a sentence on them."""
    least, usual, most = chosen.rows
    kind = row_format.replace("_", " ")
    if row_format not in chosen.formats:
        columns = " and ".join(chosen.examples[0])
        others = [one.title for one in GOALS if row_format in one.formats]
        instead = f' They fit "{others[0]}".' if others else ""
        return False, f"These rows are {kind}, and this goal needs {columns}.{instead}"
    if not rows:
        return True, f"The rows are {kind}; they are counted when the run starts."
    few = f": usual are {usual:,}, and {least:,} are the least" if rows < least else ""
    enough = f": enough, usual are {usual:,}" if least <= rows <= most else ""
    many = f": more than {most:,} rarely help" if rows > most else ""
    return True, f"{rows:,} usable rows of {kind}{few or enough or many}."


def template(chosen: Goal, kind: TemplateFormat) -> bytes:
    """Return a file to fill in: the columns of a goal with example rows."""
    rows: Sequence[Mapping[str, str]] = chosen.examples
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode("utf-8-sig")  # without the mark Excel reads another encoding
    from openpyxl import Workbook
    from openpyxl.styles import Alignment, Font

    book, stream = Workbook(), io.BytesIO()
    sheet = book.active
    sheet.title = chosen.name
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    for place, column in enumerate(sheet.columns):
        sheet.column_dimensions["ABC"[place]].width = 48
        for cell in column:
            cell.alignment = Alignment(wrap_text=True, vertical="top")
            cell.font = Font(bold=cell.row == 1)
    sheet.freeze_panes = "A2"
    book.save(stream)
    return stream.getvalue()

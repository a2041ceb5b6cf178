"""Print tables, sentences and plain values in a terminal, without escape codes of files."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

THIN = "\u202f"  # space between digits
NAME_WIDTH = 20  # to which a column may be cut


def printable(text: str, *, keep_lines: bool = False) -> str:
    """Return text for the terminal without escape codes, which would repaint it."""
    return "".join(
        c if c.isprintable() or (keep_lines and c in "\n\t") else f"\\x{ord(c):02x}" for c in text
    )


def number(value: float | None, form: str = "{:.4f}", unit: float = 1) -> str:
    """Return a number in units as terminal text, or a dash."""
    return "–" if value is None else form.format(value / unit)


def duration(seconds: float | None) -> str:
    """Return a time span in words for the terminal."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def lines(text: str, empty: str = "") -> Callable[[Any], None]:
    """Return a function that prints an answer, or each of its rows, in a format in the terminal.

    `empty` is printed instead where there are no rows.
    """

    def show(answer: Any) -> None:
        for row in answer if isinstance(answer, list) else [answer]:
            print(text.format(**row))
        if empty and not answer:
            print(empty)

    return show


def plain(answer: Any) -> None:
    """Print in the terminal the values of an answer, or of each row, that are not empty."""
    for row in answer if isinstance(answer, list) else [answer]:
        for key, value in row.items() if isinstance(row, dict) else [("", row)]:
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                value = ", ".join(value)
            if value not in (None, "", [], {}):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                print(f"{key:14} {text}" if key else text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the terminal; whole where the output goes to a file or a program."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
    for line in fitted(head, [[printable(cell) for cell in row] for row in rows], width):
        print(line)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print titles with their values in the terminal, in two columns."""
    rows = list(rows)
    width = max((len(title) for title, _ in rows), default=0)
    for title, words in rows:
        print(f"{printable(title):{width}}  {printable(words.replace(THIN, ' '))}")


def fitted(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a terminal table, none longer than `width`, no word broken.

    The longest text is cut first, then the last columns are left out, which is said. A row with
    fewer cells than the head has its last one to the end of the line.
    """
    aligned = [row if len(row) == len(head) else row[:-1] for row in (head, *rows)]
    sizes = [max(map(len, column)) for column in zip_longest(*aligned, fillvalue="")]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes) > NAME_WIDTH:
        sizes[sizes.index(max(sizes))] -= 1
    while sum(sizes) + 2 * (len(sizes) - 1) > width and len(sizes) > 2:
        sizes.pop()

    def line(cells: Sequence[str]) -> str:
        short = [_cut(cell, size).ljust(size) for cell, size in zip(cells, sizes, strict=False)]
        if len(cells) < len(head):
            short[-1] = _cut(cells[-1], width - sum(len(cell) + 2 for cell in short[:-1]))
        return "  ".join(short).rstrip()

    left = ", ".join(head[len(sizes) :])
    note = [_cut(f"Left out: {left} (widen the terminal, or use --json).", width)] if left else []
    return [line(head), *map(line, rows), *note]


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: max(1, size - 1)]}…"

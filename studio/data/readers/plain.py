"""Plain text and Markdown: every line is a row; blank lines stay, they are part of the text."""

from __future__ import annotations

from collections.abc import Iterator

from studio.data.files import Opened, utf8_chunks
from studio.data.readers.lines import LONG, lines
from studio.data.records import Problem, Row


def read_plain(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the lines of a text file as rows with one column, `text`."""
    for number, data, too_long in lines(utf8_chunks(opened)):
        if too_long:
            yield Problem(number, "too_long", LONG)
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Problem(number, "encoding", f"Byte {error.start + 1} of the line is not UTF-8.")
            continue
        if "\x00" in text:
            yield Problem(number, "control", "The line holds NUL bytes.")
        else:
            yield Row(number, {"text": text})

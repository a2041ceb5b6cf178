"""Read JSON documents: an array of objects (streamed), an object of columns, or several objects.

An array is parsed element by element from a growing buffer, so a file of any size needs the memory
of its longest element. A document that stops being JSON is refused with line and column: unlike
after a bad line, it is unknown where its next row would begin. `ijson` is not used: it tells no
positions and lets repeated keys pass.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import Opened, utf8_chunks
from studio.data.readers.json_lines import TOO_DEEP, Repeated, name_of, object_of, repeated_key
from studio.errors import DataError

MAX_ELEMENT_CHARS = 64 << 20
MAX_OBJECT_CHARS = 512 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows and problems of a JSON document.

    Raises:
        DataError: The document is broken (names line and column) or has no rows in it.
    """
    document = _Document(opened)
    first = document.peek()
    if first == "[":
        yield from _elements(document)
    elif first == "{":
        yield from _objects(document)
    else:
        raise DataError(f"{opened.path.name} is not JSON: it starts with {first!r}.")


def _elements(document: _Document) -> Iterator[Row | Problem]:
    document.at += 1
    mark = document.peek()
    while mark != "]":
        line = document.line
        yield _row(line, document.value(MAX_ELEMENT_CHARS), "The element")
        mark = document.peek()
        if mark not in (",", "]") or not mark:
            reason = 'a comma or "]" is missing' if mark else "the file stops before its closing ]"
            raise document.broken(reason)
        if mark == ",":
            document.at += 1
            document.peek()
    document.at += 1
    if document.peek():
        raise document.broken("there is more text after the closing bracket")


def _objects(document: _Document) -> Iterator[Row | Problem]:
    line, value = document.line, document.value(MAX_OBJECT_CHARS)
    if not document.peek():
        yield from _one_object(document.name, line, value)
        return
    while True:  # several objects, each over several lines
        yield _row(line, value, "The object")
        if document.peek() == ",":
            document.at += 1
        if not document.peek():
            return
        line, value = document.line, document.value(MAX_ELEMENT_CHARS)


def _one_object(name: str, line: int, value: dict[str, Any]) -> Iterator[Row | Problem]:
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    inner = [k for k, items in lists.items() if items and all(isinstance(i, dict) for i in items)]
    is_chat = any({"role", "from"} & set(lists[key][0]) for key in inner)
    if lists and len(lists) == len(value) and not inner and not isinstance(value, Repeated):
        lengths = {key: len(items) for key, items in lists.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f'"{k}" has {n}' for k, n in list(lengths.items())[:5])
            raise DataError(f"{name} holds columns of unequal length: {shown}.")
        for index, cells in enumerate(zip(*lists.values(), strict=True)):
            yield Row(index + 1, dict(zip(lists, cells, strict=True)))
    elif len(inner) == 1 and not is_chat and not isinstance(value, Repeated):
        for index, item in enumerate(lists[inner[0]]):
            yield _row(index + 1, item, f'Element {index + 1} of "{inner[0]}"')
    else:
        yield _row(line, value, "The object")


def _row(line: int, value: Any, what: str) -> Row | Problem:
    if not isinstance(value, dict):
        return Problem(line, "not_object", f"{what} is {name_of(value)}, not an object.")
    try:
        key = repeated_key(value)
    except RecursionError:
        return Problem(line, "json", TOO_DEEP)
    if key:
        return Problem(line, "duplicate_key", f'The key "{key}" stands twice in one object.')
    return Row(line, value)


def _no_constant(name: str) -> Any:
    raise DataError(f"{name} is not JSON: write null or a number")


class _Document:
    """The text that is read but not yet consumed; `at` is the place in it, on line `line`."""

    def __init__(self, opened: Opened) -> None:
        self.name, self.line, self.rows, self.text, self.at = opened.path.name, 1, 0, "", 0
        self._line_start = 0  # negative if the beginning of the line is dropped already
        self._chunks = utf8_chunks(opened)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder(
            object_pairs_hook=object_of, parse_constant=_no_constant
        ).raw_decode

    def peek(self) -> str:
        """Skip white space; return the next character, or "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self._advance(match.end() if match else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self, limit: int) -> Any:
        """Parse the value that starts here, reading on as far as it needs."""
        while True:
            try:
                value, end = self._scan(self.text, self.at)
            except RecursionError:
                raise self.broken("it is nested too deeply") from None
            except DataError as error:
                raise self.broken(error.text) from None
            except json.JSONDecodeError as error:
                if self._grow(limit):
                    continue
                is_cut = "Unterminated" in error.msg or error.pos >= len(self.text.rstrip())
                self._advance(error.pos)
                reason = "it was cut short" if is_cut else error.msg[0].lower() + error.msg[1:]
                raise self.broken(reason) from None
            except ValueError:
                raise self.broken("a number has too many digits") from None
            # A number at the very end of the buffer may go on in the next chunk.
            if end == len(self.text) and self._more():
                continue
            self._advance(end)
            self.rows += 1
            return value

    def broken(self, reason: str) -> DataError:
        """Return the error for a document that cannot be read on from here."""
        return DataError(
            f"{self.name} stops being JSON at line {self.line:,}, column "
            f"{self.at - self._line_start + 1:,}: {reason}. The {self.rows:,} rows before it are "
            "fine; repair the file, or save it as JSON lines so that a bad row costs only itself."
        )

    def _advance(self, end: int) -> None:
        if newlines := self.text.count("\n", self.at, end):
            self.line += newlines
            self._line_start = self.text.rfind("\n", self.at, end) + 1
        self.at = end

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        try:
            text = self._decoder.decode(chunk or b"", final=chunk is None)
        except UnicodeDecodeError:
            last = self.line + self.text.count("\n", self.at)
            raise DataError(f"{self.name} is not UTF-8 in or after line {last:,}.") from None
        if chunk is None:
            return False
        self._line_start -= self.at
        self.text, self.at = self.text[self.at :] + text, 0
        return True

    def _grow(self, limit: int) -> bool:
        # Twice as much text each time: an element of any size is parsed a few times only.
        have = len(self.text) - self.at
        if have > limit:
            raise self.broken(f"one element is longer than {limit >> 20} million characters")
        while len(self.text) - self.at < max(2 * have, 1):
            if not self._more():
                break
        return len(self.text) - self.at > have

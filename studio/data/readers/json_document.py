"""JSON documents: an array of objects (streamed), an object of arrays, or one object.

The array is cut element by element from a growing buffer, so a file of any size needs the memory
of its longest element. A document that stops being JSON is refused with the place: unlike a bad
line, nobody can tell where its next row would begin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from studio.data.files import Opened, utf8_chunks
from studio.data.readers.json_lines import name_of
from studio.data.records import Problem, Row
from studio.errors import DataError

MAX_ELEMENT_CHARS = 64 << 20
MAX_OBJECT_CHARS = 512 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class _Duplicate(dict[str, Any]):
    key: str = ""


def read_json(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows and problems of a JSON document.

    Raises:
        DataError: The document is broken (names line and column) or has no rows in it.
    """
    buffer = _Buffer(opened)
    first = buffer.peek()
    if first == "[":
        yield from _elements(buffer)
    elif first == "{":
        yield from _objects(buffer)
    else:
        raise DataError(f"{opened.path.name} is no JSON: it starts with {first!r}.")


def _elements(buffer: _Buffer) -> Iterator[Row | Problem]:
    buffer.skip(1)
    if buffer.peek() == "]":
        return
    while True:
        buffer.peek()
        line = buffer.line
        value = buffer.value(MAX_ELEMENT_CHARS)
        yield _row(line, value, "The element")
        mark = buffer.peek()
        if mark == "]":
            buffer.skip(1)
            if buffer.peek():
                raise buffer.broken("there is more text after the closing bracket")
            return
        if mark != ",":
            reason = 'a comma or "]" is missing' if mark else "the file stops before its closing ]"
            raise buffer.broken(reason)
        buffer.skip(1)


def _objects(buffer: _Buffer) -> Iterator[Row | Problem]:
    line = buffer.line
    value = buffer.value(MAX_OBJECT_CHARS)
    if not buffer.peek():
        yield from _one_object(buffer, line, value)
        return
    # Several objects one after the other, each over several lines.
    while True:
        yield _row(line, value, "The object")
        if buffer.peek() == ",":
            buffer.skip(1)
        if not buffer.peek():
            return
        line = buffer.line
        value = buffer.value(MAX_ELEMENT_CHARS)


def _one_object(buffer: _Buffer, line: int, value: Any) -> Iterator[Row | Problem]:
    if isinstance(value, _Duplicate):
        yield _row(line, value, "The object")
        return
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    inner = [k for k, items in lists.items() if items and all(isinstance(i, dict) for i in items)]
    conversation = [k for k in inner if {"role", "from"} & set(lists[k][0])]
    if lists and len(lists) == len(value) and not inner:
        yield from _columns(buffer, lists)
    elif len(inner) == 1 and not conversation:
        for index, item in enumerate(lists[inner[0]]):
            yield _row(index + 1, item, f'Element {index + 1} of "{inner[0]}"')
    else:
        yield _row(line, value, "The object")


def _columns(buffer: _Buffer, lists: dict[str, list[Any]]) -> Iterator[Row]:
    lengths = {key: len(items) for key, items in lists.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f'"{k}" has {n}' for k, n in list(lengths.items())[:5])
        raise DataError(f"{buffer.name} holds columns of unequal length: {shown}.")
    for index in range(next(iter(lengths.values()))):
        yield Row(index + 1, {key: items[index] for key, items in lists.items()})


def _row(line: int, value: Any, what: str) -> Row | Problem:
    if isinstance(value, _Duplicate):
        return Problem(line, "duplicate_key", f'The key "{value.key}" stands twice in one object.')
    if not isinstance(value, dict):
        return Problem(line, "not_object", f"{what} is {name_of(value)}, not an object.")
    nested = _find_duplicate(value)
    if nested:
        return Problem(line, "duplicate_key", f'The key "{nested}" stands twice in one object.')
    return Row(line, value)


def _find_duplicate(value: dict[str, Any]) -> str | None:
    for child in value.values():
        if type(child) is list:
            for item in child:
                if type(item) is _Duplicate:
                    return item.key
        elif type(child) is _Duplicate:
            return child.key
    return None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    marked = _Duplicate(made)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            marked.key = key[:60]
        seen.add(key)
    return marked


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON: write null or a number")


class _Buffer:
    """The text that is read but not yet consumed, and the line it starts at."""

    def __init__(self, opened: Opened) -> None:
        import codecs

        self.name, self.line = opened.path.name, 1
        self.text, self.at, self.rows, self.ended = "", 0, 0, False
        self.cut = 0  # characters of the first line here that are gone already
        self._chunks = utf8_chunks(opened)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder(
            object_pairs_hook=_pairs, parse_constant=_no_constant
        ).raw_decode

    def more(self) -> bool:
        if self.ended:
            return False
        chunk = next(self._chunks, None)
        try:
            if chunk is None:
                self.ended = True
                text = self._decoder.decode(b"", final=True)
            else:
                text = self._decoder.decode(chunk)
        except UnicodeDecodeError:
            last = self.line + self.text.count("\n", self.at)
            raise DataError(f"{self.name} is not UTF-8 in or after line {last:,}.") from None
        self.cut = self._column(self.at) - 1
        self.text = self.text[self.at :] + text
        self.at = 0
        return True

    def peek(self) -> str:
        """Skip white space; return the next character, or "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            end = match.end() if match else self.at
            self.line += self.text.count("\n", self.at, end)
            self.at = end
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def skip(self, count: int) -> None:
        self.at += count

    def value(self, limit: int) -> Any:
        """Parse the value that starts here, reading on as far as it needs."""
        while True:
            try:
                value, end = self._scan(self.text, self.at)
            except RecursionError:
                raise self.broken("it is nested too deeply") from None
            except ValueError as error:
                if not isinstance(error, json.JSONDecodeError):
                    raise self.broken(str(error)) from None
                if self._grow(limit):
                    continue
                raise self._broken_at(error) from None
            # A number at the very end of the buffer may go on in the next chunk.
            if end == len(self.text) and not self.ended and self.more():
                continue
            self.line += self.text.count("\n", self.at, end)
            self.at, self.rows = end, self.rows + 1
            return value

    def _grow(self, limit: int) -> bool:
        # Twice as much text each time: an element of any size is scanned a few times only.
        have = len(self.text) - self.at
        if have > limit:
            raise self.broken(f"one element is longer than {limit >> 20} million characters")
        target, grew = max(2 * have, 1), False
        while len(self.text) - self.at < target and self.more():
            grew = True
        return grew

    def _broken_at(self, error: json.JSONDecodeError) -> DataError:
        line = self.line + self.text.count("\n", self.at, error.pos)
        cut = "Unterminated" in error.msg or error.pos >= len(self.text.rstrip())
        reason = "it was cut short" if cut else error.msg[0].lower() + error.msg[1:]
        return self._sentence(line, self._column(error.pos), reason)

    def broken(self, reason: str) -> DataError:
        return self._sentence(self.line, self._column(self.at), reason)

    def _column(self, at: int) -> int:
        end = self.text.rfind("\n", 0, at)
        return at - end + (self.cut if end < 0 else 0)

    def _sentence(self, line: int, column: int, reason: str) -> DataError:
        return DataError(
            f"{self.name} stops being JSON at line {line:,}, column {column:,}: {reason}. "
            f"The {self.rows:,} rows before it are fine; repair the file, or save it as JSON lines "
            "so that one bad row costs only itself."
        )

"""Read JSON lines, plain text by lines, and JSON documents: an array, columns, or several objects.

An array is parsed element by element from a growing buffer, so a file of any size needs the memory
of its longest element. A document that stops being JSON is refused with line and column: unlike
after a bad line, it is unknown where its next row would begin. `ijson` is not used: it tells no
positions and lets repeated keys pass.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import Opened, utf8_chunks
from studio.errors import DataError

MAX_LINE_BYTES = 64 << 20
MAX_DEPTH = 200
_LARGE = 2.0**63  # orjson reads integers beyond 64 bits as floats
LONG = f"The line is longer than {MAX_LINE_BYTES >> 20} MiB."
TOO_DEEP = f"It is nested too deeply: at most {MAX_DEPTH} levels are read."


class Line(NamedTuple):
    """One physical line without its end; `too_long` lines come empty."""

    number: int
    data: bytes
    too_long: bool = False


def lines(chunks: Iterator[bytes]) -> Iterator[Line]:
    """Yield lines numbered from 1; they end in LF, CR LF, or CR in a file without any LF."""
    number, rest, skipping = 0, b"", False
    for chunk in _unix_ends(chunks):
        pieces = chunk.split(b"\n")
        if len(pieces) == 1:
            if not skipping:
                rest += chunk
                if len(rest) > MAX_LINE_BYTES:
                    rest, skipping = b"", True
            continue
        number += 1
        yield Line(number, b"" if skipping else _bare(rest + pieces[0]), skipping)
        skipping = False
        windows = b"\r\n" in chunk
        for piece in pieces[1:-1]:
            number += 1
            yield Line(number, _bare(piece) if windows else piece)
        rest = pieces[-1]
    if rest or skipping:
        yield Line(number + 1, _bare(rest), skipping)


def _bare(line: bytes) -> bytes:
    return line[:-1] if line.endswith(b"\r") else line


def _unix_ends(chunks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(chunks, b"")
    old_mac = b"\r" in first and b"\n" not in first
    yield first.replace(b"\r", b"\n") if old_mac else first
    for chunk in chunks:
        yield chunk.replace(b"\r", b"\n") if old_mac else chunk


def read_jsonl(opened: Opened) -> Iterator[Row | Problem]:
    """Yield the rows and problems of a JSON lines file."""
    for number, data, too_long in lines(utf8_chunks(opened)):
        if too_long:
            yield Problem(number, "too_long", LONG)
            continue
        try:
            values, num_keys = _parsed(data)
        except orjson.JSONDecodeError as error:
            if data.strip():
                yield Problem(number, *why_not_json(data, error))
            continue
        except ValueError:
            yield Problem(number, "json", "A number has too many digits.")
            continue
        except RecursionError:
            yield Problem(number, "json", TOO_DEEP)
            continue
        if type(values) is not dict:
            yield Problem(number, "not_object", f"The line is {name_of(values)}, not an object.")
        elif data.count(b'":') != num_keys and (key := _duplicate_key(data)):
            yield Problem(number, "duplicate_key", f'The key "{key}" stands twice in one object.')
        else:
            yield Row(number, values)


def loads(data: bytes) -> Any:
    """Return what `dumps` wrote; integers of any size and half characters are what they were."""
    try:
        return _parsed(data)[0]
    except orjson.JSONDecodeError:  # half of a surrogate pair, or an integer beyond all floats
        return json.loads(data)


def _parsed(data: bytes) -> tuple[Any, int]:
    """Return the value of a line, and how many keys its objects have."""
    values = orjson.loads(data)
    if type(values) is dict:
        for value in values.values():
            if type(value) is not str:
                break
        else:
            return values, len(values)
    floats: list[float] = []
    num_keys = count_keys(values, floats)
    if any(abs(number) >= _LARGE for number in floats):
        values = json.loads(data)
    return values, num_keys


def count_keys(value: Any, floats: list[float], depth: int = 0) -> int:
    """Return how many keys the objects of a nested value have; its floats are added to a list.

    Raises:
        RecursionError: It is nested more than `MAX_DEPTH` deep.
    """
    if depth > MAX_DEPTH:
        raise RecursionError
    is_object = type(value) is dict
    if not is_object and type(value) is not list:
        return 0
    items = value.values() if is_object else value
    kinds = {*map(type, items)}
    count = len(value) if is_object else 0
    if float in kinds:
        floats += [item for item in items if type(item) is float]
    if dict in kinds or list in kinds:
        for item in items:
            if type(item) is dict or type(item) is list:
                count += count_keys(item, floats, depth + 1)
    return count


def dumps(value: Any) -> bytes:
    """Return a row as JSON, from which `loads` reads it as it is; of bytes, how many there are."""
    try:
        how = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME
        return orjson.dumps(value, default=_as_json, option=how)
    except TypeError:  # an integer beyond 64 bits, or half of a surrogate pair
        text = json.dumps(value, default=_as_json, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=_as_json).encode()


def _as_json(value: Any) -> Any:
    return {"bytes": len(value)} if isinstance(value, bytes) else str(value)


def why_not_json(data: bytes, error: orjson.JSONDecodeError) -> tuple[str, str]:
    """Return the kind and the sentence for a line that does not parse."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as bad:
        return "encoding", f"Byte {bad.start + 1} of the line is not UTF-8."
    if "\x00" in text:
        return "control", "The line holds NUL bytes."
    if "recursion" in error.msg.lower():
        return "json", TOO_DEEP
    near = text[max(0, error.pos - 1) : error.pos + 9].lstrip()
    if near.lstrip("-:, [").startswith(("NaN", "Infinity", "nan", "inf")):
        return "json", "NaN and Infinity are not JSON: write null or a number."
    message = error.msg.split(":")[0]
    if "end of data" in message or "EOF" in message:
        return "json", "The line stops in the middle: it was cut short."
    return "json", f"Not valid JSON at column {error.colno}: {message}."


def _duplicate_key(data: bytes) -> str:
    """Return a key that stands twice in one object of the line, which orjson lets pass."""
    try:
        return repeated_key(json.loads(data, object_pairs_hook=object_of))
    except (ValueError, RecursionError):
        return ""


class Repeated(dict[str, Any]):
    """An object in which a key stands twice."""

    key: str = ""


_NESTED = (dict, list, Repeated)


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some pairs, marked if a key stands twice in it."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    marked = Repeated(made)
    counts = Counter(key for key, _ in pairs)
    marked.key = next(key for key, count in counts.items() if count > 1)[:60] or '""'
    return marked


def repeated_key(value: Any, depth: int = 0) -> str:
    """Return a key that stands twice in an object of a nested value; "" if there is none.

    Raises:
        RecursionError: It is nested more than `MAX_DEPTH` deep.
    """
    if depth > MAX_DEPTH:
        raise RecursionError
    if type(value) is Repeated:
        return value.key
    for item in value.values() if type(value) is dict else value:
        if type(item) in _NESTED and (key := repeated_key(item, depth + 1)):
            return key
    return ""


def name_of(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")


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
        yield _element_row(line, document.value(MAX_ELEMENT_CHARS), "The element")
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
        yield _element_row(line, value, "The object")
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
            yield _element_row(index + 1, item, f'Element {index + 1} of "{inner[0]}"')
    else:
        yield _element_row(line, value, "The object")


def _element_row(line: int, value: Any, what: str) -> Row | Problem:
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

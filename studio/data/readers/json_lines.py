"""Read line-based files: JSON lines and plain text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from studio.data.conversation_records import Problem, Row
from studio.data.readers.compression_and_encoding import Opened, utf8_chunks

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
    """Parse JSON; integers of any size and half characters stay as they were written.

    Raises:
        orjson.JSONDecodeError: It is not JSON.
        ValueError: An integer has thousands of digits.
        RecursionError: It is nested too deeply.
    """
    try:
        return _parsed(data)[0]
    except orjson.JSONDecodeError:
        if b"\\u" not in data:
            raise
        return json.loads(data)  # half of a surrogate pair


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

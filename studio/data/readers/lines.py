"""Cut UTF-8 chunks into numbered lines, never holding more than one over-long line's beginning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_LINE_BYTES = 64 << 20
LONG = f"The line is longer than {MAX_LINE_BYTES >> 20} MiB."


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
        for piece in pieces[1:-1]:
            number += 1
            yield Line(number, _bare(piece))
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

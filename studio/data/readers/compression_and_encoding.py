"""Open a data file of any kind: refuse foreign formats, decompress, decode to UTF-8 in chunks.

Memory stays bounded: gzip and zstd are decompressed as a stream and refused when they blow up. A
few damaged bytes do not change the detected encoding: the lines that hold them are reported
instead. This module knows bytes, not rows.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from studio.errors import DataError

CHUNK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 18
MAX_RATIO = 200
RATIO_FREE_BYTES = 8 << 20
COMPRESSED = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_FOREIGN: list[tuple[int, bytes, str]] = [
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"Rar!", "a rar archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ\x90", "a program"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SQLite format 3", "a SQLite database"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"FEA1", "a Feather file of version 1"),
    (0, b"Obj\x01", "an Avro file"),
    (0, b"ORC", "an ORC file"),
    (0, b"OggS", "an audio file"),
    (0, b"ID3", "an audio file"),
    (0, b"RIFF", "a media file"),
    (0, b"GGUF", "a GGUF model"),
    *((0, b"\x80" + bytes([p]), "a pickle, which would run code when opened") for p in range(2, 6)),
]

_MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
# Which bytes of four are NUL in ASCII text.
_NUL_PATTERNS: dict[tuple[int, ...], str] = {
    (0, 1, 1, 1): "utf-32-le", (1, 1, 1, 0): "utf-32-be",
    (0, 1, 0, 1): "utf-16-le", (1, 0, 1, 0): "utf-16-be",
}  # fmt: skip
_REGIONAL = {
    "cp1252": "Windows-1252 (Western European)", "cp932": "Shift-JIS (Japanese)",
    "gb18030": "GB18030 (Chinese)", "big5": "Big5 (Chinese)", "cp949": "EUC-KR (Korean)",
    "cp1251": "Windows-1251 (Cyrillic)", "koi8_r": "KOI8-R (Cyrillic)",
}  # fmt: skip
_WESTERN = set("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýŒœ‘’“”–—…•€£§°«»¿¡ºª")


@dataclass(frozen=True, slots=True)
class Opened:
    """A data file after its first bytes were read; `format` is a key of `readers.FORMATS`."""

    path: Path
    format: str
    compression: str
    encoding: str
    size_bytes: int
    notes: tuple[str, ...] = ()
    whole: frozenset[str] | None = None  # columns of floats to read as integers; None: not decided


def check_regular(path: Path) -> int:
    """Return the size of a regular file that is not empty.

    Raises:
        DataError: It is missing, empty, a folder, a pipe, a socket or a device.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        link = " (a link that leads nowhere)" if path.is_symlink() else ""
        raise DataError(f"There is no file {path}{link}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{str(path)[:300]!r} cannot be opened ({reason}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe, socket or device, not a data file.")
    if status.st_size == 0:
        raise DataError(f"{path.name} is empty.")
    return status.st_size


def read_sample(path: Path) -> tuple[str, bytes]:
    """Return how a file is compressed and its first bytes, decompressed.

    Raises:
        DataError: It cannot be read, or is compressed twice.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    compression = "gzip" if head.startswith(_GZIP) else "none"
    compression = "zstd" if head.startswith(_ZSTD) else compression
    with decompressed(path, compression) as handle:
        sample = handle.read(SAMPLE_BYTES)
    if not sample:
        raise DataError(f"{path.name} is empty.")
    if sample.startswith((_GZIP, _ZSTD)):
        raise DataError(f"{path.name} is packed twice: unpack it once.")
    return compression, sample


def foreign_kind(sample: bytes) -> str:
    """Return what a file that holds no rows is, in words; "" if it may hold rows."""
    return next((kind for at, magic, kind in _FOREIGN if sample.startswith(magic, at)), "")


def guess_encoding(sample: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the codec of a text and the notes about it for the user."""
    for mark, codec in _MARKS.items():
        if sample.startswith(mark):
            name = codec.upper().replace("-LE", " (little-endian)").replace("-BE", " (big-endian)")
            return codec, () if codec == "utf-8" else (f"The file is {name}.",)
    if wide := _NUL_PATTERNS.get(_nul_pattern(sample[:4096])):
        return wide, (f"The file was read as {wide.upper()}: it has no byte-order mark.",)
    lines = sample.split(b"\n")
    lines = lines[:-1] or lines  # the last one may be cut in the middle of a character
    damaged = [line for line in lines if not _is_utf8(line)]
    if len(damaged) * 100 < len(lines):
        return "utf-8", ()
    codec = _guess_regional(b"\n".join(damaged)[:65536])
    if codec == "utf-8":
        return codec, ()
    return codec, (
        f"The file is not UTF-8; it was read as {_REGIONAL[codec]}, which is a guess. "
        "Save it as UTF-8 if characters look wrong.",
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _nul_pattern(head: bytes) -> tuple[int, ...]:
    if len(head) < 4 or b"\x00" not in head:
        return ()
    shares = [head[i::4].count(0) / len(head[i::4]) for i in range(4)]
    return tuple(1 if share > 0.4 else 0 if share < 0.1 else -1 for share in shares)


def _guess_regional(text: bytes) -> str:
    """Return the most plausible regional codec; "utf-8" if the text is damaged UTF-8."""
    from charset_normalizer import from_bytes

    decoded = text.decode("utf-8", "replace")
    num_bad = decoded.count("\ufffd")
    if sum(char > "\x7f" for char in decoded) > 5 * num_bad:
        return "utf-8"
    # Western text has single accented letters and quotation marks, damage has anything.
    runs = re.findall(rb"[\x80-\xff]+", text)
    marked = b"".join(runs).decode("cp1252", "replace")
    if len(marked) < 2.5 * len(runs):
        is_western = sum(char in _WESTERN for char in marked) >= 0.95 * len(marked)
        return "cp1252" if is_western else "utf-8"
    text = text.rstrip(bytes(range(0x80, 0x100)))  # half a character fails every multi-byte codec
    found = from_bytes(text, cp_isolation=[*_REGIONAL][1:]).best()
    if found is None or found.encoding not in _REGIONAL:
        return "utf-8"
    num_letters = sum(char > "\x7f" for char in text.decode(found.encoding, "replace"))
    return found.encoding if num_letters >= 8 else "utf-8"


def utf8_chunks(opened: Opened) -> Iterator[bytes]:
    """Yield the text of a file as UTF-8 bytes without a byte-order mark.

    A file that is already UTF-8 is passed on byte for byte: its readers judge it line by line.
    """
    with decompressed(opened.path, opened.compression) as handle:
        chunks: Iterator[bytes] = iter(lambda: handle.read(CHUNK_BYTES), b"")
        if opened.encoding != "utf-8":
            chunks = _recoded(chunks, opened.encoding)
        yield next(chunks, b"").removeprefix(codecs.BOM_UTF8)
        yield from chunks


def _recoded(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "replace")
    rest = decoder.decode(b"", final=True)
    if rest != "\ufffd":  # half a character at the very end would make a line of its own
        yield rest.encode("utf-8", "replace")


@contextlib.contextmanager
def decompressed(path: Path, compression: str) -> Iterator[BinaryIO]:
    """Open a file, decompressing gzip and zstd up to a limit."""
    with path.open("rb") as raw:
        if compression == "none":
            yield raw
            return
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
        yield cast(BinaryIO, _Bounded(path, stream, path.stat().st_size))


class _Bounded:
    # Counts the decompressed bytes: a file of some kilobytes may hold terabytes.
    def __init__(self, path: Path, stream: BinaryIO, packed_bytes: int) -> None:
        self.path, self.stream, self.packed_bytes, self.read_bytes = path, stream, packed_bytes, 0

    def read(self, size: int) -> bytes:
        try:
            chunk = self.stream.read(size)
        except OSError as error:
            raise DataError(
                f"{self.path.name} is damaged: it cannot be unpacked past byte "
                f"{self.read_bytes:,} ({str(error)[:120]})."
            ) from None
        self.read_bytes += len(chunk)
        if self.read_bytes > max(RATIO_FREE_BYTES, MAX_RATIO * self.packed_bytes):
            raise DataError(
                f"{self.path.name} unpacks to more than {MAX_RATIO} times its size, which no "
                "text does. Unpack it yourself if you trust it."
            )
        return chunk

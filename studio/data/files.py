"""Open a data file of any kind: detect compression and encoding, decode to UTF-8 in chunks.

UTF-8 first, byte-order marks next, then the pattern of NUL bytes that UTF-16 leaves, then the old
regional encodings by how plausible their text reads. A few damaged bytes do not change the guess:
the lines that hold them are reported instead.

What a file is gets decided by its first bytes, never by its name alone. Memory stays bounded: gzip
and zstd are unpacked as a stream and refused when they blow up. It knows bytes, not rows.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from studio.errors import DataError

_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_NAMES = {
    "cp1252": "Windows-1252 (Western European)", "shift_jis": "Shift-JIS (Japanese)",
    "gb18030": "GB18030 (Chinese)", "big5": "Big5 (Chinese)", "euc_kr": "EUC-KR (Korean)",
    "cp1251": "Windows-1251 (Cyrillic)", "koi8-r": "KOI8-R (Cyrillic)",
    "utf-16-le": "UTF-16 (little-endian)", "utf-16-be": "UTF-16 (big-endian)",
    "utf-32-le": "UTF-32 (little-endian)", "utf-32-be": "UTF-32 (big-endian)",
}  # fmt: skip

_WESTERN = set("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýŒœ‘’“”–—…•€£§°«»¿¡ºª")


def guess_encoding(sample: bytes) -> tuple[str, list[str]]:
    """Return a codec name and the notes a person should read about it."""
    for mark, name in _MARKS:
        if sample.startswith(mark):
            if name == "utf-8":
                return name, []
            return name, [f"The file is {_NAMES[name]}; it was read as such."]
    wide = _wide(sample)
    if wide:
        return wide, [f"The file looks like {_NAMES[wide]} without a mark; it was read as such."]
    lines = sample.split(b"\n")
    lines = lines[:-1] or lines  # the last one may be cut in the middle of a character
    damaged = [line for line in lines if not _is_utf8(line)]
    if len(damaged) * 100 < len(lines) or _mostly_utf8(damaged):
        return "utf-8", []
    name = _regional(b"\n".join(damaged)[:65536])
    if name == "cp1252" and not _reads_as_words(b"\n".join(damaged)[:65536]):
        return "utf-8", []
    return name, [
        f"The file is not UTF-8; it was read as {_NAMES[name]}, which is a guess. "
        "Save it as UTF-8 if characters look wrong."
    ]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _mostly_utf8(damaged: list[bytes]) -> bool:
    # Real UTF-8 with some bad bytes still has far more good sequences than bad ones.
    text = b"\n".join(damaged)[:65536].decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(1 for char in text if char > "\x7f" and char != "\ufffd")
    return good > 4 * bad


def _reads_as_words(text: bytes) -> bool:
    # Western text has accented letters and typographic marks; damage has anything.
    marked = [c for c in text.decode("cp1252", "replace") if c > "\x7f"]
    common = [c for c in marked if c in _WESTERN]
    return len(common) * 20 >= len(marked) * 19


def _wide(sample: bytes) -> str | None:
    head = sample[:4096]
    if len(head) < 4 or b"\x00" not in head:
        return None
    quarter = [sum(1 for b in head[i::4] if b == 0) / max(1, len(head[i::4])) for i in range(4)]
    if quarter[1] > 0.9 and quarter[2] > 0.9 and quarter[3] > 0.9 and quarter[0] < 0.1:
        return "utf-32-le"
    if quarter[0] > 0.9 and quarter[1] > 0.9 and quarter[2] > 0.9 and quarter[3] < 0.1:
        return "utf-32-be"
    even = (quarter[0] + quarter[2]) / 2
    odd = (quarter[1] + quarter[3]) / 2
    if odd > 0.4 and even < 0.05:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 and odd < 0.05 else None


def _regional(text: bytes) -> str:
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", text)]
    high = sum(runs)
    if not runs:
        return "cp1252"
    if high / len(runs) < 2.5:
        return "cp1252"
    scores = {name: _plausible(text, name) for name in _COMMON}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.15 else "cp1252"


def _plausible(text: bytes, name: str) -> float:
    # The share of common letters of that language, less four times what cannot be read.
    marked = [char for char in text.decode(name, "replace") if char > "\x7f"]
    bad = sum(1 for char in marked if char == "\ufffd" or "\ue000" <= char <= "\uf8ff")
    hits = sum(1 for char in marked if _COMMON[name](char))
    return (hits - 4 * bad) / len(marked) if len(marked) >= 8 else 0.0


_COMMON_HANZI = set(
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长问話說這個們時為會來國對後沒發"
)
_COMMON: dict[str, Callable[[str], bool]] = {
    "gb18030": lambda c: c in _COMMON_HANZI or c in "，。！？、：；（）“”《》",
    "big5": lambda c: c in _COMMON_HANZI or c in "，。！？、：；（）「」",
    "shift_jis": lambda c: "\u3040" <= c <= "\u30ff" or c in "。、「」日本人大一",
    "euc_kr": lambda c: "\uac00" <= c <= "\ud7a3",
    "cp1251": lambda c: "\u0430" <= c <= "\u044f" or c == "\u0451",
    "koi8-r": lambda c: "\u0430" <= c <= "\u044f" or c == "\u0451",
}


CHUNK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 18
MAX_RATIO = 200
RATIO_FREE_BYTES = 8 << 20

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "txt", "md"]
ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet", ".txt": "txt", ".text": "txt",
    ".md": "md", ".markdown": "md",
}  # fmt: skip
PACKED = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_SUFFIX = re.compile(
    rf"({'|'.join(map(re.escape, ENDINGS))})({'|'.join(map(re.escape, PACKED))})*$", re.I
)

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_FOREIGN: list[tuple[bytes, str]] = [
    (b"PK\x03\x04", "a zip archive (or an Excel or Word file)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"Rar!", "a rar archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "a SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a Feather file"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"OggS", "an audio file"),
    (b"ID3", "an audio file"),
    (b"RIFF", "a media file"),
    (b"GGUF", "a GGUF model"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
]


@dataclass(frozen=True, slots=True)
class Opened:
    """What the first bytes told: how the file is packed, encoded and laid out."""

    path: Path
    format: Format
    compression: Literal["none", "gzip", "zstd"]
    encoding: str
    size_bytes: int
    notes: tuple[str, ...] = ()


def look(path: Path) -> Opened:
    """Look at the first bytes of a file.

    Raises:
        DataError: It is missing, is no regular file, is empty, or is no data file.
    """
    size = guard(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    compression = _compression(head)
    sample = _sample(path, compression)
    if not sample:
        raise DataError(f"{path.name} is empty.")
    _refuse_foreign(path, sample)
    ending = _ending(path)
    if sample.startswith(b"PAR1"):
        if compression != "none":
            raise DataError(f"{path.name} is a packed Parquet file: unpack it first.")
        return Opened(path, "parquet", "none", "binary", size)
    if ending == "parquet":
        raise DataError(f"{path.name} ends in .parquet but is no Parquet file.")
    encoding, notes = guess_encoding(sample)
    text = sample.decode(encoding, errors="replace").removeprefix("\ufeff")
    if not text.strip():
        if size <= len(sample):
            raise DataError(f"{path.name} is empty: it holds only white space.")
    return Opened(
        path, _layout(path, ending, text, sample), compression, encoding, size, tuple(notes)
    )


def data_suffix(name: str) -> str:
    """Return the suffix of a data file, such as `.jsonl` or `.csv.gz`; empty for other files."""
    found = _SUFFIX.search(name)
    return found[0].lower() if found else ""


def guard(path: Path) -> int:
    """Refuse what is missing or no regular file; return its size.

    Raises:
        DataError: Says which of these it is.
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


def utf8_chunks(opened: Opened) -> Iterator[bytes]:
    """Yield the text of a file as UTF-8 bytes without a byte-order mark.

    A file that is already UTF-8 is passed on byte for byte: its readers judge it line by line.
    """
    with open_unpacked(opened.path, opened.compression) as handle:
        chunks = iter(lambda: handle.read(CHUNK_BYTES), b"")
        if opened.encoding == "utf-8":
            yield from _without_mark(chunks)
        else:
            yield from _recoded(chunks, opened.encoding)


@contextlib.contextmanager
def open_unpacked(path: Path, compression: str) -> Iterator[BinaryIO]:
    """Open a file, unpacking gzip and zstd with a limit on how far it may grow."""
    with path.open("rb") as raw:
        if compression == "none":
            yield raw
            return
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
        yield cast(BinaryIO, _Bounded(path, stream, path.stat().st_size))


class _Bounded:
    # Counts what a packed file unpacks to: a few kilobytes may hold terabytes.
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
                "text does: refused. Unpack it yourself if you trust it."
            )
        return chunk


def _sample(path: Path, compression: str) -> bytes:
    with open_unpacked(path, compression) as handle:
        sample = handle.read(SAMPLE_BYTES)
    return sample


def _compression(head: bytes) -> Literal["none", "gzip", "zstd"]:
    if head.startswith(_GZIP):
        return "gzip"
    return "zstd" if head.startswith(_ZSTD) else "none"


def _refuse_foreign(path: Path, sample: bytes) -> None:
    if sample.startswith((_GZIP, _ZSTD)):
        raise DataError(f"{path.name} is packed twice: unpack it once.")
    for magic, name in _FOREIGN:
        if sample.startswith(magic):
            raise DataError(f"{path.name} is {name}, not a data file. {_ADVICE}")
    if sample[257:262] == b"ustar":
        raise DataError(f"{path.name} is a tar archive, not a data file. {_ADVICE}")
    if sample[:1] == b"\x80" and sample[1:2] in b"\x02\x03\x04\x05" and len(sample) > 1:
        raise DataError(
            f"{path.name} is a pickle: it would run code when opened, so it is refused. {_ADVICE}"
        )


_ADVICE = "Save the rows as jsonl, json, csv, tsv, parquet, txt or md."


def _ending(path: Path) -> Format | None:
    found = _SUFFIX.search(path.name)
    return ENDINGS[found[1].lower()] if found else None


def _layout(path: Path, ending: Format | None, text: str, sample: bytes) -> Format:
    # JSON files often hold JSON lines and the other way round: the content decides.
    start = text.lstrip()[:1]
    if ending in ("json", "jsonl"):
        return _json_layout(ending, text)
    if ending in ("csv", "tsv") and start == "{" and _is_object(text.lstrip().split("\n", 1)[0]):
        return "jsonl"
    if ending is None:
        if start in "[{":
            return _json_layout(ending, text)
        if b"\x00" in sample and "\x00" in text:
            raise DataError(f"{path.name} is no text and no known data file. {_ADVICE}")
        if not path.suffix:
            return "txt"
        raise DataError(
            f'{path.name}: files ending in "{path.suffix[:20]}" are not read. '
            "Known: jsonl, json, csv, tsv, parquet, txt, md, and gzip or zstd of these."
        )
    return ending


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_layout(ending: Format | None, text: str) -> Format:
    stripped = text.lstrip()
    first, _, rest = stripped.partition("\n")
    if stripped.startswith("["):
        # `[1, 2]` on every line is JSON lines of arrays; anything else is one array.
        return "jsonl" if first.rstrip().endswith("]") and rest.lstrip()[:1] == "[" else "json"
    if first.strip() == "{" or (ending == "json" and "\n{" not in stripped):
        return "json"
    return "jsonl"


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(chunks, b"")
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from chunks


def _recoded(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    first = True
    for chunk in chunks:
        text = decoder.decode(chunk)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield text.encode("utf-8", "replace")
    rest = decoder.decode(b"", final=True)
    if rest != "\ufffd":  # half a character at the very end is no line of its own
        yield rest.encode("utf-8", "replace")

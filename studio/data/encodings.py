"""Guess how a file's characters are stored, from a sample, and say so.

UTF-8 first, byte-order marks next, then the pattern of NUL bytes that UTF-16 leaves, then the old
regional encodings by how plausible their text reads. A few damaged bytes do not change the guess:
the lines that hold them are reported instead.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

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

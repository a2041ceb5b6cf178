"""Find suspicious texts: damaged characters, HTML, secrets, exact and near duplicates.

Deterministic, without comparing every pair: rows are compared only where a band of their
signatures is equal.

Findings are counted and named by line; the text itself, above all a secret, is never repeated.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict

from studio.data.records import Conversation, Document

if TYPE_CHECKING:
    from numpy.typing import NDArray


def content_hash(row: Conversation | Document) -> int:
    """Return a hash of what a row says."""
    if isinstance(row, Document):
        text = row.text
    else:
        parts: list[str] = []
        for message in row.messages:
            parts += (message["role"], message["content"])
            if "tool_calls" in message:
                parts.append(str(message["tool_calls"]))
        text = "\x00".join(parts)
    return bytes_hash(text.encode("utf-8", "replace"))


def bytes_hash(data: bytes | memoryview) -> int:
    """Return 64 bits that differ for different bytes."""
    return xxhash.xxh3_64_intdigest(data)


def num_repeats(hashes: array[int]) -> int:
    """Return how many rows repeat an earlier one."""
    return len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64))) if hashes else 0


NUM_HASHES, ROWS_PER_BAND = 24, 3
ALIKE = 0.75
MAX_ROWS = 1_000_000
MAX_WORDS = 200_000
_WORD = re.compile(r"\w+")
_RANDOM = np.random.default_rng(20_24)
_FACTORS = _RANDOM.integers(1, 2**64, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
_ADDENDS = _RANDOM.integers(0, 2**64, NUM_HASHES, dtype=np.uint64)
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Signatures:
    """MinHash signatures of texts' runs of three words; remembers the words it has hashed."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, text: str) -> NDArray[np.uint32]:
        """Return the signature of one text."""
        known = self._known
        hashed = []
        for word in _WORD.findall(text.lower()):
            value = known.get(word)
            if value is None:
                if len(known) > MAX_WORDS:
                    known.clear()
                value = known[word] = zlib.crc32(word.encode("utf-8", "replace"))
            hashed.append(value)
        words = np.array(hashed or [0], dtype=np.uint64)
        runs = (
            (words[:-2] * _FIRST + words[1:-1]) * _SECOND + words[2:] if len(words) > 2 else words
        )
        runs = runs ^ (runs >> np.uint64(29))
        mixed = runs[:, None] * _FACTORS + _ADDENDS
        return (mixed.min(axis=0) >> np.uint64(32)).astype(np.uint32)


def near_duplicates(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Return (row, earlier row that it nearly repeats), both counted from 0."""
    signatures = Signatures()
    bands: dict[tuple[int, bytes], int] = {}
    kept: list[NDArray[np.uint32]] = []
    found: list[tuple[int, int]] = []
    for row, text in enumerate(texts):
        if row >= MAX_ROWS:
            break
        mine = signatures.of(text)
        kept.append(mine)
        data = mine.tobytes()
        width = 4 * ROWS_PER_BAND
        keys = [(at, data[at : at + width]) for at in range(0, len(data), width)]
        candidates = {bands[key] for key in keys if key in bands}
        alike = [c for c in candidates if np.count_nonzero(kept[c] == mine) >= ALIKE * NUM_HASHES]
        if alike:
            found.append((row, min(alike)))
        for key in keys:
            bands.setdefault(key, row)
    return found


MAX_LINES = 20
SCRIPT_CHARS = 400
LANGUAGE_ROWS = 500

_SECRETS = re.compile(
    r"sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_SECRET_HINTS = ("sk-", "AKIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "hf_", "xox", "AIza", "eyJ",
                 "PRIVATE KEY")  # fmt: skip
_HTML = re.compile(r"</?(?:script|div|span|p|br|a|img|table|td|tr|html|body|iframe|style)\b", re.I)
_CONTROL = bytes(c for c in range(32) if c not in (9, 10, 13)) + b"\x7f"
_DAMAGE = re.compile("\ufffd|Ã[\x80-\xbf©¨¤¶¼±]|â€[™œ\x9d“”¦]|Â[\xa0-\xbf]")
_HIDDEN = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")

KINDS = {
    "secret": "hold what looks like a secret key",
    "control": "hold control characters",
    "damage": "hold damaged characters (a wrong encoding somewhere)",
    "hidden": "hold invisible or direction-changing characters",
    "html": "hold HTML tags",
    "formula": "begin like a spreadsheet formula",
}

_SCRIPTS: list[tuple[str, str]] = [
    ("Latin", "A-Za-zÀ-ɏ"), ("Greek", "Ͱ-Ͽ"), ("Cyrillic", "Ѐ-ӿ"), ("Hebrew", "֐-׿"),
    ("Arabic", "؀-ۿ"), ("Devanagari", "ऀ-ॿ"), ("Thai", "฀-๿"), ("Kana", "぀-ヿ"),
    ("Hangul", "가-힯"), ("Han", "一-鿿㐀-䶿"), ("Emoji", "\U0001f300-\U0001faff☀-➿"),
]  # fmt: skip
_SCRIPT_PATTERNS = [(name, re.compile(f"[{chars}]")) for name, chars in _SCRIPTS]
_COMMON_WORDS = {
    "English": "the of and to in is that for it with as was on are this you be have not",
    "German": "der die und das ist nicht ein zu den mit sich auf für es dem auch eine werden",
    "French": "le la les des et est un une dans que pour qui pas sur au avec ne ce vous",
    "Spanish": "el los las que es en un una por con para no se su como más pero al",
    "Italian": "il di che la per un non sono una con le del è si da anche ma gli",
    "Portuguese": "o que de não um uma para com os do da em se mais por as ao você",
    "Dutch": "de het een en van is dat niet op te zijn voor met die er aan ook je",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _COMMON_WORDS.items()}


class Suspicion(BaseModel):
    """Rows that share a suspicious trait."""

    model_config = ConfigDict(frozen=True)
    kind: str
    text: str
    rows: int
    lines: list[int]


def _sentence(rows: int, words: str) -> str:
    verb, _, rest = words.partition(" ")
    return f"1 row {verb}s {rest}" if rows == 1 else f"{rows:,} rows {words}"


@dataclass(slots=True)
class Inspector:
    """Looks at one text after the other."""

    found: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    seen: int = 0

    def look(self, text: str, line: int) -> None:
        """Inspect the texts of one row, joined."""
        self.seen += 1
        if "<" in text and _HTML.search(text):
            self._note("html", line)
        for hint in _SECRET_HINTS:
            if hint in text and _SECRETS.search(text):
                self._note("secret", line)
                break
        if text[:1] in ("=", "@") and len(text) > 1:
            self._note("formula", line)
        if text.isascii():
            self.scripts["Latin"] += 1
            data = text.encode()
            if len(data.translate(None, _CONTROL)) != len(data):
                self._note("control", line)
        else:
            self._look_beyond_ascii(text, line)
        if self.seen <= LANGUAGE_ROWS:
            self._guess_language(text)

    def suspicions(self) -> list[Suspicion]:
        """Return what was found, worst first."""
        return [
            Suspicion(kind=kind, text=_sentence(self.found[kind], words), rows=self.found[kind],
                      lines=self.lines[kind])
            for kind, words in KINDS.items()
            if kind in self.found
        ]  # fmt: skip

    def script_shares(self) -> dict[str, float]:
        """Return the share of rows by main script."""
        return {name: round(n / self.seen, 4) for name, n in self.scripts.most_common()}

    def language_shares(self) -> dict[str, float]:
        """Return the share of rows by language, guessed from common words in the first rows."""
        total = sum(self.languages.values())
        return {name: round(n / total, 4) for name, n in self.languages.most_common()}

    def _look_beyond_ascii(self, text: str, line: int) -> None:
        data = text.encode("utf-8", "replace")
        if len(data.translate(None, _CONTROL)) != len(data):
            self._note("control", line)
        if _DAMAGE.search(text):
            self._note("damage", line)
        if _HIDDEN.search(text):
            self._note("hidden", line)
        head = text[:SCRIPT_CHARS]
        counts = {name: len(pattern.findall(head)) for name, pattern in _SCRIPT_PATTERNS}
        best = max(counts, key=lambda name: counts[name])
        self.scripts[best if counts[best] else "other"] += 1

    def _guess_language(self, text: str) -> None:
        words = text[:SCRIPT_CHARS].lower().split()
        counts = {name: len(common.intersection(words)) for name, common in _LANGUAGES.items()}
        best = max(counts, key=lambda name: counts[name])
        self.languages[best if counts[best] >= 2 else "unknown"] += 1

    def _note(self, kind: str, line: int) -> None:
        self.found[kind] = self.found.get(kind, 0) + 1
        lines = self.lines.setdefault(kind, [])
        if len(lines) < MAX_LINES:
            lines.append(line)

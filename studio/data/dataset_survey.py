"""Survey every row of a dataset in one pass: kept, dropped and why, repeated, suspicious.

Knows no tokenizer. Checking a file and importing it make the same survey. Suspicious are damaged
characters, HTML, secrets, near duplicates: findings are counted and named by line; the text itself,
above all a secret, is never repeated. Near duplicates are found by MinHash: rows are compared only
where a band of their signatures is equal.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from studio.data.column_mapping import columns_read
from studio.data.conversation_records import (
    Document,
    Problem,
    Row,
    compared_text,
    content_hash,
    messages_of,
    words_in,
)
from studio.data.dataset_files import Origin
from studio.data.dataset_report import Report, RowCounter, Suspicion
from studio.data.recognise_format import Guess
from studio.data.row_converters import record_converter

NEAR_ROWS, NEAR_ROWS_IN_CHECK = 20_000, 500  # an import has the time to compare more
NEAR_CHARS = 2000


class Survey:
    """Sees every row and problem of a dataset in order, then reports."""

    def __init__(self, origin: Origin, guess: Guess, *, near_rows: int = NEAR_ROWS) -> None:
        self.origin, self.guess, self._near_rows = origin, guess, near_rows
        self.counter, self._inspector = RowCounter(), Inspector()
        self._characters = self._answer_characters = 0
        self._texts: list[str] = []
        self._plain = origin.plain and guess.mapping.format == "text"
        self._convert, self._columns = record_converter(guess.mapping), columns_read(guess.mapping)
        if self._plain:  # a blank line is a line, too
            self._convert = lambda row: [Document(row.values["text"], row.line)]

    def see(self, item: Row | Problem) -> None:
        """Take one row."""
        counter = self.counter
        found = counter.take(item, self._columns, self._convert)
        if not found:
            return
        made = found[0]
        counter.keep(made)
        texts = []
        for message in messages_of(made):
            texts.append(message["content"])
            if message["role"] == "assistant":
                self._answer_characters += len(message["content"])
        text = "\n".join(texts)
        self._characters += len(text)
        self._inspector.look(text, item.line)
        if self._plain:
            return
        counter.hashes.append(content_hash(made))
        if counter.kept <= self._near_rows:
            self._texts.append(compared_text(made)[:NEAR_CHARS])

    def report(self) -> Report:
        """Sum up.

        Raises:
            DataError: Not one row can be used.
        """
        fields = self.counter.fields(self.origin, self.guess)
        repeats, kept = fields["duplicates"], self.counter.kept
        near = None if self._plain else len(near_duplicates(self._texts))
        suspicious = self._inspector.suspicions()
        if repeats:
            fields["warnings"].append(f"{repeats:,} rows are exact duplicates of earlier ones.")
        if near and near > repeats:
            among = f" among the first {len(self._texts):,}" if len(self._texts) < kept else ""
            fields["warnings"].append(
                f"{near - repeats:,} more rows{among} nearly repeat an earlier one."
            )
        fields["warnings"] += [f"{found.text}." for found in suspicious]
        return Report(
            **fields,
            near_duplicates=near,
            near_compared=len(self._texts),
            suspicious=suspicious,
            scripts=shares(self._inspector.scripts),
            languages=shares(self._inspector.languages),
            characters=self._characters,
            answer_share=round(self._answer_characters / max(1, self._characters), 4),
        )


NUM_HASHES, ROWS_PER_BAND = 24, 3
ALIKE = 0.75
MAX_ROWS = 1_000_000
MAX_WORDS = 200_000
_RANDOM = np.random.default_rng(20_24)
_FACTORS = _RANDOM.integers(1, 2**64, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
_ADDENDS = _RANDOM.integers(0, 2**64, NUM_HASHES, dtype=np.uint64)
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def _signature(text: str, known: dict[str, int]) -> NDArray[np.uint32]:
    """Return the MinHash of a text's runs of three words; `known` are words that were hashed."""
    hashed = []
    for word in words_in(text):
        value = known.get(word)
        if value is None:
            if len(known) > MAX_WORDS:
                known.clear()
            value = known[word] = zlib.crc32(word.encode("utf-8", "replace"))
        hashed.append(value)
    hashed = hashed or [zlib.crc32(text.encode("utf-8", "replace"))]  # signs only
    words = np.array(hashed, dtype=np.uint64)
    if len(words) > 2:
        words = (words[:-2] * _FIRST + words[1:-1]) * _SECOND + words[2:]
    words = words ^ (words >> np.uint64(29))
    mixed = words[:, None] * _FACTORS + _ADDENDS
    return (mixed.min(axis=0) >> np.uint64(32)).astype(np.uint32)


def near_duplicates(texts: Iterable[str]) -> set[int]:
    """Return the places, from 0, of texts that share most runs of three words with an earlier."""
    known: dict[str, int] = {}
    bands: dict[tuple[int, bytes], int] = {}
    kept: list[NDArray[np.uint32]] = []
    found: set[int] = set()
    for row, text in enumerate(islice(texts, MAX_ROWS)):
        mine = _signature(text, known)
        kept.append(mine)
        data, width = mine.tobytes(), 4 * ROWS_PER_BAND
        keys = [(at, data[at : at + width]) for at in range(0, len(data), width)]
        candidates = {bands[key] for key in keys if key in bands}
        if any(np.count_nonzero(kept[c] == mine) >= ALIKE * NUM_HASHES for c in candidates):
            found.add(row)
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
_SECRET_HINTS = ("sk-", "AKIA", "AIza", "xox", "eyJ", "PRIVATE KEY")
_UNDERSCORED = ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "hf_")
_HTML = re.compile(r"</?(?:script|div|span|p|br|a|img|table|td|tr|html|body|iframe|style)\b", re.I)
_CONTROL = bytes(c for c in range(32) if c not in (9, 10, 13)) + b"\x7f"
_DAMAGE = re.compile("\ufffd|Ã[\x80-\xbf©¨¤¶¼±]|â€[™œ\x9d“”¦]|Â[\xa0-\xbf]")
_HIDDEN = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")

_KINDS = {
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


class Inspector:
    """Looks at one text after the other.

    `scripts` counts rows by main script, `languages` the first rows by language, guessed from
    common words.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._counts: Counter[str] = Counter()
        self._lines: dict[str, list[int]] = {}  # the first ones of each kind of finding
        self.scripts: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()

    def look(self, text: str, line: int) -> None:
        """Inspect the texts of one row, joined."""
        self._seen += 1
        if "<" in text and _HTML.search(text):
            self._note("html", line)
        for hint in _SECRET_HINTS + _UNDERSCORED if "_" in text else _SECRET_HINTS:
            if hint in text and _SECRETS.search(text):
                self._note("secret", line)
                break
        if text[:1] in ("=", "@") and len(text) > 1:
            self._note("formula", line)
        data = text.encode("utf-8", "replace")
        if len(data.translate(None, _CONTROL)) != len(data):
            self._note("control", line)
        if text.isascii():
            self.scripts["Latin"] += 1
        else:
            self._look_beyond_ascii(text, line)
        if self._seen <= LANGUAGE_ROWS:
            words = text[:SCRIPT_CHARS].lower().split()
            counts = {name: len(common.intersection(words)) for name, common in _LANGUAGES.items()}
            best = max(counts, key=lambda name: counts[name])
            self.languages[best if counts[best] >= 2 else "unknown"] += 1

    def suspicions(self) -> list[Suspicion]:
        """Return what was found, worst first."""
        found = []
        for kind, hold in _KINDS.items():
            if rows := self._counts[kind]:
                one = f"1 row {hold.replace(' ', 's ', 1)}"
                text = one if rows == 1 else f"{rows:,} rows {hold}"
                found.append(Suspicion(kind=kind, text=text, rows=rows, lines=self._lines[kind]))
        return found

    def _look_beyond_ascii(self, text: str, line: int) -> None:
        if _DAMAGE.search(text):
            self._note("damage", line)
        if _HIDDEN.search(text):
            self._note("hidden", line)
        head = text[:SCRIPT_CHARS]
        counts = {name: len(pattern.findall(head)) for name, pattern in _SCRIPT_PATTERNS}
        best = max(counts, key=lambda name: counts[name])
        self.scripts[best if counts[best] else "other"] += 1

    def _note(self, kind: str, line: int) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= MAX_LINES:
            self._lines.setdefault(kind, []).append(line)


def shares(counts: Counter[str]) -> dict[str, float]:
    """Return counts as shares of their total, the largest first."""
    total = counts.total()
    return {name: round(count / total, 4) for name, count in counts.most_common()}

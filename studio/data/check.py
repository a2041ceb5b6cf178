"""`studio data check`: is this file usable, what is in it, what would be dropped and why.

Knows no model and no tokenizer, so it answers at once and needs no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from studio.data.conversations import converter
from studio.data.mapping import Mapping
from studio.data.prepare import guess_origin
from studio.data.records import Conversation, Document, Problem, Row, Tally
from studio.data.report import ProblemLine, listed, why_nothing
from studio.data.sources import Origin, find
from studio.errors import DataError, StudioError
from studio.home import Home
from studio.spec import DataSource


class RowCounts(BaseModel):
    """Rows read, kept and dropped."""

    model_config = ConfigDict(frozen=True)
    read: int = 0
    kept: int = 0
    dropped: int = 0


class Fault(BaseModel):
    """Why a file was refused."""

    model_config = ConfigDict(frozen=True)
    kind: str
    text: str


class FileReport(BaseModel):
    """What `studio data check --json` prints for one file."""

    model_config = ConfigDict(frozen=True)
    file: str
    ok: bool
    format: str = ""
    reason: str = ""
    container: str = ""
    encoding: str = ""
    mapping: dict[str, str] = {}
    rows: RowCounts = RowCounts()
    problems: list[ProblemLine] = []
    problem_counts: dict[str, int] = {}
    warnings: list[str] = []
    duplicates: int = 0
    error: Fault | None = None


def check_file(
    path: str | Path, *, mapping: Mapping | None = None, home: Home | None = None
) -> FileReport:
    """Read a whole file (or folder, hub id, demo) and say what a run would make of it.

    Never raises for what is in the file: a refusal is in `error`.
    """
    shown = str(path)[:1000].encode("utf-8", "replace").decode()
    source = DataSource(path=str(path))
    try:
        return _checked(shown, find(source, home), source, mapping)
    except StudioError as error:
        fault = Fault(kind=error.kind, text=error.text.encode("utf-8", "replace").decode())
        return FileReport(file=shown, ok=False, error=fault)


def _checked(shown: str, origin: Origin, source: DataSource, mapping: Mapping | None) -> FileReport:
    guess = origin.guess or guess_origin(origin, source)
    mapping = mapping or guess.mapping
    convert = converter(mapping)
    plain = origin.plain and mapping.format == "text"
    tally, read, open_ended = Tally(), 0, 0
    hashes: set[bytes] = set()
    kept = duplicates = 0
    for item in origin.rows():
        read += 1
        made: Conversation | Document | Problem = (
            (Document(item.values["text"], item.line) if plain else convert(item))
            if isinstance(item, Row)
            else item
        )
        if isinstance(made, Problem):
            tally.add(made)
            continue
        kept += 1
        if isinstance(made, Conversation):
            open_ended += made.open_ended
        if not plain:
            digest = content_hash(made)
            duplicates += digest in hashes
            hashes.add(digest)
    if not kept:
        raise DataError(why_nothing(origin.name, read, tally.problems, tally.counts))
    warnings = list(origin.notes)
    if not guess.sure:
        warnings.append(f"The meaning of the columns was guessed: {guess.reason}.")
    if tally.total:
        warnings.append(f"{tally.total:,} of {read:,} rows would be dropped.")
    if open_ended:
        warnings.append(f"{open_ended:,} rows end with a question; it is left out.")
    if duplicates:
        warnings.append(f"{duplicates:,} rows are exact duplicates of earlier ones.")
    return FileReport(
        file=shown,
        ok=True,
        format=mapping.format,
        reason=guess.reason,
        container=origin.container,
        encoding=origin.encoding,
        mapping=mapping.columns,
        rows=RowCounts(read=read, kept=kept, dropped=tally.total),
        problems=listed(tally),
        problem_counts=tally.counts,
        warnings=warnings,
        duplicates=duplicates,
    )


def content_hash(row: Conversation | Document) -> bytes:
    """Return a hash of what a row says."""
    if isinstance(row, Document):
        text = row.text
    else:
        text = "\x00".join(
            f"{m['role']}\x01{m['content']}\x01{m.get('tool_calls', '')}" for m in row.messages
        )
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).digest()

"""Check a data file: what is in it, what would be dropped, rows shared with another file.

Knows no model and no tokenizer, so it answers at once and needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from studio.data.mapping import Mapping
from studio.data.origins import find, guess_origin
from studio.data.quality import content_hash
from studio.data.recognise import Guess
from studio.data.records import Problem, Row
from studio.data.rows import converter
from studio.data.snapshots import open_snapshot
from studio.data.survey import Findings, Survey
from studio.errors import DataError, StudioError
from studio.home import Home
from studio.spec import DataSource

NEAR_ROWS = 500  # an import compares more: it has the time


class Fault(BaseModel):
    """Why a file was refused."""

    model_config = ConfigDict(frozen=True)
    kind: str
    text: str


class FileReport(Findings):
    """What `studio data check --json` prints for one file."""

    file: str
    ok: bool
    error: Fault | None = None


def check_file(
    path: str | Path, *, mapping: Mapping | None = None, home: Home | None = None
) -> FileReport:
    """Read a whole file (or folder, hub id, demo, imported dataset) and say what a run would do.

    Never raises for what is in the file: a refusal is in `error`.
    """
    shown = str(path)[:1000].encode("utf-8", "replace").decode()
    source = DataSource(path=str(path))
    try:
        origin = find(source, home)
        guess = origin.guess or (None if mapping else guess_origin(origin, source))
        if mapping:
            guess = Guess(mapping.checked(), "the mapping was given")
        assert guess is not None
        survey = Survey(origin, guess, near_rows=NEAR_ROWS)
        for item in origin.rows():
            survey.see(item)
        return FileReport(file=shown, ok=True, **dict(survey.findings()))
    except StudioError as error:
        fault = Fault(kind=error.kind, text=error.text.encode("utf-8", "replace").decode())
        return FileReport(file=shown, ok=False, error=fault)
    except OSError as error:
        fault = Fault(kind=DataError.kind, text=f"{shown} cannot be read ({error.strerror}).")
        return FileReport(file=shown, ok=False, error=fault)


def overlap(home: Home, name: str, other: str | Path) -> int:
    """Return how many rows of `other` (a file or dataset) are in a dataset, word for word."""
    report = check_file(other, home=home)
    if report.error:
        raise DataError(report.error.text)
    mine = _hashes(
        open_snapshot(home, name).origin().rows(), open_snapshot(home, name).meta.mapping
    )
    theirs = _hashes(find(DataSource(path=str(other)), home).rows(), report.mapping)
    return len(mine & theirs)


def _hashes(items: Iterator[Row | Problem], mapping: Mapping) -> set[int]:
    convert = converter(mapping)
    made = (convert(item) for item in items if isinstance(item, Row))
    return {content_hash(row) for row in made if not isinstance(row, Problem)}

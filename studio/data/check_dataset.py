"""Check a data file, folder or hub dataset: read it whole, report on its rows, store nothing."""

from __future__ import annotations

from pathlib import Path

from studio.data.dataset_report import Frozen, Report
from studio.data.dataset_survey import NEAR_ROWS_IN_CHECK, Survey
from studio.data.find_dataset import find
from studio.data.recognise_format import guess_origin
from studio.errors import DataError, StudioError
from studio.home import Home
from studio.spec import DataSource


class Fault(Frozen):
    """Why a file was refused."""

    kind: str
    text: str


class FileReport(Report):
    """The report on one file, as `studio data check --json` prints it."""

    file: str
    ok: bool
    error: Fault | None = None


def check_file(path: str | Path, *, home: Home | None = None) -> FileReport:
    """Read a whole file (or folder, hub id, demo, imported dataset) and report on its rows.

    Never raises for what is in the file: a refusal is in `error`.
    """
    shown = _encodable(str(path)[:1000])
    source = DataSource(path=str(path))
    try:
        origin = find(source, home)
        guess = guess_origin(origin, source)
        survey = Survey(origin, guess, near_rows=NEAR_ROWS_IN_CHECK)
        for item in origin.rows():
            survey.see(item)
        return FileReport(file=shown, ok=True, **dict(survey.report()))
    except StudioError as error:
        fault = Fault(kind=error.kind, text=_encodable(error.text))
    except OSError as error:
        fault = Fault(kind=DataError.kind, text=f"{shown} cannot be read ({error.strerror}).")
    return FileReport(file=shown, ok=False, error=fault)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()

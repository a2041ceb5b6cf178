"""Suites of prompts in the queue: list them, read the table of answers and scores, export it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio.adapter_stack import read_lane
from studio.adapters.library import resolve
from studio.chat.lanes import lane_notes
from studio.errors import AdapterError, QueueError
from studio.evaluation.html_and_csv_exports import Form, suite_as
from studio.evaluation.suites import FIGURES, SuiteRequest, read_results, summarise
from studio.home import Home

KIND = "suite"


def listing(store: JobStore) -> list[dict[str, Any]]:
    """Return the suites, the newest first."""
    return [
        {
            "id": job.id, "name": job.name, "state": job.state, "step": job.step,
            "total_steps": len(job.spec["cases"]), "created": job.created,
            "lanes": _lanes(job), "error": job.error_text,
        }
        for job in store.list() if job.kind == KIND
    ]  # fmt: skip


def table(store: JobStore, name: int | str) -> dict[str, Any]:
    """Return a suite's summary and its rows as far as they are answered.

    Raises:
        QueueError: There is no such suite.
    """
    job = _get(store, name)
    rows = read_results(store.home.run(job.id))
    return {
        "id": job.id, "name": job.name, "state": job.state, "total": len(job.spec["cases"]),
        "error": job.error_text, "spec": job.spec, **summarise(_lanes(job), rows), "rows": rows,
        "columns": [
            {"key": key, "title": title, "unit": unit, "hint": hint}
            for key, (title, unit, hint) in FIGURES.items()
        ],
    }  # fmt: skip


def outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return the table of a suite as commands print it."""
    return {key: value for key, value in table(store, job.id).items() if key != "spec"}


def exported(store: JobStore, name: int | str, form: Form) -> str:
    """Return a suite as a file's text.

    Raises:
        QueueError: There is no such suite.
    """
    found = table(store, name)
    return suite_as(form, found["name"], found, found["rows"], _curves(store, found["lanes"]))


def _curves(store: JobStore, lanes: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Return the loss curves of the runs whose adapters answer."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for run, label in _runs_of(store.home, lanes).items():
        if points := store.points(run, "loss", bins=200):
            curves[label] = points
    return curves


def _runs_of(home: Home, lanes: list[str]) -> dict[int, str]:
    """Return the runs that trained the lanes' adapters, as number: name; no path is a name."""
    found: dict[int, str] = {}
    for name in [part["name"] for lane in lanes for part in read_lane(lane)["stack"]]:
        run, at, _ = name.partition("@")
        if at and run.isdecimal():
            found[int(run)] = f"run {run}"
            continue
        with suppress(AdapterError):
            folder = resolve(home, name).parent
            if folder.parent == home.runs and folder.name.isdecimal():
                own = Path(name).name == name
                found[int(folder.name)] = name if own else f"run {folder.name}"
    return found


def _lanes(job: Job) -> list[str]:
    """Return the names of the lanes; settings follow where lanes differ in them."""
    lanes = SuiteRequest.parse(job.spec).lanes
    return [lane.name + note for lane, note in zip(lanes, lane_notes(lanes), strict=True)]


def _get(store: JobStore, name: int | str) -> Job:
    job = store.get(name)
    if job.kind != KIND:
        raise QueueError(f'"{job.name}" is a job of kind {job.kind}, not a suite.')
    return job

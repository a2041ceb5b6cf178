"""Hand the curves of runs to trackers: live from the runner, or afterwards from the database."""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from jobs import queue_settings
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.run_curves import EVAL_SERIES, STEP_SERIES
from studio.errors import QueueError, StudioError, first_line
from studio.home import slug
from studio.names import redacted
from studio.spec import RunSpec, differences
from studio.training import trackers, training_events
from studio.training.trackers import LiveTrackers, TrackedRun

FILES = "trackers"  # folder in a run's folder


def live(store: JobStore, job: Job, log: logging.Logger, *, first_step: int = 0) -> LiveTrackers:
    """Open the trackers to which a run sends its curves; of other jobs none."""
    names = trackers.names_in((job.spec.get("train") or {}).get("report_to", "none"))
    return LiveTrackers(names, tracked(store, job, first_step) if names else None, log)


def values_of(event: training_events.Event) -> dict[str, float]:
    """Return the finite values of an event to send to trackers, named as the run's curves."""
    if isinstance(event, training_events.Step):
        found = {name: getattr(event, name) for name in (*STEP_SERIES, "epoch")}
    elif isinstance(event, training_events.Evaluated):
        found = {name: getattr(event, own) for name, own in EVAL_SERIES.items()}
    else:
        return {}
    return {name: float(v) for name, v in found.items() if v is not None and math.isfinite(v)}


def tracked(store: JobStore, job: Job, first_step: int = 0, *, fresh: bool = False) -> TrackedRun:
    """Return a run as it is sent to trackers; settings are what differs from the defaults."""
    config: dict[str, Any] = {}
    if job.kind == "train":
        spec = RunSpec.parse(job.spec)
        own = {"model": spec.model.path, "data": spec.data.path, "method": spec.method.name}
        config = {
            name: redacted(value) if isinstance(value, str) else value
            for name, value in {**own, **differences(spec)}.items() if name != "name"
        }  # fmt: skip
    return TrackedRun(
        key=f"{slug(job.name)}-{queue_settings.home_id(store)}-{job.id}{'-exported' * fresh}",
        name=job.name, folder=store.home.run(job.id) / FILES, config=config,
        first_step=first_step, fresh=fresh,
    )  # fmt: skip


def export(store: JobStore, jobs: Sequence[Job], report_to: str) -> dict[str, Any]:
    """Write the whole curves of runs to trackers, and return the number of values of each.

    Each time makes a new run there, so that no point is there twice.

    Raises:
        StudioError: A library is missing, a run has no curve, or a tracker refuses.
    """
    trackers.check(report_to)
    found = {job.id: _steps(store, job) for job in jobs}
    if empty := next((job for job in jobs if not found[job.id]), None):
        raise QueueError(f'"{empty.name}" has no curve to export.')
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in trackers.names_in(report_to):
        for job in jobs:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # libraries greet on it
                    tracker = trackers.opened(name, tracked(store, job, fresh=True))
                    for step, values, moment in found[job.id]:
                        tracker.log(step, values, moment)
                    tracker.close("failed" if job.state == "failed" else "succeeded")
            except StudioError:
                raise
            except Exception as error:
                logging.getLogger(__name__).warning("%s", name, exc_info=error)
                why = redacted(first_line(error))
                raise StudioError(
                    f"{name} did not take “{job.name}” ({type(error).__name__}: {why})."
                ) from None
    values = {job.name: sum(len(v) for _, v, _ in found[job.id]) for job in jobs}
    return {"report_to": report_to, "values": values, "folders": [
        str(store.home.run(job.id) / FILES / trackers.EXPORTED) for job in jobs
    ] if "tensorboard" in report_to else []}  # fmt: skip


def _steps(store: JobStore, job: Job) -> list[tuple[int, dict[str, float], float]]:
    """Return step, values and time, in the order of the steps."""
    steps = []
    for step, group in groupby(store.database.rows(_ALL, (job.id,)), key=itemgetter("step")):
        of_step = list(group)
        steps.append((step, {r["name"]: r["value"] for r in of_step}, of_step[0]["time"]))
    return steps


_ALL = """
SELECT step, name, value, time FROM metrics WHERE job = ? AND value IS NOT NULL ORDER BY step, name
"""

"""Trackers: a run's curves in TensorBoard, trackio, Weights & Biases or MLflow.

Each is written by its own library, an optional extra, with the account or address that library
keeps itself: no key passes through here. While a run trains, a thread writes; a tracker that fails
is dropped with a warning in the log, and the run never waits for one. It knows no queue.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from studio.errors import SpecError, first_line, nearest
from studio.names import redacted

logger = logging.getLogger(__name__)

LIBRARIES = {
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow-skinny",
}  # fmt: skip
"""The package of each tracker; its module has the tracker's name."""
EXPORTED = "exported"  # folder of TensorBoard's files of an export, beside those of a live run
PROJECT = "adapter-studio"
CLOSE_SECONDS = 20.0
Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """Facts of a run that trackers show; `key` stays the same when it is resumed.

    One that is `fresh` is always a new run in the tracker.
    """

    key: str
    name: str
    folder: Path  # where files of its trackers lie
    config: Mapping[str, Any]
    first_step: int = 0
    fresh: bool = False


class Tracker(Protocol):
    """One open run of a tracker."""

    def log(self, step: int, values: Values, moment: float) -> None:
        """Write the values of a step, measured at this time."""

    def close(self, state: str) -> None:
        """End the run: succeeded, failed or stopped."""


def parse_trackers(value: Any) -> Any:
    """Return tracker names between commas, as `train.report_to` keeps them; `none` for none.

    Raises:
        SpecError: One is unknown.
    """
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return value
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    names = [name for name in dict.fromkeys(names) if name != "none"]
    for name in names:
        if name not in LIBRARIES:
            raise SpecError(
                f'train.report_to is "{name}": use none, {", ".join(LIBRARIES)}, or several '
                f"between commas.{nearest(name, LIBRARIES)}", field="train.report_to",
            )  # fmt: skip
    return ",".join(names) or "none"


def names_in(report_to: str) -> list[str]:
    """Return the trackers of a valid `train.report_to`."""
    return [] if report_to in ("", "none") else report_to.split(",")


def check(report_to: str) -> None:
    """Refuse a tracker whose library is missing.

    Raises:
        SpecError: Names the command that installs it.
    """
    for name in names_in(report_to):
        if importlib.util.find_spec(name) is None:
            raise SpecError(
                f"train.report_to={name} needs the package {LIBRARIES[name]}: run "
                f"`pip install {LIBRARIES[name]}`, or set train.report_to=none.",
                field="train.report_to",
            )


class LiveTrackers:
    """The trackers of a run that trains: a thread between it and their libraries."""

    def __init__(
        self, names: Iterable[str], run: TrackedRun | None, log: logging.Logger = logger
    ) -> None:
        self._queue: queue.Queue[tuple[int, dict[str, float], float] | None] = queue.Queue()
        self._log, self._state = log, "succeeded"
        self._open: dict[str, Tracker] = {}
        self._thread: threading.Thread | None = None
        if run is not None and (chosen := list(names)):
            self._thread = threading.Thread(
                target=self._work, args=(chosen, run), name="trackers", daemon=True
            )
            self._thread.start()

    def record(self, step: int, values: dict[str, float]) -> None:
        """Hand over the values of a step; returns at once."""
        if self._thread and values:
            self._queue.put((step, values, time.time()))

    def close(self, state: str) -> None:
        """End the runs; a tracker that does not answer is left behind after some seconds."""
        if self._thread is None:
            return
        self._state = state
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            names = ", ".join(self._open) or "a tracker"
            self._log.warning("%s did not answer within %d s and is left", names, CLOSE_SECONDS)

    def _work(self, names: list[str], run: TrackedRun) -> None:
        for name in names:
            if tracker := self._try(name, lambda name=name: opened(name, run)):  # type: ignore[misc]
                self._open[name] = tracker
                self._log.info("tracked with %s", name)
        while (item := self._queue.get()) is not None:
            for name, tracker in list(self._open.items()):
                self._try(name, lambda t=tracker, i=item: t.log(*i))  # type: ignore[misc]
        for name, tracker in list(self._open.items()):
            self._try(name, lambda t=tracker: t.close(self._state))  # type: ignore[misc]

    def _try(self, name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except BaseException as error:  # a library may raise SystemExit; training goes on
            self._open.pop(name, None)
            self._log.warning(
                "%s failed and is left out; the run goes on (%s: %s)",
                name, type(error).__name__, redacted(first_line(error)),
            )  # fmt: skip
            return None


def opened(name: str, run: TrackedRun) -> Tracker:
    """Open a run in a tracker, the same one again after a resume."""
    kinds: dict[str, Callable[[TrackedRun], Tracker]] = {
        "tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb, "mlflow": MLflow,
    }  # fmt: skip
    return kinds[name](run)


class TensorBoard:
    """Event files in the run's own folder, for `tensorboard --logdir`."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        folder = run.folder / (EXPORTED if run.fresh else "tensorboard")
        if run.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = EventFileWriter(str(folder))
        if run.first_step:  # what an earlier attempt wrote after its checkpoint is void
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(
                Event(wall_time=time.time(), step=run.first_step + 1, session_log=start)
            )

    def log(self, step: int, values: Values, moment: float) -> None:
        """Write scalars."""
        shown = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._writer.add_event(
            self._event(wall_time=moment, step=step, summary=self._summary(value=shown))
        )

    def close(self, state: str) -> None:
        """Flush the file."""
        self._writer.close()


class Trackio:
    """A local trackio project; its own variables may name a Space or server."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(
            PROJECT, name=run.key, config=dict(run.config), embed=False,
            resume="never" if run.fresh else "allow", auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, step: int, values: Values, moment: float) -> None:
        """Log to this very run, not to the last one of the process."""
        self._run.log(dict(values), step=step)

    def close(self, state: str) -> None:
        """Finish the run."""
        self._run.finish()


class Wandb:
    """Weights & Biases; `WANDB_MODE` and the stored key are the library's own."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True)
        mode: Any = "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name,
            id=None if run.fresh else run.key, resume="allow", config=dict(run.config),
            dir=str(run.folder), reinit="create_new", settings=quiet, mode=mode,
        )  # fmt: skip

    def log(self, step: int, values: Values, moment: float) -> None:
        """Log a step."""
        self._run.log(dict(values), step=step)

    def close(self, state: str) -> None:
        """Finish the run, with a code that shows a failure."""
        self._run.finish(exit_code=int(state == "failed"))


def mlflow_address(home: Path) -> str:
    """Return where MLflow keeps runs; the small client can only write files."""
    if where := os.environ.get("MLFLOW_TRACKING_URI"):
        return where
    if importlib.util.find_spec("alembic") is not None:
        return f"sqlite:///{(home / 'mlflow.db').as_posix()}"
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (home / "mlruns").as_uri()


class MLflow:
    """The server of `MLFLOW_TRACKING_URI`, else a database or files in the home."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=mlflow_address(run.folder.parents[2]))
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self._client.create_experiment(project)
        same = self._client.search_runs([experiment], f"tags.studio_key = '{run.key}'")
        if same and not run.fresh:
            self._id = same[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.name, tags={"studio_key": run.key})
        self._id = made.info.run_id
        for name, value in run.config.items():
            self._client.log_param(self._id, name, str(value)[:500])

    def log(self, step: int, values: Values, moment: float) -> None:
        """Log a batch of metrics."""
        at = int(moment * 1000)
        self._client.log_batch(
            self._id,
            metrics=[self._metric(name, value, at, step) for name, value in values.items()],
        )

    def close(self, state: str) -> None:
        """End the run with its state."""
        ends = {"succeeded": "FINISHED", "failed": "FAILED"}
        self._client.set_terminated(self._id, ends.get(state, "KILLED"))

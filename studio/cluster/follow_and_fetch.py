"""Follow a run on the cluster: read its events, forward commands, fetch its files, report its end.

Checkpoints are fetched in the background, so that a large one does not delay the events.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from studio import atomic
from studio.adapters.library import PASSPORT, write_passport
from studio.cluster.ray_api import OVER, NoAnswer, Ray, Status, error_in
from studio.cluster.shared_storage import (
    ADAPTER,
    CHECKPOINTS,
    CONTROL,
    REPORT,
    EventReader,
    Storage,
    Submission,
    delete_submission,
    read_json,
    write_json,
)
from studio.errors import ClusterError, ProcessLost, StudioError
from studio.home import is_whole
from studio.job_request import Command, Control
from studio.spec import RunSpec
from studio.training.training_events import (
    Event,
    Finished,
    Loading,
    Saved,
    Saving,
    Started,
    Step,
    Working,
    event_from,
)

logger = logging.getLogger(__name__)
Intent = Callable[[], Literal["cancel", "pause", "shutdown"] | None]
POLL_SECONDS = 0.25
STATUS_SECONDS = 2.0
SAVE_SECONDS = 2.0
END_SECONDS, CANCEL_SECONDS = 30.0, 10.0
INTENT_SECONDS = 2.0
PATIENCE_SECONDS = {"cancel": 15.0, "pause": 90.0}
LOG_LINES = 40


class Fetcher:
    """Downloads checkpoints and adapter from the storage into the run's folder."""

    def __init__(self, storage: Storage, run_dir: Path) -> None:
        self._storage, self._run_dir = storage, run_dir
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="home")
        self._pending: list[tuple[Saved, Future[Path | None]]] = []

    def fetch(self, event: Saved) -> None:
        """Start to fetch the checkpoint of an event."""
        future = self._worker.submit(self._fetch_checkpoint, Path(event.path).name)
        self._pending.append((event, future))

    def fetched(self, *, wait: bool = False) -> Iterator[Saved]:
        """Yield the events of checkpoints that were fetched; with `wait` of all."""
        while self._pending and (wait or self._pending[0][1].done()):
            event, future = self._pending.pop(0)
            try:
                path = future.result()
            except (StudioError, OSError) as error:
                if isinstance(error, StudioError) and not isinstance(error, ClusterError):
                    raise  # this disk is full
                logger.warning(
                    "the checkpoint of step %d could not be fetched: %s", event.step, error
                )
                continue
            if path is not None:
                yield replace(event, path=str(path))

    def fetch_checkpoints(self) -> None:
        """Fetch every missing checkpoint; skip damaged ones."""
        for name in self._storage.names(CHECKPOINTS):
            try:
                self._fetch_checkpoint(name)
            except ClusterError as error:
                logger.warning("%s", error.text)

    def fetch_adapter(self, finished: Finished, spec: RunSpec) -> Finished:
        """Fetch adapter and report; return the event with local paths.

        Raises:
            ClusterError: The adapter is missing or damaged.
        """
        target = self._run_dir / ADAPTER
        if not self._storage.fetch(ADAPTER, target, change=lambda folder: _localise(folder, spec)):
            raise ClusterError(f"The adapter is missing on the storage {self._storage.url}.")
        finished = replace(finished, adapter=str(target))
        report = {**(read_json(self._storage, REPORT) or {}), **finished.as_dict()}
        text = json.dumps(report, indent=1, ensure_ascii=False)
        atomic.write(self._run_dir / REPORT, text)
        return finished

    def close(self) -> None:
        """Stop fetching."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _fetch_checkpoint(self, name: str) -> Path | None:
        target = self._run_dir / CHECKPOINTS / name
        if not is_whole(target) and not self._storage.fetch(f"{CHECKPOINTS}/{name}", target):
            return None  # a newer one has replaced it
        there = self._storage.names(CHECKPOINTS)
        for old in target.parent.glob("step-*"):
            if there and old.name not in there and old.name < name:
                shutil.rmtree(old, ignore_errors=True)
        return target


def _localise(folder: Path, spec: RunSpec) -> None:
    """Write this machine's paths of base and data into the adapter's files."""
    values = json.loads((folder / PASSPORT).read_text(encoding="utf-8"))
    values["spec"] = spec.model_dump(mode="json")
    values["base"]["path"], values["data"]["path"] = spec.model.path, spec.data.path
    write_passport(folder, values)
    config = folder / "adapter_config.json"
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        if "base_model_name_or_path" in values:
            values["base_model_name_or_path"] = spec.model.path
            config.write_text(json.dumps(values, indent=2), encoding="utf-8")


class Follower:
    """Follows one job on the cluster until it ends or this process must stop."""

    def __init__(
        self, spec: RunSpec, run_dir: Path, ray: Ray, sent: Submission, intent: Intent
    ) -> None:
        self._spec, self._run_dir, self._ray, self._sent = spec, run_dir, ray, sent
        self._intent = intent
        self._storage = Storage(sent.place)
        self._reader = EventReader(self._storage, number=sent.file, lines=sent.lines)
        self._fetcher = Fetcher(self._storage, run_dir)
        self._finished: Finished | None = None
        self._step, self._total, self._trains = sent.step, sent.total_steps, bool(sent.total_steps)
        self._stop_time = self._stop_without_intent = 0.0
        self._checked = self._saved = self._forced = 0.0
        self._up_to_date = True
        self._offline = ""
        self._status: Status | Literal["", "UNKNOWN"] = ""
        self._message = ""

    def follow(self, control: Control) -> Generator[Event, None, Finished | None]:
        """Yield the job's events; return its end, or None if it continues without us.

        Raises:
            ProcessLost: The cluster lost the job; it can resume from the fetched checkpoints.
            StudioError: The job failed with it.
        """
        try:
            if self._total:  # it was followed before
                yield self._progress_event()
            while self._intent() != "shutdown":
                self._forward(control())
                yield from self._check_status()
                yield from self._read_events()
                if self._up_to_date and (self._finished or self._status in (*OVER, "UNKNOWN")):
                    return (yield from self._end())
                if self._gives_up():
                    return None
                time.sleep(POLL_SECONDS)
            yield from self._save_position(now=True)
            return None
        finally:
            self._fetcher.close()

    # -- events --------------------------------------------------------------------------------

    def _read_events(self) -> Iterator[Event]:
        try:
            for values in self._reader.read():
                yield from self._handle(event_from(values))
        except OSError as error:
            self._up_to_date = False
            yield from self._report_offline(
                f"The storage {self._storage.url} does not answer ({error})."
            )
        else:
            self._up_to_date = True
            yield from self._fetcher.fetched()
            yield from self._save_position()

    def _handle(self, event: Event) -> Iterator[Event]:
        self._step = max(event.step, self._step) if isinstance(event, Step) else self._step
        if isinstance(event, Finished):
            self._finished = event
        elif isinstance(event, Saved):
            self._fetcher.fetch(event)
        else:
            if isinstance(event, Started):
                self._step, self._total, self._trains = event.step, event.total_steps, True
            yield event

    def _save_position(self, *, now: bool = False) -> Iterator[Event]:
        """Save the position of the reader, after the consumer stored the events before it.

        Never past the end: that is known by the fetched report.
        """
        if self._finished or (not now and time.monotonic() - self._saved < SAVE_SECONDS):
            return
        self._saved = time.monotonic()
        position = {
            "file": self._reader.number, "lines": self._reader.lines, "step": self._step,
            "total_steps": self._total,
        }  # fmt: skip
        if position == self._sent.model_dump(include=set(position)):
            return
        yield Saving(step=self._step)  # the consumer stores all earlier events
        self._sent = self._sent.model_copy(update=position).save(self._run_dir)

    # -- status --------------------------------------------------------------------------------

    def _check_status(self) -> Iterator[Event]:
        """Check the job's status periodically; report when the cluster goes offline or online."""
        if time.monotonic() - self._checked < STATUS_SECONDS:
            return
        self._checked = time.monotonic()
        try:
            found = self._ray.status(self._sent.submission)
        except NoAnswer as error:
            yield from self._report_offline(error.text)
            return
        self._status, self._message = found or ("UNKNOWN", "")
        if self._offline:
            logger.info("the cluster answers again")
            self._offline = ""
            yield self._progress_event()

    def _report_offline(self, text: str) -> Iterator[Event]:
        if not self._offline:
            logger.warning("%s The run continues there; retrying until it answers.", text)
            yield Loading(text=f"Waiting for the cluster: {text}")
        self._offline = self._offline or text

    def _progress_event(self) -> Event:
        if self._total:
            return Working(text="Training", step=self._step, total_steps=self._total)
        return Loading(text="Waiting for the run on the cluster")

    # -- commands ------------------------------------------------------------------------------

    def _forward(self, command: Command) -> None:
        if command is None or (command == "stop" and self._stop_time):
            self._force_stop()
            return
        if command == "stop" and self._intent() is None:  # the intent of a shutdown follows
            self._stop_without_intent = self._stop_without_intent or time.monotonic()
            if time.monotonic() - self._stop_without_intent < INTENT_SECONDS:
                return
        if command == "stop":
            self._stop_time = time.monotonic()
        try:
            write_json(self._storage, CONTROL, {"number": time.time_ns(), "command": command})
        except OSError as error:
            logger.warning("the command %s could not be sent: %s", command, error)
            self._stop_time = 0.0

    def _force_stop(self) -> None:
        """Stop the job immediately if it has not started or ignores the stop command."""
        intent = self._intent()
        if not self._stop_time or intent is None or intent == "shutdown":
            return
        if self._trains and time.monotonic() - self._stop_time < PATIENCE_SECONDS[intent]:
            return
        if time.monotonic() - self._forced < STATUS_SECONDS:
            return
        self._forced, self._checked = time.monotonic(), 0.0  # check the result at once
        try:
            self._ray.stop(self._sent.submission)
        except ClusterError as error:
            logger.warning("the job could not be stopped: %s", error.text)

    def _gives_up(self) -> bool:
        """Return True if the run should stop and the cluster does not answer."""
        intent = self._intent()
        if not (self._offline and self._stop_time and intent in ("cancel", "pause")):
            return False
        if time.monotonic() - self._stop_time < PATIENCE_SECONDS["cancel"]:
            return False
        logger.warning("the cluster does not answer; the stop command stays on the storage")
        return True

    # -- end -----------------------------------------------------------------------------------

    def _end(self) -> Generator[Event, None, Finished | None]:
        """Fetch everything, clean up, and return how the job ended."""
        yield Loading(text="Fetching the run")
        yield from self._read_events()  # events before the end that was seen
        yield from self._fetcher.fetched(wait=True)
        finished, error = self._finished, None
        try:
            self._fetcher.fetch_checkpoints()
            if finished is not None and finished.adapter:
                finished = self._fetcher.fetch_adapter(finished, self._spec)
        except OSError as trouble:
            raise ClusterError(
                f"The results could not be fetched from the storage {self._storage.url} "
                f"({trouble}): resume the run to fetch them."
            ) from trouble
        if finished is None:
            finished, error = self._end_by_status()
        self._wait_until_over()
        delete_submission(self._run_dir)
        self._storage.remove()
        if error is not None:
            raise error
        assert finished is not None
        yield finished
        return finished

    def _end_by_status(self) -> tuple[Finished | None, StudioError | None]:
        """Return the end of a job that sent no final event."""
        if self._status == "STOPPED" and self._stop_time:
            return Finished(step=self._step, reason="stopped"), None
        if self._status == "STOPPED":
            return None, ClusterError(
                "The run was stopped on the cluster itself. Resume it to continue from its last "
                "checkpoint."
            )
        if self._status == "UNKNOWN":
            return None, ProcessLost("The cluster was restarted and has lost the run.")
        log = self._ray.log(self._sent.submission)
        logger.info("the end of the driver's log:\n%s", "\n".join(log.splitlines()[-LOG_LINES:]))
        if (found := error_in(log)) is not None:
            return None, found
        text = f"The job ended without an error of its own: {self._message[:300]}"
        return None, ProcessLost(text) if self._trains else ClusterError(text)

    def _wait_until_over(self) -> None:
        """Wait until the job has released its devices."""
        cancelled = self._intent() == "cancel"
        deadline = time.monotonic() + (CANCEL_SECONDS if cancelled else END_SECONDS)
        while self._status not in (*OVER, "UNKNOWN") and time.monotonic() < deadline:
            try:
                found = self._ray.status(self._sent.submission)
                self._status = found[0] if found else "UNKNOWN"
            except NoAnswer:
                pass
            time.sleep(POLL_SECONDS)

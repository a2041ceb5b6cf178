"""Follow a run on the cluster: its events, its files, its end.

Checkpoints come in the background, so that a large one does not hold up the curve.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

from studio.cluster.orders import (
    ADAPTER,
    CHECKPOINTS,
    CONTROL,
    REPORT,
    Sent,
    forget,
    read_json,
    write_json,
)
from studio.cluster.ray_api import OVER, NoAnswer, Ray, Status, error_in
from studio.cluster.storage import Place, Reader
from studio.errors import ClusterError, ProcessLost, StudioError
from studio.home import is_whole
from studio.spec import RunSpec
from studio.training.events import (
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


class Homecoming:
    """Brings what lies at a place into a run's folder."""

    def __init__(self, place: Place, run_dir: Path) -> None:
        self._place, self._run_dir = place, run_dir
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="home")
        self._coming: list[tuple[Saved, Future[Path | None]]] = []

    def expect(self, event: Saved) -> None:
        """A checkpoint lies on the storage: fetch it."""
        future = self._worker.submit(self._fetch_checkpoint, Path(event.path).name)
        self._coming.append((event, future))

    def arrived(self, *, wait: bool = False) -> Iterator[Saved]:
        """Yield the checkpoints that are here now; with `wait` all that were expected."""
        while self._coming and (wait or self._coming[0][1].done()):
            event, future = self._coming.pop(0)
            try:
                path = future.result()
            except (StudioError, OSError) as error:
                if isinstance(error, StudioError) and not isinstance(error, ClusterError):
                    raise  # the disk here is full
                logger.warning("the checkpoint of step %d did not come: %s", event.step, error)
                continue
            if path is not None:
                yield replace(event, path=str(path))

    def bring_checkpoints(self) -> None:
        """Fetch every checkpoint of the storage that is not here; a damaged one is left out."""
        for name in self._place.names(CHECKPOINTS):
            try:
                self._fetch_checkpoint(name)
            except ClusterError as error:
                logger.warning("%s", error.text)

    def bring_adapter(self, finished: Finished, spec: RunSpec) -> Finished:
        """Fetch the adapter with its passport, and the report; returns the end as it is here.

        Raises:
            ClusterError: It is damaged.
        """
        target = self._run_dir / ADAPTER
        if not self._place.fetch(ADAPTER, target, change=lambda folder: _as_here(folder, spec)):
            raise ClusterError(f"The adapter did not come whole from {self._place.url}.")
        finished = replace(finished, adapter=str(target))
        report = {**(read_json(self._place, REPORT) or {}), **finished.as_dict()}
        temporary = self._run_dir / f".{REPORT}-{os.getpid()}"
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, self._run_dir / REPORT)
        return finished

    def close(self) -> None:
        """Stop fetching."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _fetch_checkpoint(self, name: str) -> Path | None:
        target = self._run_dir / CHECKPOINTS / name
        if not is_whole(target) and not self._place.fetch(f"{CHECKPOINTS}/{name}", target):
            return None  # a newer one has replaced it
        there = self._place.names(CHECKPOINTS)
        for old in target.parent.glob("step-*"):
            if there and old.name not in there and old.name < name:
                shutil.rmtree(old, ignore_errors=True)
        return target


def _as_here(folder: Path, spec: RunSpec) -> None:
    """Say in the adapter's files what this machine calls its base and its data."""
    passport = folder / "passport.json"
    values = json.loads(passport.read_text(encoding="utf-8"))
    values["spec"] = spec.model_dump(mode="json")
    values["base"]["path"], values["data"]["path"] = spec.model.path, spec.data.path
    passport.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    config = folder / "adapter_config.json"
    if config.is_file():
        values = json.loads(config.read_text(encoding="utf-8"))
        if "base_model_name_or_path" in values:
            values["base_model_name_or_path"] = spec.model.path
            config.write_text(json.dumps(values, indent=2), encoding="utf-8")


Control = Callable[[], Literal["stop", "save", "sample"] | None]
Intent = Callable[[], Literal["cancel", "pause", "shutdown"] | None]

POLL_SECONDS = 0.25
STATUS_SECONDS = 2.0
NOTE_SECONDS = 2.0
END_SECONDS, CANCEL_SECONDS = 30.0, 10.0
EXPLAIN_SECONDS = 2.0
PATIENCE_SECONDS = {"cancel": 15.0, "pause": 90.0}
LOG_LINES = 40


class Following:
    """One job on the cluster, followed until it is over or we must go."""

    def __init__(self, spec: RunSpec, run_dir: Path, ray: Ray, sent: Sent, intent: Intent) -> None:
        self._spec, self._run_dir, self._ray, self._sent = spec, run_dir, ray, sent
        self._intent = intent
        self._place = Place(sent.place)
        self._reader = Reader(self._place, number=sent.file, lines=sent.lines)
        self._home = Homecoming(self._place, run_dir)
        self._finished: Finished | None = None
        self._step, self._total, self._trains = sent.step, sent.total_steps, bool(sent.total_steps)
        self._asked = self._looked = self._noted = self._pressed = self._unexplained = 0.0
        self._heard_all = True
        self._lost = ""
        self._status: Status | Literal["", "UNKNOWN"] = ""
        self._words = ""

    def to_the_end(self, control: Control) -> Generator[Event, None, Finished | None]:
        """Yield what the job says; returns how it ended, None when we left it to itself.

        Raises:
            ProcessLost: The cluster lost it; it goes on from the checkpoints that are here.
            StudioError: What it failed with.
        """
        try:
            if self._total:  # it has been followed before
                yield self._going_on()
            while self._intent() != "shutdown":
                self._pass_on(control())
                yield from self._look()
                yield from self._news()
                if self._heard_all and (self._finished or self._status in (*OVER, "UNKNOWN")):
                    return (yield from self._end())
                if self._left_to_itself():
                    return None
                time.sleep(POLL_SECONDS)
            yield from self._note(now=True)
            return None
        finally:
            self._home.close()

    # -- what the job says ---------------------------------------------------------------------

    def _news(self) -> Iterator[Event]:
        try:
            for values in self._reader.read():
                yield from self._heard(event_from(values))
        except OSError as error:
            self._heard_all = False
            yield from self._trouble(f"The storage {self._place.url} does not answer ({error}).")
        else:
            self._heard_all = True
            yield from self._home.arrived()
            yield from self._note()

    def _heard(self, event: Event) -> Iterator[Event]:
        self._step = max(event.step, self._step) if isinstance(event, Step) else self._step
        if isinstance(event, Finished):
            self._finished = event
        elif isinstance(event, Saved):
            self._home.expect(event)
        else:
            if isinstance(event, Started):
                self._step, self._total, self._trains = event.step, event.total_steps, True
            yield event

    def _note(self, *, now: bool = False) -> Iterator[Event]:
        """Remember how far we have heard, after it was stored; never past the end, which is only
        remembered by what it brings home."""
        if self._finished or (not now and time.monotonic() - self._noted < NOTE_SECONDS):
            return
        self._noted = time.monotonic()
        heard = {
            "file": self._reader.number, "lines": self._reader.lines, "step": self._step,
            "total_steps": self._total,
        }  # fmt: skip
        if heard == self._sent.model_dump(include=set(heard)):
            return
        yield Saving(step=self._step)  # whoever hears this stores all that came before
        self._sent = self._sent.model_copy(update=heard).keep(self._run_dir)

    # -- how the cluster is --------------------------------------------------------------------

    def _look(self) -> Iterator[Event]:
        """Ask now and then how the job is; say when nobody answers, and when somebody does."""
        if time.monotonic() - self._looked < STATUS_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            found = self._ray.status(self._sent.submission)
        except NoAnswer as error:
            yield from self._trouble(error.text)
            return
        self._status, self._words = found or ("UNKNOWN", "")
        if self._lost:
            logger.info("the cluster answers again")
            self._lost = ""
            yield self._going_on()

    def _trouble(self, text: str) -> Iterator[Event]:
        if not self._lost:
            logger.warning("%s The run goes on there; trying again until there is an answer.", text)
            yield Loading(text=f"Waiting for the cluster: {text}")
        self._lost = self._lost or text

    def _going_on(self) -> Event:
        if self._total:
            return Working(text="Training", step=self._step, total_steps=self._total)
        return Loading(text="Waiting for the run on the cluster")

    # -- what a person wishes ------------------------------------------------------------------

    def _pass_on(self, wish: Literal["stop", "save", "sample"] | None) -> None:
        if wish is None or (wish == "stop" and self._asked):
            self._press()
            return
        if wish == "stop" and self._intent() is None:  # of a shutdown we will hear in a moment
            self._unexplained = self._unexplained or time.monotonic()
            if time.monotonic() - self._unexplained < EXPLAIN_SECONDS:
                return
        if wish == "stop":
            self._asked = time.monotonic()
        try:
            write_json(self._place, CONTROL, {"number": time.time_ns(), "wish": wish})
        except OSError as error:
            logger.warning("the cluster could not be asked to %s: %s", wish, error)
            self._asked = 0.0

    def _press(self) -> None:
        """End at once what has not begun, or does not stop when asked."""
        intent = self._intent()
        if not self._asked or intent is None or intent == "shutdown":
            return
        if self._trains and time.monotonic() - self._asked < PATIENCE_SECONDS[intent]:
            return
        if time.monotonic() - self._pressed < STATUS_SECONDS:
            return
        self._pressed, self._looked = time.monotonic(), 0.0  # look at once whether it helped
        try:
            self._ray.stop(self._sent.submission)
        except ClusterError as error:
            logger.warning("the run could not be ended on the cluster: %s", error.text)

    def _left_to_itself(self) -> bool:
        """Whether we were asked to stop, and the cluster does not answer."""
        intent = self._intent()
        if not (self._lost and self._asked and intent in ("cancel", "pause")):
            return False
        if time.monotonic() - self._asked < PATIENCE_SECONDS["cancel"]:
            return False
        logger.warning("the cluster does not answer; the wish to stop waits on the storage for it")
        return True

    # -- how it ended --------------------------------------------------------------------------

    def _end(self) -> Generator[Event, None, Finished | None]:
        """Bring everything home, tidy up, and say how it ended."""
        yield Loading(text="Bringing the run home")
        yield from self._news()  # what it said before the end that we have seen
        yield from self._home.arrived(wait=True)
        finished, error = self._finished, None
        try:
            self._home.bring_checkpoints()
            if finished is not None and finished.adapter:
                finished = self._home.bring_adapter(finished, self._spec)
        except OSError as trouble:
            raise ClusterError(
                f"What the run made could not be fetched from the storage {self._place.url} "
                f"({trouble}). It lies there: resume the run to fetch it."
            ) from trouble
        if finished is None:
            finished, error = self._without_a_word()
        self._wait_until_over()
        forget(self._run_dir)
        self._place.remove()
        if error is not None:
            raise error
        assert finished is not None
        yield finished
        return finished

    def _without_a_word(self) -> tuple[Finished | None, StudioError | None]:
        """How a job ended that did not say so itself."""
        if self._status == "STOPPED" and self._asked:
            return Finished(
                step=self._step, reason="stopped", adapter=None, first_loss=None, last_loss=None,
                eval_loss=None, seconds=0.0,
            ), None  # fmt: skip
        if self._status == "STOPPED":
            return None, ClusterError(
                "Somebody stopped the run on the cluster itself. Resume it to go on from its last "
                "checkpoint."
            )
        if self._status == "UNKNOWN":
            return None, ProcessLost("The cluster was started anew and has forgotten the run.")
        log = self._ray.log(self._sent.submission)
        logger.info("the end of the driver's log:\n%s", "\n".join(log.splitlines()[-LOG_LINES:]))
        if (said := error_in(log)) is not None:
            return None, said
        text = f"The run ended on the cluster without a word: {self._words[:300]}"
        return None, ProcessLost(text) if self._trains else ClusterError(text)

    def _wait_until_over(self) -> None:
        """Let the job leave its devices, so that the next one finds them free."""
        hurry = self._intent() == "cancel"
        deadline = time.monotonic() + (CANCEL_SECONDS if hurry else END_SECONDS)
        while self._status not in (*OVER, "UNKNOWN") and time.monotonic() < deadline:
            try:
                found = self._ray.status(self._sent.submission)
                self._status = found[0] if found else "UNKNOWN"
            except NoAnswer:
                pass
            time.sleep(POLL_SECONDS)

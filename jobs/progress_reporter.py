"""Reporting from a runner to the queue: a thread stores measurements and reads stop requests.

Training never waits for the database: events go into a buffer, which this thread stores several
times a second; the same statement returns a request to stop. If the job was given to another
attempt (`Fenced`), the process exits at once.
"""

import logging
import sqlite3
import threading
import time
from typing import Any, Literal

from jobs.claims import Claim, Fenced
from jobs.job_queue import JobStore
from jobs.job_record import Intent, Request
from jobs.processes import exit_now
from jobs.run_curves import (
    ANSWER_SERIES,
    ANSWER_TOKENS,
    EVAL_SERIES,
    FORGETTING,
    STEP_SERIES,
    Progress,
)
from studio.errors import DiskFull, StudioError
from studio.training import training_events

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
BEAT_SECONDS = 2.0
EXIT_FENCED = 70
TROUBLE = (StudioError, OSError, sqlite3.Error)
"""Errors of the database or its disk, which may pass."""


class Reporter:
    """The buffer and the thread between one attempt and the queue."""

    def __init__(self, store: JobStore, claim: Claim, *, seconds_before: float = 0) -> None:
        self._store, self._claim = store, claim
        self._seconds_before = seconds_before
        self._began = time.monotonic()
        self._guard = threading.Lock()  # around the buffer
        self._flushing = threading.Lock()  # one report at a time, in order
        self._buffer = Progress()
        self._result: dict[str, Any] = {}
        self._reported = 0.0
        self._terminated = threading.Event()
        self._request: Request | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reporter", daemon=True)
        self.intent: Intent | None = None
        self.interruptible = True  # exiting now would lose nothing
        self.full: DiskFull | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def terminate(self) -> None:
        """Stop the run because the system ends this process; safe in a signal handler."""
        self._terminated.set()

    def control(self) -> Literal["stop"] | Request | None:
        """Return the request that the training loop should obey now."""
        if self.intent or self.full or self._terminated.is_set():
            return "stop"
        request, self._request = self._request, None
        return request

    def record(self, event: training_events.Event) -> None:
        """Buffer an event; before a checkpoint, store everything first."""
        with self._guard:
            self._add(event)
        if isinstance(event, training_events.Saving):
            try:
                self._flush()
            except Fenced:
                exit_fenced()
            except TROUBLE as error:
                logger.error("before a checkpoint: %s", error)

    def close(self) -> dict[str, Any]:
        """Store the rest, stop the thread and return the result so far.

        Raises:
            Fenced: Another attempt has the job.
            DiskFull: The last measurements cannot be stored.
        """
        self._closed.set()
        self._thread.join()
        self._flush()
        return self._result | {"seconds": self._seconds()}

    def _add(self, event: training_events.Event) -> None:
        moment, new = time.time(), self._buffer
        if isinstance(event, training_events.Loading):
            new.phase = event.text
        elif isinstance(event, training_events.Working):
            new.phase, new.step, new.total_steps = event.text, event.step, event.total_steps
        elif isinstance(event, training_events.Started):
            self.interruptible = False
            new.phase, new.step, new.total_steps = "Training", event.step, event.total_steps
            self._result |= _start_facts(event) | {"training_seconds": self._seconds()}
            if event.rows_truncated:
                logger.warning(
                    "%d of %d rows are longer than the context and are cut",
                    event.rows_truncated, event.rows_kept,
                )  # fmt: skip
        elif isinstance(event, training_events.Step):
            new.step = event.step
            new.metrics += [
                (name, event.step, float(value), moment)
                for name in STEP_SERIES
                if (value := getattr(event, name)) is not None
            ]
            self._result["last_loss"] = event.loss
            if event.tokens_shared is not None:
                self._result["tokens_shared"] = event.tokens_shared
            if event.step == 1:
                self._result["first_loss"] = event.loss
        elif isinstance(event, training_events.Evaluated):
            values = {name: getattr(event, own) for name, own in EVAL_SERIES.items()}
            values = {name: value for name, value in values.items() if value is not None}
            new.metrics += [(name, event.step, value, moment) for name, value in values.items()]
            self._result |= values
            if event.token_accuracy is not None:
                self._result["token_accuracy"] = event.token_accuracy
            if event.sources:
                self._result["sources"] = event.sources
        elif isinstance(event, training_events.Forgotten):
            new.metrics.append((FORGETTING, event.step, event.forgetting, moment))
        elif isinstance(event, training_events.Sampled):
            new.samples.append((event.step, event.prompt, event.text))
            if event.answer_tokens is not None:
                new.metrics.append((ANSWER_TOKENS, event.step, event.answer_tokens, moment))
        elif isinstance(event, training_events.Asked):
            self._result["questions"] = event.questions
        elif isinstance(event, training_events.Answered):
            new.metrics += [
                (name, event.step, value, moment)
                for name in ANSWER_SERIES
                if (value := getattr(event, name)) is not None
            ]
            self._result["rows_ended"] = event.rows_ended
        elif isinstance(event, training_events.Saved):
            new.checkpoints.append((event.step, event.path, event.eval_loss))
        elif isinstance(event, training_events.Finished):
            new.step = event.step
            self._result |= _end_facts(event)

    def _loop(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            try:
                if self._terminated.is_set() and self.intent is None:
                    self._store.claims.ask_shutdown(self._claim)
                self._flush()
                if not self.interruptible and self._request is None:
                    self._request = self._store.claims.take_request(self._claim)
                if self.intent and self.interruptible:
                    self._exit_now()
            except Fenced:
                exit_fenced()
            except DiskFull as error:
                self.full = error  # the buffer stays; the loop stops and saves
            except TROUBLE as error:
                logger.error("the database cannot be used now (%s); trying again", error)
                self._closed.wait(BEAT_SECONDS)

    def _flush(self) -> None:
        with self._flushing:
            with self._guard:
                progress, self._buffer = self._buffer, Progress()
                progress.result = self._result | {"seconds": self._seconds()}
            try:
                if progress or time.monotonic() - self._reported > BEAT_SECONDS:
                    self.intent = self._store.claims.report(self._claim, progress)
                    self._reported = time.monotonic()
                else:
                    self.intent = self._store.claims.intent(self._claim)
            except TROUBLE:
                with self._guard:
                    self._buffer.prepend(progress)
                raise

    def _exit_now(self) -> None:
        self._store.claims.stopped(self._claim, result={"seconds": self._seconds()})
        logger.info("stopped before the first step, on request")
        exit_now(0)

    def _seconds(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._began, 3)


def exit_fenced() -> None:
    """Exit from a runner that may not report any more: another attempt has the job."""
    logger.warning("another attempt has the job; exiting")
    exit_now(EXIT_FENCED)


def _start_facts(event: training_events.Started) -> dict[str, Any]:
    return {
        "rows": {
            name: getattr(event, f"rows_{name}") for name in (
                "read", "kept", "dropped", "truncated", "trained", "held_out", "evaluated", "format"
            )
        },
        **{key: getattr(event, key) for key in _STARTED},
        "training_since": time.time(),
        "training_from_step": event.step,
    }  # fmt: skip


_STARTED = (
    "trainable_parameters", "total_parameters", "device", "dtype", "learning_rate", "longer_chosen",
)  # fmt: skip


def _end_facts(event: training_events.Finished) -> dict[str, Any]:
    facts = {
        "first_loss": event.first_loss, "last_loss": event.last_loss,
        "eval_loss": event.eval_loss, "adapter": event.adapter, "ended": event.reason,
        "note": event.note or None,
    }  # fmt: skip
    return {key: value for key, value in (facts | (event.facts or {})).items() if value is not None}

"""A runner's line to the queue: a thread that writes what happened and hears what is wanted.

Training never waits for the database: events go into a buffer, this thread stores them several
times a second and asks in the same breath whether to stop. When the job was given to another
attempt (`Fenced`), the process leaves at once.
"""

import logging
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jobs.claims import Claim, Fenced
from jobs.curves import Progress
from jobs.job import Intent, Request
from jobs.processes import leave
from jobs.store import JobStore
from studio.errors import DiskFull, HomeError
from studio.training import events

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
BEAT_SECONDS = 2.0
EXIT_FENCED = 70

_STEP_METRICS = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "epoch",
)  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Notes:
    """What happened and is not stored yet."""

    metrics: list[tuple[str, int, float, float]] = field(default_factory=list)
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    checkpoints: list[tuple[int, str, float | None]] = field(default_factory=list)
    step: int | None = None
    total_steps: int | None = None
    phase: str | None = None

    def __bool__(self) -> bool:
        lists = self.metrics or self.samples or self.checkpoints
        return bool(lists) or self.step is not None or self.phase is not None

    def prepend(self, older: "Notes") -> None:
        """Take back notes that could not be stored."""
        self.metrics[:0] = older.metrics
        self.samples[:0] = older.samples
        self.checkpoints[:0] = older.checkpoints
        self.step = older.step if self.step is None else self.step
        self.total_steps = older.total_steps if self.total_steps is None else self.total_steps
        self.phase = older.phase if self.phase is None else self.phase


class Line:
    """Buffer and thread between one attempt and the queue."""

    def __init__(self, store: JobStore, claim: Claim, *, seconds_before: float = 0) -> None:
        self._store, self._claim = store, claim
        self._seconds_before = seconds_before
        self._began = time.monotonic()
        self._guard = threading.Lock()  # around the buffer
        self._flushing = threading.Lock()  # one report at a time, in order
        self._notes = Notes()
        self._result: dict[str, Any] = {}
        self._spoke = 0.0
        self._terminated = threading.Event()
        self._request: Request | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="line", daemon=True)
        self.intent: Intent | None = None
        self.interruptible = True  # nothing is lost by leaving at once
        self.full: DiskFull | None = None

    def start(self) -> None:
        """Begin to write and listen."""
        self._thread.start()

    def terminate(self) -> None:
        """The system wants this process gone (safe to call from a signal handler)."""
        self._terminated.set()

    def control(self) -> Literal["stop"] | Request | None:
        """What the training loop should do now."""
        if self.intent or self.full or self._terminated.is_set():
            return "stop"
        request, self._request = self._request, None
        return request

    def hear(self, event: events.Event) -> None:
        """Take one event of the run; before a checkpoint, store everything first."""
        with self._guard:
            self._take(event)
        if isinstance(event, events.Saving):
            try:
                self._flush()
            except Fenced:
                leave_fenced()
            except (DiskFull, HomeError) as error:
                logger.error("before a checkpoint: %s", error.text)

    def close(self) -> dict[str, Any]:
        """Write what is left, stop the thread and return the run's result so far.

        Raises:
            Fenced: The job is no longer ours.
            DiskFull: There is no room for the last measurements.
        """
        self._closed.set()
        self._thread.join()
        self._flush()
        return self._result | {"seconds": self._seconds()}

    def _take(self, event: events.Event) -> None:
        moment, notes = time.time(), self._notes
        if isinstance(event, events.Loading):
            notes.phase = event.text
        elif isinstance(event, events.Working):
            notes.phase, notes.step, notes.total_steps = event.text, event.step, event.total_steps
        elif isinstance(event, events.Started):
            self.interruptible = False
            notes.phase, notes.step, notes.total_steps = "Training", event.step, event.total_steps
            self._result |= _start_facts(event)
        elif isinstance(event, events.Step):
            notes.step = event.step
            notes.metrics += [
                (name, event.step, float(getattr(event, name)), moment) for name in _STEP_METRICS
            ]
            self._result["last_loss"] = event.loss
            if event.step == 1:
                self._result["first_loss"] = event.loss
        elif isinstance(event, events.Evaluated):
            notes.metrics.append(("eval_loss", event.step, event.eval_loss, moment))
            self._result["eval_loss"] = event.eval_loss
            if event.token_accuracy is not None:
                notes.metrics.append(("token_accuracy", event.step, event.token_accuracy, moment))
                self._result["token_accuracy"] = event.token_accuracy
        elif isinstance(event, events.Sampled):
            notes.samples.append((event.step, event.prompt, event.text))
        elif isinstance(event, events.Saved):
            notes.checkpoints.append((event.step, event.path, event.eval_loss))
        elif isinstance(event, events.Finished):
            notes.step = event.step
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
                    self._leave_at_once()
            except Fenced:
                leave_fenced()
            except DiskFull as error:
                self.full = error  # what is buffered stays; the loop is asked to stop and save
            except HomeError:
                logger.exception("the database did not answer; trying again")

    def _flush(self) -> None:
        with self._flushing:
            with self._guard:
                notes, self._notes = self._notes, Notes()
                result = self._result | {"seconds": self._seconds()}
            try:
                if notes:
                    progress = Progress(**asdict(notes), result=result)
                    self.intent = self._store.claims.report(self._claim, progress)
                    self._spoke = time.monotonic()
                else:
                    beat = time.monotonic() - self._spoke > BEAT_SECONDS
                    self.intent = self._store.claims.intent(self._claim, beat=beat)
                    self._spoke = time.monotonic() if beat else self._spoke
            except (DiskFull, HomeError):
                with self._guard:
                    self._notes.prepend(notes)
                raise

    def _leave_at_once(self) -> None:
        self._store.claims.stopped(self._claim, result={"seconds": self._seconds()})
        logger.info("stopped before the first step, as asked")
        leave(0)

    def _seconds(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._began, 3)


def leave_fenced() -> None:
    """The job belongs to another attempt."""
    logger.warning("this attempt no longer owns the job; leaving")
    leave(EXIT_FENCED)


def _start_facts(event: events.Started) -> dict[str, Any]:
    return {
        "rows": {
            "read": event.rows_read, "kept": event.rows_kept, "dropped": event.rows_dropped,
        },
        "trainable_parameters": event.trainable_parameters,
        "total_parameters": event.total_parameters,
        "device": event.device,
        "dtype": event.dtype,
        "training_since": time.time(),
        "training_from_step": event.step,
    }  # fmt: skip


def _end_facts(event: events.Finished) -> dict[str, Any]:
    facts = {
        "first_loss": event.first_loss, "last_loss": event.last_loss,
        "eval_loss": event.eval_loss, "adapter": event.adapter, "ended": event.reason,
        "note": event.note or None,
    }  # fmt: skip
    return {key: value for key, value in (facts | (event.facts or {})).items() if value is not None}

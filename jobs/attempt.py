"""One attempt at a job inside a runner: what happens goes to the queue and the log, then its end.

A runner has one, or several when siblings train together in its process.
"""

import errno
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from jobs import cluster
from jobs.checkpoints import newest_step
from jobs.claims import Claim, Fenced
from jobs.kinds import Work
from jobs.processes import leave
from jobs.reporting import Line
from jobs.store import JobStore
from studio.errors import DiskFull, OutOfMemory, ProcessLost, StudioError, is_disk_full
from studio.home import sweep
from studio.training import events

SPEAK_SECONDS = 2


class Attempt:
    """A claim that is worked on in this process."""

    def __init__(
        self, store: JobStore, claim: Claim, log: logging.Logger, *, alone: bool = True
    ) -> None:
        """Make the run's folder ready; the claim is registered and its folder locked."""
        self._store, self._claim, self._log = store, claim, log
        self._spoke = 0.0
        self._finished: events.Finished | None = None
        self.run_dir = store.home.run(claim.job)
        self.job = store.get(claim.job)
        self.line = Line(store, claim, seconds_before=float(self.job.result.get("seconds", 0)))
        # Siblings would end with this process, and what runs on a cluster must be stopped there.
        self.line.interruptible = alone and not cluster.is_slot(claim.device)
        _write_spec(self.run_dir, self.job.spec)
        sweep(self.run_dir)
        sweep(self.run_dir / "checkpoints")

    @property
    def work(self) -> Work:
        """What the job's kind gets."""
        return Work(
            spec=self.job.spec, run_dir=self.run_dir, home=self._store.home,
            control=self.line.control, intent=lambda: self.line.intent,
            cluster=cluster.chosen(self._store), device=self._claim.device,
        )  # fmt: skip

    def hear(self, event: events.Event) -> None:
        """Take one event of the work."""
        self.line.hear(event)
        if isinstance(event, events.Finished):
            self._finished = event
        if isinstance(event, events.Saving):
            return
        if not isinstance(event, events.Step) or time.monotonic() - self._spoke > SPEAK_SECONDS:
            self._spoke = time.monotonic()
            self._log.info("%s", _as_line(event))

    def end(self) -> None:
        """Write how the work ended, all its events being heard.

        Raises:
            Fenced: The job is no longer ours.
        """
        try:
            result = self.line.close()
        except Fenced:
            raise
        except Exception as error:
            self.fail(error)
            return
        if self._finished is not None and self._finished.reason == "completed":
            self._store.claims.finish(self._claim, "succeeded", result=result)
        elif self.line.full is not None:
            self._pause_for_room(self.line.full)
        else:
            state = self._store.claims.stopped(self._claim, result=result)
            self._log.info("stopped as asked: %s", state)

    def fail(self, error: Exception) -> None:
        """Write that the work failed, and why.

        Raises:
            Fenced: The job is no longer ours.
        """
        fault = as_studio_error(error, kind=self.job.kind)
        if fault is not error:
            self._log.error("the run failed", exc_info=error)
        else:
            self._log.error("the run failed: %s", fault.text)
        result: dict[str, Any] = {}
        try:
            result = self.line.close()
        except StudioError as late:
            self._log.error("the last measurements could not be stored: %s", late.text)
        if isinstance(fault, DiskFull):
            self._pause_for_room(fault)
        elif isinstance(fault, ProcessLost):  # as if this process had died: on from the checkpoint
            newest = newest_step(self.run_dir)
            self._store.claims.lost(self._claim, why=fault.text, newest_step=newest)
        else:
            error_text = (fault.kind, fault.text)
            self._store.claims.finish(self._claim, "failed", result=result, error=error_text)

    def _pause_for_room(self, fault: DiskFull) -> None:
        for _ in range(50):  # a full disk often has room for one small row a moment later
            try:
                self._store.claims.ask_pause(self._claim, why=fault.text)
                self._store.claims.stopped(self._claim, error=(fault.kind, fault.text))
                return
            except DiskFull:
                time.sleep(0.1)
        leave(errno.ENOSPC)  # the supervisor sees a dead process and rescues the job


def as_studio_error(error: Exception, *, kind: str = "train") -> StudioError:
    """Turn any exception of a job into one sentence for the person; only a run has checkpoints."""
    if isinstance(error, StudioError):
        return error
    if is_disk_full(error):
        return DiskFull("The disk is full. Free some room; the last checkpoint is intact.")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(
            "The device ran out of memory. Halve the batch size and double the accumulation, "
            "shorten the maximum length, or turn gradient checkpointing on."
        )
    first = (str(error).strip().splitlines() or [""])[0][:300]
    trains = kind == "train"
    return StudioError(
        f"The {'run' if trains else 'job'} stopped on something nobody foresaw "
        f"({type(error).__name__}: {first}). The log holds the details"
        + ("; if it had saved a checkpoint, resume it from there." if trains else ".")
    )


def _write_spec(run_dir: Path, spec: dict[str, Any]) -> None:
    import yaml

    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    temporary = run_dir / ".tmp-spec.yaml"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, run_dir / "spec.yaml")


def _as_line(event: events.Event) -> str:
    values = event.as_dict()
    kind, step = values.pop("event"), values.pop("step")
    if kind == "loading":
        return str(values["text"])
    parts = [
        f"{key} {value:.5g}"
        if isinstance(value, float)
        else f"{key} {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value not in (None, "")
    ]
    return f"step {step} {kind}: " + ", ".join(parts)

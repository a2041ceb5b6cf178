"""The runner: the process that executes one job, or several siblings that train together.

It outlives the supervisor that started it; the next supervisor finds it in the database. With
`--spare` it imports everything slow and waits on standard input for a claim, and exits when that
closes, which is when its supervisor ends. Before there is a claim it starts no thread of torch and
uses no GPU.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs import job_kinds, ray_cluster, send_to_trackers
from jobs.claims import Claim, Fenced, device_of
from jobs.copy_and_extend_runs import settled_spec
from jobs.job_kinds import BESIDE, Work
from jobs.job_queue import JobStore
from jobs.processes import FileLock, exit_now, me
from jobs.progress_reporter import Reporter, exit_fenced
from jobs.run_folder import newest_step
from studio import atomic, offline
from studio.errors import (
    DiskFull,
    OutOfMemory,
    ProcessLost,
    StudioError,
    first_line,
    is_disk_full,
    is_out_of_memory,
)
from studio.gpus import visible_devices
from studio.home import Home, open_home, sweep
from studio.training import training_events
from studio.training.training_events import Event

LOG_STEP_SECONDS = 2.0


class Attempt:
    """One claim, executed in this process."""

    def __init__(
        self, store: JobStore, claim: Claim, log: logging.Logger, *, alone: bool = True
    ) -> None:
        """Prepare the run's folder, which is locked, for the claim, which is registered."""
        self._store, self._claim, self._log = store, claim, log
        self._logged = 0.0
        self._finished: training_events.Finished | None = None
        self.run_dir = store.home.run(claim.job)
        self.job = store.get(claim.job)
        self.reporter = Reporter(
            store, claim, seconds_before=float(self.job.result.get("seconds", 0))
        )
        newest = newest_step(self.run_dir)
        self.trackers = send_to_trackers.live(store, self.job, log, first_step=newest)
        # Siblings would end with this process, and a cluster's job must be stopped there.
        self.reporter.interruptible = alone and not ray_cluster.is_slot(claim.device)
        spec = yaml.safe_dump(self.job.spec, sort_keys=False, allow_unicode=True)
        atomic.write(self.run_dir / "spec.yaml", spec)
        sweep(self.run_dir)
        sweep(self.run_dir / "checkpoints")

    @property
    def work(self) -> Work:
        """Return the arguments of the job's kind."""
        return Work(
            spec=settled_spec(self._store, self.job), run_dir=self.run_dir, home=self._store.home,
            control=self.reporter.control, intent=lambda: self.reporter.intent,
            cluster=ray_cluster.chosen(self._store), device=self._claim.device,
        )  # fmt: skip

    def record(self, event: training_events.Event) -> None:
        """Report, track and log an event."""
        self.reporter.record(event)
        self.trackers.record(event.step, send_to_trackers.values_of(event))
        if isinstance(event, training_events.Finished):
            self._finished = event
        often = isinstance(event, training_events.Step)
        due = not often or time.monotonic() - self._logged > LOG_STEP_SECONDS
        if due and not isinstance(event, training_events.Saving):
            self._logged = time.monotonic()
            self._log.info("%s", _as_line(event))

    def end(self) -> None:
        """Record how the job ended, after its last event.

        Raises:
            Fenced: Another attempt has the job.
        """
        try:
            result = self.reporter.close()
        except Fenced:
            raise
        except Exception as error:
            self.fail(error)
            return
        done = self._finished is not None and self._finished.reason == "completed"
        if done:
            self._store.claims.finish(self._claim, "succeeded", result=result)
        elif self.reporter.full is not None:
            self._pause_for_room(self.reporter.full)
        else:
            state = self._store.claims.stopped(self._claim, result=result)
            self._log.info("stopped on request: %s", state)
        self.trackers.close("succeeded" if done else "stopped")

    def fail(self, error: Exception) -> None:
        """Record that the job failed, and why.

        Raises:
            Fenced: Another attempt has the job.
        """
        fault = as_studio_error(error, kind=self.job.kind)
        if fault is not error:
            self._log.error("the run failed", exc_info=error)
        else:
            self._log.error("the run failed: %s", fault.text)
        result: dict[str, Any] = {}
        try:
            result = self.reporter.close()
        except StudioError as late:
            self._log.error("the last measurements could not be stored: %s", late.text)
        if isinstance(fault, DiskFull):
            self._pause_for_room(fault)
        elif isinstance(fault, ProcessLost):  # as if this process had died
            newest = newest_step(self.run_dir)
            self._store.claims.lost(self._claim, why=fault.text, newest_step=newest)
        else:
            error_text = (fault.kind, fault.text)
            self._store.claims.finish(self._claim, "failed", result=result, error=error_text)
        self.trackers.close("failed")

    def _pause_for_room(self, fault: DiskFull) -> None:
        folder, newest = fault.folder or self._store.home.path, newest_step(self.run_dir)
        while not folder.exists() and folder != folder.parent:  # removed with what was written
            folder = folder.parent
        room = {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free}
        for _ in range(50):  # a full disk often has room for one small row soon after
            try:
                self._store.claims.ask_pause(self._claim, why=fault.text)
                self._store.claims.stopped(
                    self._claim, result={"full_disk": room}, error=(fault.kind, fault.text),
                    newest_step=newest,
                )  # fmt: skip
                return
            except DiskFull:
                time.sleep(0.1)
        exit_now(errno.ENOSPC)  # the supervisor sees a dead process and rescues the job


def as_studio_error(error: Exception, *, kind: str = "train") -> StudioError:
    """Return a runner's exception as an error for the user; only a run has checkpoints."""
    if isinstance(error, StudioError):
        return error
    if is_disk_full(error):
        return DiskFull("The disk is full. Free some room; the last checkpoint is intact.")
    if is_out_of_memory(error) and kind != "train":
        return OutOfMemory(
            "The device ran out of memory: end what else uses it, choose the CPU where the job "
            "has a device, or use a smaller model."
        )
    if is_out_of_memory(error):
        return OutOfMemory(
            "The device ran out of memory. Halve the batch size and double the accumulation, "
            "shorten the maximum length, or turn gradient checkpointing on."
        )
    trains = kind == "train"
    return StudioError(
        f"The {'run' if trains else 'job'} stopped on an unexpected error "
        f"({type(error).__name__}: {first_line(error)}). The log holds the details"
        + ("; if it had saved a checkpoint, resume it from there." if trains else ".")
    )


def _as_line(event: training_events.Event) -> str:
    """Return an event in words; its tables are in the report and on the page."""
    values = event.as_dict()
    kind, step = values.pop("event"), values.pop("step")
    if kind == "loading":
        return str(values["text"])
    parts = [
        f"{key} {value:.5g}"
        if isinstance(value, float)
        else f"{key} {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value not in (None, "") and not isinstance(value, (dict, list))
    ]
    return f"step {step} {kind}" + (": " + ", ".join(parts) if parts else "")


logger = logging.getLogger(__name__)

WARM = (
    "torch", "transformers", "accelerate", "studio.models.loading", "studio.backbone",
    "studio.data.prepare_run_data", "studio.training.train_run", "studio.training.siblings",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
)  # fmt: skip
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
LOCK_SECONDS = 20.0
LOG_FORMAT, LOG_DATES = "%(asctime)sZ %(message)s", "%Y-%m-%d %H:%M:%S"


def main(arguments: Sequence[str] | None = None) -> None:
    """Start as a runner: execute a claim from the arguments or, as a spare, from standard input."""
    parser = argparse.ArgumentParser(prog="jobs.runner")
    parser.add_argument("--home", required=True)
    parser.add_argument("--spare", action="store_true")
    parser.add_argument("--claim", help="job:attempt:device, siblings joined by +")
    options = parser.parse_args(arguments)
    if options.spare:
        warm_up()
        line = sys.stdin.readline().strip()
        if not line:
            return  # the supervisor ended
        options.claim = line
    run(open_home(options.home), [_claim(text) for text in options.claim.split("+")])


def _claim(text: str) -> Claim:
    job, attempt, device = text.split(":", 2)
    return Claim(int(job), int(attempt), device)


def warm_up() -> None:
    """Import in a spare runner what every run needs; the run reports a part that is missing."""
    import importlib

    for name in WARM:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"could not warm up {name}: {error}", file=sys.stderr)


def run(home: Home, claims: Sequence[Claim]) -> None:
    """Execute the runner's claim, or siblings together, until all have ended, then exit."""
    first = claims[0]
    run_dir = home.run(first.job)
    run_dir.mkdir(parents=True, exist_ok=True)
    _log_to(run_dir / "log.txt")
    _use_device(device_of(first.device))
    offline.apply(home)
    store = JobStore(home)
    try:
        with contextlib.ExitStack() as locks:
            attempts = [_begin(store, claim, claims, locks) for claim in claims]
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: _terminate(attempts))
            _work(attempts)
    except Fenced:
        exit_fenced()
    store.close()
    exit_now(0)


def _terminate(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        attempt.reporter.terminate()


def _begin(
    store: JobStore, claim: Claim, claims: Sequence[Claim], locks: contextlib.ExitStack
) -> Attempt:
    run_dir = store.home.run(claim.job)
    run_dir.mkdir(parents=True, exist_ok=True)
    log = logger if claim is claims[0] else _log_beside(run_dir / "log.txt", claim)
    store.claims.register(claim, me(), from_step=newest_step(run_dir))
    log.info("attempt %d on %s, process %d", claim.attempt, claim.device, os.getpid())
    if len(claims) > 1:
        numbers = ", ".join(str(one.job) for one in claims)
        log.info("jobs %s train together; other output is in the log of job %d",
                 numbers, claims[0].job)  # fmt: skip
    locks.enter_context(FileLock(run_dir / ".lock").held(timeout_seconds=LOCK_SECONDS))
    return Attempt(store, claim, log, alone=len(claims) == 1)


def _work(attempts: Sequence[Attempt]) -> None:
    """Execute attempts; of several, each ends with its last event or its own exception."""
    left, together = dict(enumerate(attempts)), len(attempts) > 1
    for attempt in attempts:
        attempt.reporter.start()
    try:
        for number, event in _events(attempts):
            if isinstance(event, Exception):
                left.pop(number).fail(event)
                continue
            left[number].record(event)
            if together and isinstance(event, training_events.Finished):
                left.pop(number).end()
    except Fenced:
        raise
    except Exception as error:
        for attempt in left.values():
            attempt.fail(error)
    else:
        for attempt in left.values():
            attempt.end()


def _events(attempts: Sequence[Attempt]) -> Iterable[tuple[int, Event | Exception]]:
    """Yield what the attempts do, each event with the index of its attempt."""
    works = [attempt.work for attempt in attempts]
    if len(works) > 1:
        return job_kinds.train_together(works)
    return ((0, event) for event in job_kinds.named(attempts[0].job.kind)(works[0]))


def _use_device(device: str) -> None:
    # Every library then counts the job's devices from 0.
    os.environ.update(visible_devices("cpu" if device in BESIDE else device))
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"  # steps differ in their tokens


def _log_to(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, force=True, format=LOG_FORMAT, datefmt=LOG_DATES
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request


def _log_beside(path: Path, claim: Claim) -> logging.Logger:
    """Return the log of a sibling; output of libraries goes to the first one's."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATES))
    log = logging.Logger(f"job {claim.job}", logging.INFO)
    log.addHandler(handler)
    return log


if __name__ == "__main__":
    main()

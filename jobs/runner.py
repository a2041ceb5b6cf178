"""The process that works on one job: registers itself, trains, writes how it ended, leaves.

It belongs to nobody: the supervisor that started it may die, the next one finds it in the database.
Started with `--spare` it first imports everything slow and then waits on its standard input for a
claim; when that closes, because its supervisor ended, it ends too. No thread of torch and no GPU is
touched before there is a claim.
"""

import argparse
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import cluster, kinds
from jobs.checkpoints import newest_step
from jobs.claims import Claim, Fenced
from jobs.filelock import FileLock
from jobs.processes import me
from jobs.reporting import Line, leave, leave_fenced
from jobs.store import JobStore
from studio.errors import DiskFull, OutOfMemory, ProcessLost, StudioError
from studio.home import Home, open_home, sweep
from studio.training import events

logger = logging.getLogger(__name__)

WARM = (
    "torch", "transformers", "accelerate", "studio.models.loading", "studio.methods.layer",
    "studio.data.prepare", "studio.training.run", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers",
)  # fmt: skip
LOCK_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one claim, given as arguments or, for a spare, as a line of standard input."""
    parser = argparse.ArgumentParser(prog="jobs.runner")
    parser.add_argument("--home", required=True)
    parser.add_argument("--spare", action="store_true")
    parser.add_argument("--claim", help="job:attempt:device")
    options = parser.parse_args(arguments)
    if options.spare:
        warm_up()
        line = sys.stdin.readline().strip()
        if not line:
            return  # the supervisor is gone
        options.claim = line
    job, attempt, device = options.claim.split(":", 2)
    run(open_home(options.home), Claim(int(job), int(attempt), device))


def warm_up() -> None:
    """Import what every training run needs; a part that is missing is found out by the run."""
    import importlib

    for name in WARM:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"could not warm up {name}: {error}", file=sys.stderr)


def run(home: Home, claim: Claim) -> None:
    """Work on a claim until it ends, one way or another; never returns."""
    run_dir = home.run(claim.job)
    run_dir.mkdir(parents=True, exist_ok=True)
    _log_to(run_dir / "log.txt")
    _use_device(claim.device)
    store = JobStore(home)
    try:
        store.claims.register(claim, me(), from_step=newest_step(run_dir))
        logger.info("attempt %d on %s, process %d", claim.attempt, claim.device, os.getpid())
        lock = FileLock(run_dir / ".lock")
        with lock.held(timeout_seconds=LOCK_SECONDS):
            _work(store, claim, run_dir)
    except Fenced:
        leave_fenced()
    store.close()
    leave(0)


def _work(store: JobStore, claim: Claim, run_dir: Path) -> None:
    job = store.get(claim.job)
    _write_spec(run_dir, job.spec)
    sweep(run_dir)
    sweep(run_dir / "checkpoints")
    line = Line(store, claim, seconds_before=float(job.result.get("seconds", 0)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: line.terminate())
    line.interruptible = not cluster.is_slot(claim.device)  # it must be stopped there as well
    line.start()
    try:
        finished = _consume(kinds.named(job.kind)(
            kinds.Work(
                spec=job.spec, run_dir=run_dir, home=store.home, control=line.control,
                intent=lambda: line.intent, cluster=cluster.chosen(store),
            )
        ), line)  # fmt: skip
        result = line.close()
    except Fenced:
        raise
    except Exception as error:
        _write_failure(store, claim, line, error)
        return
    if finished is not None and finished.reason == "completed":
        store.claims.finish(claim, "succeeded", result=result)
    elif line.full is not None:
        _pause_for_room(store, claim, line.full)
    else:
        state = store.claims.stopped(claim, result=result)
        logger.info("stopped as asked: %s", state)


def _consume(work: Any, line: Line) -> events.Finished | None:
    finished, spoke = None, 0.0
    for event in work:
        line.hear(event)
        if isinstance(event, events.Finished):
            finished = event
        if isinstance(event, events.Saving):
            continue
        if not isinstance(event, events.Step) or time.monotonic() - spoke > 2:
            spoke = time.monotonic()
            logger.info("%s", _as_line(event))
    return finished


def _write_failure(store: JobStore, claim: Claim, line: Line, error: Exception) -> None:
    fault = as_studio_error(error)
    if fault is not error:
        logger.error("the run failed", exc_info=error)
    else:
        logger.error("the run failed: %s", fault.text)
    result: dict[str, Any] = {}
    try:
        result = line.close()
    except StudioError as late:
        logger.error("the last measurements could not be stored: %s", late.text)
    if isinstance(fault, DiskFull):
        _pause_for_room(store, claim, fault)
    elif isinstance(fault, ProcessLost):  # as if this process had died: go on from the checkpoint
        store.claims.lost(claim, why=fault.text, newest_step=newest_step(store.home.run(claim.job)))
    else:
        store.claims.finish(claim, "failed", result=result, error=(fault.kind, fault.text))


def _pause_for_room(store: JobStore, claim: Claim, fault: DiskFull) -> None:
    for _ in range(50):  # a full disk often has room for one small row a moment later
        try:
            store.claims.ask_pause(claim, why=fault.text)
            store.claims.stopped(claim, error=(fault.kind, fault.text))
            return
        except DiskFull:
            time.sleep(0.1)
    leave(errno.ENOSPC)  # the supervisor sees a dead process and rescues the job


def as_studio_error(error: Exception) -> StudioError:
    """Turn any exception of a run into one sentence for the person."""
    if isinstance(error, StudioError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("The disk is full. Free some room; the last checkpoint is intact.")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(
            "The device ran out of memory. Halve the batch size and double the accumulation, "
            "shorten the maximum length, or turn gradient checkpointing on."
        )
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return StudioError(
        f"The run stopped on something nobody foresaw ({type(error).__name__}: {first}). "
        "The log holds the details; it can be resumed from its last checkpoint."
    )


def _write_spec(run_dir: Path, spec: dict[str, Any]) -> None:
    import yaml

    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    temporary = run_dir / ".tmp-spec.yaml"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, run_dir / "spec.yaml")


def _use_device(device: str) -> None:
    # Whatever the job imports sees the devices it was given, counted from 0.
    if device.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = device.replace("cuda:", "")
    elif device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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
        level=logging.INFO, stream=sys.stderr, force=True,
        format="%(asctime)sZ %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
    )  # fmt: skip


def _as_line(event: events.Event) -> str:
    values = event.as_dict()
    kind, step = values.pop("event"), values.pop("step")
    if kind == "loading":
        return str(values["text"])
    parts = [
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {json.dumps(value)}"
        for key, value in values.items()
        if value is not None
    ]
    return f"step {step} {kind}: " + ", ".join(parts)


if __name__ == "__main__":
    main()

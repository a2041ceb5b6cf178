"""The process that works on a job, or on siblings together: registers, trains, says how it ended.

It belongs to nobody: the supervisor that started it may die, the next one finds it in the database.
Started with `--spare` it first imports everything slow and then waits on its standard input for a
claim; when that closes, because its supervisor ended, it ends too. No thread of torch and no GPU is
touched before there is a claim.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import kinds
from jobs.attempt import Attempt
from jobs.checkpoints import newest_step
from jobs.claims import Claim, Fenced
from jobs.filelock import FileLock
from jobs.processes import leave, me
from jobs.reporting import leave_fenced
from jobs.seats import device_of
from jobs.store import JobStore
from studio.home import Home, open_home
from studio.training import events

logger = logging.getLogger(__name__)

WARM = (
    "torch", "transformers", "accelerate", "studio.models.loading", "studio.methods.layer",
    "studio.data.prepare", "studio.training.run", "studio.training.siblings",
    "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
)  # fmt: skip
LOCK_SECONDS = 20.0
LOG_FORMAT, LOG_DATES = "%(asctime)sZ %(message)s", "%Y-%m-%d %H:%M:%S"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one claim, given as arguments or, for a spare, as a line of standard input."""
    parser = argparse.ArgumentParser(prog="jobs.runner")
    parser.add_argument("--home", required=True)
    parser.add_argument("--spare", action="store_true")
    parser.add_argument("--claim", help="job:attempt:device, siblings joined by +")
    options = parser.parse_args(arguments)
    if options.spare:
        warm_up()
        line = sys.stdin.readline().strip()
        if not line:
            return  # the supervisor is gone
        options.claim = line
    run(open_home(options.home), [_claim(text) for text in options.claim.split("+")])


def _claim(text: str) -> Claim:
    job, attempt, device = text.split(":", 2)
    return Claim(int(job), int(attempt), device)


def warm_up() -> None:
    """Import what every training run needs; a part that is missing is found out by the run."""
    import importlib

    for name in WARM:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"could not warm up {name}: {error}", file=sys.stderr)


def run(home: Home, claims: Sequence[Claim]) -> None:
    """Work on a claim, or on siblings together, until all have ended; never returns."""
    first = claims[0]
    run_dir = home.run(first.job)
    run_dir.mkdir(parents=True, exist_ok=True)
    _log_to(run_dir / "log.txt")
    _use_device(device_of(first.device))
    store = JobStore(home)
    try:
        with contextlib.ExitStack() as locks:
            attempts = [_begin(store, claim, claims, locks) for claim in claims]
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: _terminate(attempts))
            if len(attempts) == 1:
                _work(attempts[0])
            else:
                _work_together(attempts)
    except Fenced:
        leave_fenced()
    store.close()
    leave(0)


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
        log.info("jobs %s train together; what else is said is in job %d's log",
                 numbers, claims[0].job)  # fmt: skip
    locks.enter_context(FileLock(run_dir / ".lock").held(timeout_seconds=LOCK_SECONDS))
    return Attempt(store, claim, log, alone=len(claims) == 1)


def _terminate(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        attempt.line.terminate()


def _work(attempt: Attempt) -> None:
    attempt.line.start()
    try:
        for event in kinds.named(attempt.job.kind)(attempt.work):
            attempt.hear(event)
    except Fenced:
        raise
    except Exception as error:
        attempt.fail(error)
    else:
        attempt.end()


def _work_together(attempts: Sequence[Attempt]) -> None:
    left = dict(enumerate(attempts))
    for attempt in attempts:
        attempt.line.start()
    try:
        for number, heard in kinds.train_together([attempt.work for attempt in attempts]):
            if isinstance(heard, Exception):
                left.pop(number).fail(heard)
                continue
            left[number].hear(heard)
            if isinstance(heard, events.Finished):
                left.pop(number).end()
    except Fenced:
        raise
    except Exception as error:
        for attempt in left.values():
            attempt.fail(error)


def _use_device(device: str) -> None:
    # Whatever the job imports sees the devices it was given, counted from 0.
    if device.startswith("cuda:"):
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts, who named it
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
        level=logging.INFO, stream=sys.stderr, force=True, format=LOG_FORMAT, datefmt=LOG_DATES
    )


def _log_beside(path: Path, claim: Claim) -> logging.Logger:
    """The log of a sibling; what libraries print goes to the first one's."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATES))
    log = logging.Logger(f"job {claim.job}", logging.INFO)
    log.addHandler(handler)
    return log


if __name__ == "__main__":
    main()

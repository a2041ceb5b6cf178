"""Driver and workers of one run on the cluster: `python -m studio.cluster.driver URL` as a Ray job.

The driver starts Ray Train's TorchTrainer, which restarts the workers when one is lost; they resume
from the newest checkpoint on the storage. When their memory was not enough, the driver starts them
again with the remedy that they wrote there. Workers train with the same generator of events as at
home; the first one reports for all, and a checkpoint is on the storage before its event.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.cluster.shared_storage import (
    ADAPTER,
    CHECKPOINTS,
    CONTROL,
    ERROR,
    FOLDER,
    MARK,
    PACKED,
    REPORT,
    EventWriter,
    Order,
    Storage,
    order_in,
    read_json,
    write_json,
)
from studio.errors import (
    ClusterError,
    InputError,
    OutOfMemory,
    ProcessLost,
    RunError,
    StudioError,
    revived,
)
from studio.home import open_home
from studio.job_request import Command
from studio.spec import RunSpec
from studio.training import transfer_run
from studio.training.training_events import Event, Finished, Loading, Saved, Saving
from studio.training.transfer_run import CHANGES

logger = logging.getLogger(__name__)
RECEIVE_SECONDS = 0.5
MOST_FAILURES = 3


def work(config: dict[str, Any]) -> None:
    """Train as one worker; Ray Train calls this on each."""
    from ray.train import get_context

    storage, rank = Storage(config["place"]), get_context().get_world_rank()
    if storage.exists(ERROR):
        return  # it failed with an error that Ray's retry would meet again
    try:
        with tempfile.TemporaryDirectory(prefix="studio-") as scratch:
            reporter = _Reporter(storage, config.get("files", 1)) if rank == 0 else None
            with closing(reporter) if reporter else nullcontext():
                _train(storage, Path(scratch), reporter, size=get_context().get_world_size())
    except StudioError as error:
        try:
            # A worker that fails makes others fail: the first error is the cause, or the memory.
            if isinstance(error, OutOfMemory) or not storage.exists(ERROR):
                write_json(storage, ERROR, error.as_dict())
        except OSError:
            logger.error("%s", error.text)
        raise


def _train(storage: Storage, scratch: Path, reporter: _Reporter | None, *, size: int) -> None:
    from studio.training.fit_in_memory import retry_changes  # imports numpy
    from studio.training.train_run import train

    order = order_in(storage)
    folder = storage.local_path(PACKED, scratch)
    changes = read_json(storage, CHANGES) or {}
    spec = _local_spec(order, folder, storage, scratch, size).with_values(changes)
    run_dir, home = scratch / "run", open_home(folder / "home")
    _fetch_checkpoints(storage, run_dir / CHECKPOINTS)
    control = reporter.control if reporter else lambda: None
    try:
        for event in train(
            spec, run_dir=run_dir, home=home, control=control, in_process_group=size > 1
        ):
            if reporter:
                reporter.report(event, run_dir)
    except OutOfMemory as error:
        if size > 1 and (more := retry_changes(spec, error)):
            write_json(storage, CHANGES, changes | more)
        raise


def _local_spec(order: Order, folder: Path, storage: Storage, scratch: Path, size: int) -> RunSpec:
    """Return the spec with this worker's device and paths."""
    from ray.train.torch import get_device

    spec = transfer_run.spec_in(folder)
    changes: dict[str, Any] = {
        "train.device": str(get_device()), "train.num_processes": size,
        "train.fsdp": spec.train.fsdp and size > 1,
    }  # fmt: skip
    if order.model:
        root, _, name = order.model.rpartition("/")
        changes["model.path"] = str(Storage(root).local_path(name, scratch))
    if size == 1:  # a single process needs no process group
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
    return spec.with_values(changes)


def _fetch_checkpoints(storage: Storage, folder: Path) -> None:
    """Download the newest intact checkpoint, and the best, which the run may load at its end."""
    from studio.training.checkpoint import best_step, path_of

    def fetch(path: Path) -> bool:
        try:
            return storage.fetch(f"{CHECKPOINTS}/{path.name}", path)
        except ClusterError as error:
            logger.warning("%s", error.text)
            return False

    names = reversed(storage.names(CHECKPOINTS))
    newest = next(filter(fetch, (folder / name for name in names)), None)
    if newest is not None and (best := best_step(newest)):
        if (path := path_of(folder, best)) != newest:
            fetch(path)


class _Reporter:
    """Connection of the first worker: sends events and receives commands.

    `files` of events were there before Ray started the workers for the first time.
    """

    def __init__(self, storage: Storage, files: int) -> None:
        again = len(storage.names(FOLDER)) > files
        self._storage, self._writer = storage, EventWriter(storage)
        if again:
            text = "A worker was lost: Ray restarts the run from its last checkpoint"
            self._writer.add(Loading(text=text).as_dict())
        self._command: Command = None
        self._number = 0
        self._closed = threading.Event()
        threading.Thread(target=self._receive, name="commands", daemon=True).start()

    def control(self) -> Command:
        """Return the current command for the training loop."""
        command = self._command
        if command != "stop":
            self._command = None
        return command

    def report(self, event: Event, run_dir: Path) -> None:
        """Upload the files of an event, then send the event."""
        if isinstance(event, Saving):
            self._writer.flush()  # a run that resumes from this checkpoint does not repeat them
            return
        if isinstance(event, Saved):
            self._send_checkpoint(Path(event.path))
        if isinstance(event, Finished) and event.adapter:
            self._storage.send(run_dir / ADAPTER, ADAPTER)
            self._storage.write(REPORT, (run_dir / REPORT).read_bytes())
            event = replace(event, adapter=ADAPTER)
        self._writer.add(event.as_dict())

    def close(self) -> None:
        """Send the remaining events."""
        self._closed.set()
        self._writer.close()

    def _send_checkpoint(self, path: Path) -> None:
        name = f"{CHECKPOINTS}/{path.name}"
        self._storage.send(path, name)
        kept = {folder.name for folder in path.parent.glob("step-*")}
        for old in self._storage.names(CHECKPOINTS):
            if old not in kept:
                self._storage.remove(f"{CHECKPOINTS}/{old}")

    def _receive(self) -> None:
        while not self._closed.wait(RECEIVE_SECONDS):
            try:
                found = read_json(self._storage, CONTROL)
            except OSError:
                continue
            if found and found["number"] > self._number and self._command != "stop":
                self._number, self._command = found["number"], found["command"]


def main(arguments: list[str] | None = None) -> int:
    """Drive one run; its error is the last line of the output."""
    (url,) = arguments or sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    storage = Storage(url)
    try:
        error = _drive(storage)
    except StudioError as known:
        error = known.as_dict()
    if error:
        print(MARK + json.dumps(error), flush=True)
    return 1 if error else 0


def _drive(storage: Storage) -> dict[str, Any] | None:
    """Let Ray train the run, again while memory is out and a remedy left; return its error."""
    from studio.training.fit_in_memory import retry_text

    order, text = order_in(storage), ""
    failed: dict[str, Any] | None = None
    while True:
        tried = read_json(storage, CHANGES) or {}
        kind = "GPU" if order.gpus else "CPU"
        writer = EventWriter(storage)
        for line in filter(None, (text, f"Ray is placing the run on {order.workers} {kind}")):
            writer.add(Loading(text=line).as_dict())
        writer.close()
        _fit(storage, order)
        error, changes = read_json(storage, ERROR), read_json(storage, CHANGES) or {}
        if error is None:
            return None
        if changes == tried:
            impossible = isinstance(revived(error), InputError)  # the remedy, not a setting
            return failed if failed and impossible else error
        failed = error
        text = retry_text({name: v for name, v in changes.items() if tried.get(name) != v})
        storage.remove(ERROR)


def _fit(storage: Storage, order: Order) -> None:
    """Run the workers until they end; their own error is on the storage then.

    Raises:
        StudioError: Ray or a worker failed with another.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from studio.training.distributed_rank import TIMEOUT

    files = len(storage.names(FOLDER))
    trainer = TorchTrainer(
        work,
        train_loop_config={"place": storage.url, "files": files},
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=order.workers, use_gpu=order.gpus),
        run_config=RunConfig(
            name=f"ray-{files}",
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
            **storage.for_ray(),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # every failure of Ray or a worker becomes one error
        logger.exception("the run failed")
        if not storage.exists(ERROR):
            raise _cause(error) from error


def _cause(error: Exception) -> StudioError:
    """Return the cause of a failure: a worker's own error, else Ray's message."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for inner in (failure, getattr(failure, "_base_exc", None), failure.__cause__):
            if isinstance(inner, StudioError):
                return inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1][:300] if lines else type(error).__name__
    if not failures:  # a part of Ray was lost: the run can be submitted again
        return ProcessLost(f"Ray stopped the run: {last}")
    return RunError(
        f"The run's workers failed {MOST_FAILURES + 1} times on the cluster, the last time with: "
        f"{last}. The last checkpoint is intact."
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""The driver and the workers of one run on the cluster (a Ray job).

Ray Train calls `work` on every worker, again after one was lost. They train with the same generator
of events as at home; a checkpoint is on the storage before home hears of it.

It hands the worker to Ray Train's TorchTrainer, which starts the workers again when one is lost;
they go on from the newest checkpoint on the storage.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.cluster.orders import (  # fmt: skip
    ADAPTER,
    CHECKPOINTS,
    CONTROL,
    ERROR,
    MARK,
    PACKED,
    REPORT,
    Order,
    order_in,
    read_json,
    write_json,
)
from studio.cluster.storage import FOLDER, Place, Writer
from studio.errors import ProcessLost, RunError, StudioError
from studio.home import open_home
from studio.spec import RunSpec
from studio.training import transfer
from studio.training.events import Event, Finished, Loading, Saved, Saving

if TYPE_CHECKING:
    from studio.training.loop import Command


logger = logging.getLogger(__name__)

LISTEN_SECONDS = 0.5


def work(config: dict[str, Any]) -> None:
    """Train as one of the workers: the loop that Ray Train starts on each."""
    from ray.train import get_context

    place, rank = Place(config["place"]), get_context().get_world_rank()
    if place.exists(ERROR):
        return  # it failed on something that another try would meet again
    try:
        with tempfile.TemporaryDirectory(prefix="studio-") as scratch:
            _train(place, Path(scratch), leads=rank == 0, size=get_context().get_world_size())
    except StudioError as error:
        try:
            write_json(place, ERROR, error.as_dict())
        except OSError:
            logger.error("%s", error.text)
        raise


def _train(place: Place, scratch: Path, *, leads: bool, size: int) -> None:
    from studio.training.run import train

    order = order_in(place)
    folder = place.at_hand(PACKED, scratch)
    spec, run_dir = _as_it_stands(order, folder, place, scratch, size), scratch / "run"
    _take_newest_checkpoint(place, run_dir)
    if not leads:
        for _ in train(
            spec, run_dir=run_dir, home=open_home(folder / "home"), in_process_group=True
        ):
            pass
        return
    with _line(place) as line:
        for event in train(
            spec, run_dir=run_dir, home=open_home(folder / "home"), control=line.control,
            in_process_group=size > 1,
        ):  # fmt: skip
            line.hear(event, run_dir)


def _as_it_stands(order: Order, folder: Path, place: Place, scratch: Path, size: int) -> RunSpec:
    """Return the spec for this worker: its device, and paths of its machine."""
    from ray.train.torch import get_device

    changes: dict[str, Any] = {
        "train.device": str(get_device()), "train.num_processes": size, "train.fsdp": False,
    }  # fmt: skip
    spec = transfer.spec_in(folder)
    changes["train.fsdp"] = spec.train.fsdp and size > 1
    if order.model:
        root, _, name = order.model.rpartition("/")
        changes["model.path"] = str(Place(root).at_hand(name, scratch))
    if size == 1:  # alone it is no team, whatever the launcher says
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
    return spec.with_values(changes)


def _take_newest_checkpoint(place: Place, run_dir: Path) -> None:
    """Put the newest whole checkpoint of the storage where the loop looks for it."""
    for name in reversed(place.names(CHECKPOINTS)):
        if place.fetch(f"{CHECKPOINTS}/{name}", run_dir / CHECKPOINTS / name):
            return


class _Line:
    """The first worker's line home: what it says, and what a person wants meanwhile."""

    def __init__(self, place: Place) -> None:
        self._place, self._writer = place, Writer(place)
        self._wish: Command = None
        self._heard = 0
        self._closed = threading.Event()
        threading.Thread(target=self._listen, name="wishes", daemon=True).start()

    def control(self) -> Command:
        """What the training loop should do now."""
        wish = self._wish
        if wish != "stop":
            self._wish = None
        return wish

    def hear(self, event: Event, run_dir: Path) -> None:
        """Take one event home, and what it speaks of before it."""
        if isinstance(event, Saving):
            self._writer.flush()  # a run that goes on from this checkpoint never says it again
            return
        if isinstance(event, Saved):
            self._send_checkpoint(Path(event.path))
        if isinstance(event, Finished) and event.adapter:
            self._place.send(run_dir / ADAPTER, ADAPTER)
            self._place.write(REPORT, (run_dir / REPORT).read_bytes())
            event = replace(event, adapter=ADAPTER)
        self._writer.say(event.as_dict())

    def say(self, text: str) -> None:
        """Show a sentence as what is going on."""
        self._writer.say(Loading(text=text).as_dict())

    def close(self) -> None:
        """Have everything at home."""
        self._closed.set()
        self._writer.close()

    def _send_checkpoint(self, path: Path) -> None:
        name = f"{CHECKPOINTS}/{path.name}"
        self._place.send(path, name)
        kept = {folder.name for folder in path.parent.glob("step-*")}
        for old in self._place.names(CHECKPOINTS):
            if old not in kept:
                self._place.remove(f"{CHECKPOINTS}/{old}")

    def _listen(self) -> None:
        while not self._closed.wait(LISTEN_SECONDS):
            try:
                said = read_json(self._place, CONTROL)
            except OSError:
                continue
            if said and said["number"] > self._heard and self._wish != "stop":
                self._heard, self._wish = said["number"], said["wish"]


@contextmanager
def _line(place: Place) -> Iterator[_Line]:
    again = len(place.names(FOLDER)) > 1
    line = _Line(place)
    if again:
        line.say("A worker was lost: Ray starts the run again from its last checkpoint")
    try:
        yield line
    finally:
        line.close()


MOST_FAILURES = 3


def main(arguments: list[str] | None = None) -> int:
    """Drive one run on the cluster; its error is the last line it prints."""
    (url,) = arguments or sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    place = Place(url)
    try:
        _drive(place)
        error = read_json(place, ERROR)
    except StudioError as known:
        error = known.as_dict()
    if error:
        print(MARK + json.dumps(error), flush=True)
    return 1 if error else 0


def _drive(place: Place) -> None:
    order = order_in(place)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    writer = Writer(place)
    kind = "GPU" if order.gpus else "CPU"
    writer.say(Loading(text=f"Ray is placing the run on {order.workers} {kind}").as_dict())
    writer.close()
    trainer = TorchTrainer(
        work,
        train_loop_config={"place": place.url},
        scaling_config=ScalingConfig(num_workers=order.workers, use_gpu=order.gpus),
        run_config=RunConfig(
            name="ray",
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
            **place.for_ray(),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # whatever Ray or a worker failed with becomes one sentence
        logger.exception("the run failed")
        raise _cause(error) from error


def _cause(error: Exception) -> StudioError:
    """Return what a failure was about: a worker's own sentence, else how Ray tells it."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for inner in (failure, getattr(failure, "_base_exc", None), failure.__cause__):
            if isinstance(inner, StudioError):
                return inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1][:300] if lines else type(error).__name__
    if not failures:  # Ray's own part of it was lost: home may send the run again
        return ProcessLost(f"Ray gave the run up: {last}")
    return RunError(
        f"The run's workers failed {MOST_FAILURES + 1} times on the cluster, the last time with: "
        f"{last}. The last checkpoint is intact."
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""What a run on the cluster made comes into its folder here: checkpoints at once, then the adapter.

Checkpoints come in the background, so that a large one does not hold up the curve.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from studio.cluster.order import ADAPTER, CHECKPOINTS, REPORT, read_json
from studio.cluster.storage import Place
from studio.errors import ClusterError, StudioError
from studio.home import is_whole
from studio.spec import RunSpec
from studio.training.events import Finished, Saved

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

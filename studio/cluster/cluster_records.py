"""Records of a cluster run: the order on the storage, the submission in the run's folder.

The order says how to train and names the files beside it. The submission, `cluster.json`, is
written before Ray gets the job and names the job, so a run is submitted once even if a process is
killed in between.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from studio import atomic
from studio.cluster.shared_storage import Storage
from studio.errors import ClusterError
from studio.fields import Record

ORDER, CONTROL, ERROR = "order.json", "control.json", "error.json"
PACKED, CHECKPOINTS, ADAPTER, REPORT = "packed", "checkpoints", "adapter", "report.json"
MARK = "ADAPTER STUDIO ERROR "
NEEDED = ("torch", "transformers", "accelerate", "datasets", "safetensors", "pydantic", "fsspec")


class Order(Record):
    """Number and kind of workers, the model, and the packages that they need."""

    workers: int
    gpus: bool
    model: str = ""
    needs: tuple[str, ...] = Field(default=())


def needed() -> tuple[str, ...]:
    """Return the requirements of training, such as `torch<=2.13.0,>=2.10`."""
    from packaging.requirements import Requirement

    try:
        ours = metadata.requires("adapter-studio") or []
    except metadata.PackageNotFoundError:  # run from the sources
        return NEEDED
    stated = {one.name: f"{one.name}{one.specifier}" for one in map(Requirement, ours)}
    return tuple(stated.get(name, name) for name in NEEDED)


def lacking(needs: tuple[str, ...]) -> str:
    """Return the requirements that this machine does not meet, as part of a sentence."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, needs):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return ", ".join(found)


def order_in(storage: Storage) -> Order:
    """Return the order, after checking that this machine can execute it.

    Raises:
        ClusterError: The machine does not see the storage, or lacks packages.
    """
    values = read_json(storage, ORDER)
    if values is None:
        raise ClusterError(
            f"The cluster's machine {platform.node()} does not see the storage {storage.url}: use "
            "one that every machine reaches, such as a shared folder, s3:// or gs://."
        )
    order = Order.model_validate(values)
    if missing := lacking(order.needs):
        raise ClusterError(
            f"The cluster's machine {platform.node()} cannot train: {missing}. Install "
            "adapter-studio on every machine of the cluster."
        )
    return order


def read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    """Return a JSON record from the storage; None if it is missing or incomplete."""
    text = storage.read(name)
    try:
        values: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:
        return None
    return values


def write_json(storage: Storage, name: str, values: dict[str, Any]) -> None:
    """Write a JSON record."""
    storage.write(name, json.dumps(values).encode())


logger = logging.getLogger(__name__)

NOTE = "cluster.json"


class Submission(Record):
    """The cluster job of a run, and how far its events were read."""

    submission: str
    place: str
    address: str = ""
    submitted: bool = False
    file: int = 1
    lines: int = 0
    step: int = 0
    total_steps: int | None = None

    def save(self, run_dir: Path) -> Submission:
        """Write `cluster.json` in one rename."""
        atomic.write(run_dir / NOTE, self.model_dump_json(), durable=True)
        return self


def read_submission(run_dir: Path) -> Submission | None:
    """Return the cluster job of a run, if it was submitted."""
    try:
        return Submission.model_validate_json((run_dir / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def delete_submission(run_dir: Path) -> None:
    """Delete `cluster.json`: the job ended and everything was fetched."""
    (run_dir / NOTE).unlink(missing_ok=True)


def request_stop(sent: Submission) -> None:
    """Request a stop through the storage; log a failure."""
    try:
        write_json(Storage(sent.place), CONTROL, {"number": time.time_ns(), "command": "stop"})
    except (OSError, ClusterError) as error:
        logger.warning("%s could not be stopped: %s", sent.submission, error)

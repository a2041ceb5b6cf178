"""Records of a cluster run: the order on the storage, the note in the run's folder.

It is written before Ray hears of the run and names the job that Ray will know, so that a run is
sent once, whoever dies in between.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from studio.cluster.storage import Place
from studio.errors import ClusterError
from studio.fields import Record

ORDER, CONTROL, ERROR = "order.json", "control.json", "error.json"
PACKED, CHECKPOINTS, ADAPTER, REPORT = "packed", "checkpoints", "adapter", "report.json"
MARK = "ADAPTER STUDIO ERROR "
NEEDED = ("torch", "transformers", "accelerate", "datasets", "safetensors", "pydantic", "fsspec")


class Order(Record):
    """How many workers train, on what, and which packages they need."""

    workers: int
    gpus: bool
    model: str = ""
    needs: tuple[str, ...] = Field(default=())


def needed() -> tuple[str, ...]:
    """Return what training needs there, as pip writes it: `torch<=2.13.0,>=2.10`."""
    try:
        ours = metadata.requires("adapter-studio") or []
    except metadata.PackageNotFoundError:  # run from the sources
        return NEEDED
    stated = {text.split(";")[0].strip(): text for text in ours}
    by_name = {_name(text): text for text in stated}
    return tuple(by_name.get(name, name) for name in NEEDED)


def lacking(needs: tuple[str, ...]) -> str:
    """Return what this machine lacks of the needed packages, as a part of a sentence."""
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


def order_in(place: Place) -> Order:
    """Return the order, after making sure that this machine can follow it.

    Raises:
        ClusterError: It does not see the storage, or lacks packages.
    """
    values = read_json(place, ORDER)
    if values is None:
        raise ClusterError(
            f"The cluster's machine {platform.node()} does not see the storage {place.url}. It "
            "must be one that every machine reaches: a shared folder, s3:// or gs://."
        )
    order = Order.model_validate(values)
    if missing := lacking(order.needs):
        raise ClusterError(
            f"The cluster's machine {platform.node()} cannot train: {missing}. Install "
            "adapter-studio on every machine of the cluster."
        )
    return order


def read_json(place: Place, name: str) -> dict[str, Any] | None:
    """Return a small record from the storage; None when it is not there, or not yet whole."""
    text = place.read(name)
    try:
        values: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:
        return None
    return values


def write_json(place: Place, name: str, values: dict[str, Any]) -> None:
    """Write a small record."""
    place.write(name, json.dumps(values).encode())


def _name(requirement: str) -> str:
    return requirement.split("[")[0].split(">")[0].split("<")[0].split("=")[0].split("!")[0].strip()


logger = logging.getLogger(__name__)

NOTE = "cluster.json"


class Sent(Record):
    """Which job on the cluster is this run's, and how much of it has been heard."""

    submission: str
    place: str
    submitted: bool = False
    file: int = 1
    lines: int = 0
    step: int = 0
    total_steps: int | None = None

    def keep(self, run_dir: Path) -> Sent:
        """Write the note in one rename."""
        temporary = run_dir / f".tmp-{NOTE}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, run_dir / NOTE)
        return self


def remembered(run_dir: Path) -> Sent | None:
    """Return the note of a run that was sent."""
    try:
        return Sent.model_validate_json((run_dir / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def forget(run_dir: Path) -> None:
    """The job on the cluster is over and everything of it is here."""
    (run_dir / NOTE).unlink(missing_ok=True)


def wish_to_stop(sent: Sent) -> None:
    """Leave the wish to stop where the run looks for it; a storage away is told to the log."""
    try:
        write_json(Place(sent.place), CONTROL, {"number": time.time_ns(), "wish": "stop"})
    except (OSError, ClusterError) as error:
        logger.warning("%s could not be asked to stop: %s", sent.submission, error)

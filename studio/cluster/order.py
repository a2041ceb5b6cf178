"""What a Ray job is told: one small record on the storage, and the names of what lies beside it."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Any

from pydantic import Field

from studio.cluster.storage import Place
from studio.errors import ClusterError
from studio.knobs import Record

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

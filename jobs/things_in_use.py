"""Refuse to delete or move what a job that has not ended reads, or what an adapter is built on."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.job_queue import JobStore
from jobs.job_record import OPEN, Job
from jobs.run_folder import folder_of
from studio.adapters import library
from studio.adapters.adapter_lineage import built_on
from studio.data.find_dataset import origin_of
from studio.errors import AdapterError, StudioError
from studio.home import Home
from studio.models.hub_cache import repository_folder
from studio.path_kinds import locate

ADAPTERS = ("adapter", "init_adapter", "source", "folder", "checkpoint")
DATASETS = ("general_data", "validation_path")
PARTS = ("train", "lane", "lanes")


def refuse_in_use(
    store: JobStore, folder: Path, name: str, *, error: type[StudioError] = AdapterError
) -> None:
    """Check that no job that has not ended reads anything in a folder.

    Raises:
        StudioError: One does; it is an `error`.
    """
    folder = Path(os.path.abspath(folder))
    for job in store.list(OPEN):
        if any(one.is_relative_to(folder) for one in reads(store, job.spec)):
            raise error(
                f'"{job.name}" is {job.state} and needs "{name}": wait for it or cancel it first.'
            )


def refuse_needed(store: JobStore, folder: Path, name: str) -> None:
    """Check that nothing needs the adapter in a folder, or in the folder of a run.

    Raises:
        AdapterError: A job that has not ended reads it, or an adapter was trained on top of it.
    """
    refuse_in_use(store, folder, name)
    adapter = folder / "adapter" if folder.parent == store.home.runs else folder
    for other in built_on(store.home, adapter):
        raise AdapterError(
            f'"{other.name}" was trained on top of "{name}" and needs it: delete that one first.'
        )


def runs_on(store: JobStore, dataset: str) -> Iterator[Job]:
    """Yield the training runs that name an imported dataset, the newest first."""
    for job in store.list():
        if job.kind == "train" and ("data", dataset) in _named(job.spec):
            yield job


def reads(store: JobStore, spec: dict[str, Any]) -> set[Path]:
    """Return the folders and files of the models, adapters, datasets and runs that a job names."""
    found: set[Path] = set()
    for kind, name in _named(spec):
        with contextlib.suppress(StudioError):
            found.update(_places(store, kind, str(name or "")))
    return {Path(os.path.abspath(path)) for path in found}


def _named(spec: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the kind and name of everything that a spec, or a lane of it, names."""
    from studio.data.mix_datasets import read_sources  # imports numpy

    if spec.get("address"):  # a judge elsewhere
        spec = {"suite": spec["suite"]}
    for key, value in spec.items():
        if key in ("model", "data", "repo"):
            whole = value if isinstance(value, dict) else {"path": value}
            yield ("data" if key == "data" else "model"), whole.get("path")
            yield from _named({name: whole[name] for name in DATASETS if whole.get(name)})
        elif key in PARTS:
            for one in value if isinstance(value, list) else [value]:
                yield from _named(one) if isinstance(one, dict) else ()
        elif key == "stack":
            yield from (("adapter", one.get("name")) for one in value)
        elif key == "sources":
            yield from (("data", one.name) for one in read_sources(value))
        elif key == "runs":
            yield from (("run", one) for one in value)
        elif key == "suite":
            yield key, value
        elif value and key in (*ADAPTERS, *DATASETS):
            yield ("adapter" if key in ADAPTERS else "data"), value


def _places(store: JobStore, kind: str, name: str) -> Iterator[Path]:
    """Yield where something that a job names is, and what that needs in turn."""
    home: Home = store.home
    run, at, step = name.partition("@")
    if os.path.isabs(name):
        yield Path(name)
    if kind == "suite":  # its answers
        yield home.run(int(name))
    elif kind == "run" or (kind == "adapter" and at and run.isdigit()):  # 7@100, a checkpoint
        yield folder_of(home.run(int(run)), int(step)) if step.isdigit() else home.run(int(run))
        job = store.get(int(run))
        yield from reads(store, job.spec) if job.kind == "train" else ()
    elif kind == "adapter":
        folder = library.resolve(home, name)
        yield folder
        yield from _places(store, "model", library.describe(folder).base)
    elif kind == "model" and name:
        yield repository_folder(name) if locate(name).kind == "hub" else Path(name).expanduser()
    elif kind == "data" and name and (place := origin_of(name, home)).is_local:
        yield place.path

"""What jobs read: checked before a run enters the queue, and kept until it has ended.

Torch-free and quick, since it happens in the page's process: the model's configuration and headers,
the first rows of the data file. So an error is reported at submission instead of in a log an hour
later. Paths become absolute here, since the runner has another working directory. Nothing is
downloaded.
"""

import contextlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jobs import ray_cluster
from jobs.job_queue import JobStore
from jobs.job_record import OPEN, Job
from jobs.run_folder import folder_of
from studio.adapters import library
from studio.adapters.adapter_lineage import built_on
from studio.data.find_dataset import find, missing, origin_of
from studio.data.readers import look
from studio.device_setting import CLUSTER
from studio.errors import AdapterError, ModelError, StudioError
from studio.home import Home
from studio.models import find_model
from studio.models.hub_models import repository_folder
from studio.names import locate
from studio.spec import RunSpec
from studio.training import distributed, objectives, starting_point, trackers

KINDS = {
    "model": "model", "repo": "repo", "data": "data", "stack": "adapter", "runs": "run",
    "suite": "suite",
    **dict.fromkeys(("adapter", "init_adapter", "source", "folder", "checkpoint"), "adapter"),
    **dict.fromkeys(("general_data", "validation_path"), "data"),
}  # fmt: skip
"""What the fields of jobs name; `path` and `name` are of the kind of the record around them."""

ROLES = "roles"  # its keys are words of a user's file
T = TypeVar("T")
Known = dict[Hashable, object]


def admit(spec: RunSpec, home: Home, *, here: bool = True, may_wait: bool = False) -> RunSpec:
    """Check what a run reads and return its spec as the queue stores it; see `admit_each`."""
    return admit_each([spec], home, here=here, may_wait=may_wait)[0]


def admit_each(
    specs: Iterable[RunSpec], home: Home, *, here: bool = True, may_wait: bool = False
) -> list[RunSpec]:
    """Check what runs read; return them as the queue stores them. Shared inputs are checked once.

    Args:
        here: They run on this machine.
        may_wait: They may wait for the download of their model, which is checked before that.

    Raises:
        StudioError: The model or the data of one cannot be used; nothing was changed.
    """
    known: Known = {}
    return [_admit(spec, home, here, may_wait, known) for spec in specs]


def _once(known: Known, key: Hashable, check: Callable[[], T]) -> T:
    if key not in known:
        known[key] = check()
    return known[key]  # type: ignore[return-value]


def _admit(spec: RunSpec, home: Home, here: bool, may_wait: bool, known: Known) -> RunSpec:
    from studio.data.prepare_run_data import (
        first_report,  # imports numpy
        validation_source,
    )
    from studio.training.starting_point import with_stored_precision

    def dataset(path: str) -> str:
        return _once(known, ("data", path), lambda: dataset_path(path, home))

    spec = spec.with_parts(
        model={"path": with_absolute_paths(spec.model.path, home, "model")},
        data={
            "path": dataset(spec.data.path), "validation_path": dataset(spec.data.validation_path)
        },
        train={"general_data": dataset(spec.train.general_data)},
    )  # fmt: skip
    if spec.train.device == CLUSTER:
        _once(known, spec.train.num_processes, lambda: ray_cluster.admit(spec, home))
    processes = {"num_processes": spec.train.num_devices}
    placed = spec.on_this_machine() if here else spec.with_parts(train=processes)
    distributed.check_sharding(placed)
    objectives.check(spec)
    trackers.check(spec.train.report_to)
    if find_model.origin_of(spec.model.path, spec.model.revision).kind != "hub":
        facts = _once(known, spec.model, lambda: find_model.facts(spec.model))
        if here and spec.train.device != CLUSTER:
            spec = with_stored_precision(spec, facts)  # kept: a resumed run has the same one
        spec = starting_point.resolved(spec, home, facts)
        rows = (spec.model, spec.data, spec.train.rows)
        _once(known, rows, lambda: first_report(spec, home))  # raises where nothing is trained
    elif not may_wait:
        raise ModelError(
            f'The model "{spec.model.path}" is not a folder here and not downloaded: get it on the '
            f"Models page or with `studio models get {spec.model.path}`, then try again."
        )
    objectives.check_held_out(spec, home)
    held = validation_source(spec.data)
    if held and origin_of(held.path, home).kind != "hub":
        _once(known, held, lambda: find(held, home))  # raises where there is no such split
    return spec


def _kinds(values: dict[str, Any], kind: str) -> dict[str, str]:
    """Return what each field of a record in a job's values names; empty for nothing."""
    return {key: kind if key in ("path", "name") else KINDS.get(key, "") for key in values}


def with_absolute_paths(value: Any, home: Home, kind: str = "") -> Any:
    """Return a job's values with absolute paths of its inputs: it runs in another folder."""
    if isinstance(value, dict):
        kinds = _kinds(value, kind)
        if value.get("source"):  # an import: the adapter is a name to give
            kinds["adapter"] = ""
        if value.get("address"):  # a judge elsewhere
            kinds["model"] = ""
        return {
            key: one if key == ROLES else with_absolute_paths(one, home, kinds[key])
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [with_absolute_paths(one, home, kind) for one in value]
    if kind not in ("model", "data", "adapter") or not (value and isinstance(value, str)):
        return value
    path = Path(os.path.expanduser(value)).absolute()
    if not os.path.lexists(path):
        return value
    with contextlib.suppress(StudioError):  # the request's own checks name what is missing
        if kind == "adapter":
            return str(path) if library.resolve(home, value).is_relative_to(path) else value
        found = find_model.origin_of(value, "") if kind == "model" else origin_of(value, home)
        return str(path) if found.kind in ("file", "folder") else value
    return value


def dataset_path(path: str, home: Home) -> str:
    """Return the path of a job's input dataset as the queue stores it; empty if none is named.

    Raises:
        StudioError: There is no such dataset, or the hub cannot be asked.
    """
    if not path:
        return ""
    kind, place = origin_of(path, home)  # raises for an unknown demo
    if kind == "missing":
        raise missing(path, home)
    if kind == "file":
        look(place)
    if kind == "hub":
        from studio.data.hub_datasets import is_reached

        is_reached(path)  # raises where the hub has no dataset of that name
    return str(place.absolute()) if kind in ("file", "folder") else path


def refuse_in_use(
    store: JobStore, folder: Path, name: str, *, error: type[StudioError] = AdapterError
) -> None:
    """Check that no job that has not ended reads an input in a folder.

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
    """Check that no job or adapter needs the adapter in a folder, or in the folder of a run.

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
    """Yield the training runs whose input is an imported dataset, the newest first."""
    for job in store.list():
        if job.kind == "train" and ("data", dataset) in _named(job.spec):
            yield job


def reads(store: JobStore, spec: dict[str, Any]) -> set[Path]:
    """Return the folders and files of the models, adapters, datasets and runs that a job names."""
    found: set[Path] = set()
    for kind, name in _named(spec):
        with contextlib.suppress(StudioError):
            found.update(_places(store, kind, str(name)))
    return {Path(os.path.abspath(path)) for path in found}


def _named(value: Any, kind: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the kind and name of everything that a job's values name."""
    from studio.data.import_dataset import read_sources  # imports numpy

    if isinstance(value, dict):
        if value.get("address"):  # a judge elsewhere
            value = {"suite": value["suite"]}
        kinds = _kinds(value, kind)
        for key, one in value.items():
            if key == ROLES:
                continue
            if key == "sources":
                yield from (("data", source.name) for source in read_sources(one))
            else:
                yield from _named(one, kinds[key])
    elif isinstance(value, list):
        for one in value:
            yield from _named(one, kind)
    elif kind and value:
        yield kind, value


def _places(store: JobStore, kind: str, name: str) -> Iterator[Path]:
    """Yield where something that a job names is, and what that needs in turn."""
    home: Home = store.home
    run, at, step = name.partition("@")
    if os.path.isabs(name):
        yield Path(name)
    if kind == "suite":  # its answers
        yield home.run(int(name))
    elif kind == "run" or (kind == "adapter" and at and run.isdecimal()):  # 7@100, a checkpoint
        yield folder_of(home.run(int(run)), int(step)) if step.isdecimal() else home.run(int(run))
        job = store.get(int(run))
        yield from reads(store, job.spec) if job.kind == "train" else ()
    elif kind == "adapter":
        folder = library.resolve(home, name)
        yield folder
        yield from _places(store, "model", library.describe(folder).base)
    elif kind in ("model", "repo") and name:
        yield repository_folder(name) if locate(name).kind == "hub" else Path(name).expanduser()
    elif kind == "data" and (place := origin_of(name, home)).is_local:
        yield place.path

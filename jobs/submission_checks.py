"""Check a run before it enters the queue: its model and data exist and can be used.

Torch-free and quick: the model's configuration and headers, the first rows of the data file. An
error is reported at submission instead of in a log an hour later. Paths become absolute here, since
the runner has another working directory.
"""

import contextlib
import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from jobs import ray_cluster
from jobs.things_in_use import ADAPTERS, DATASETS
from studio.adapters import library
from studio.data.find_dataset import find, missing, origin_of
from studio.data.readers import look
from studio.device_setting import CLUSTER
from studio.errors import ModelError, StudioError
from studio.home import Home
from studio.models import find_model
from studio.spec import RunSpec
from studio.training import distributed, objectives, starting_adapter, trackers

KINDS = (
    {"model": "model", "data": "data", "stack": "adapter"}
    | dict.fromkeys(ADAPTERS, "adapter")
    | dict.fromkeys(DATASETS, "data")
)
T = TypeVar("T")
Known = dict[Hashable, object]


def admit(spec: RunSpec, home: Home, *, here: bool = True, may_wait: bool = False) -> RunSpec:
    """Return the spec as the queue stores it; see `admit_each`."""
    return admit_each([spec], home, here=here, may_wait=may_wait)[0]


def admit_each(
    specs: Iterable[RunSpec], home: Home, *, here: bool = True, may_wait: bool = False
) -> list[RunSpec]:
    """Return runs as the queue stores them; what several have in common is checked once.

    Args:
        specs: The runs.
        home: Where datasets are.
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
    from studio.data.prepare_run_data import validation_source
    from studio.data.tokenise_first_rows import first_report  # imports numpy
    from studio.training.base_precision import with_stored_precision

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
        spec = starting_adapter.resolved(spec, home, facts)
        rows = (spec.model, spec.data, spec.train.rows)
        _once(known, rows, lambda: first_report(spec, home))  # raises where nothing is trained
    elif not may_wait:
        raise ModelError(
            f'The model "{spec.model.path}" is not a folder here and not downloaded: get it on the '
            f"Models page or with `studio models get {spec.model.path}`, then try again."
        )
    held = validation_source(spec.data)
    if held and origin_of(held.path, home).kind != "hub":
        _once(known, held, lambda: find(held, home))  # raises where there is no such split
    return spec


def with_absolute_paths(value: Any, home: Home, kind: str = "") -> Any:
    """Return a job's values with the local paths in them absolute: it runs in another folder."""
    if isinstance(value, dict):
        kinds = {key: kind if key in ("path", "name") else KINDS.get(key, "") for key in value}
        if value.get("source"):  # an import: the adapter is a name to give
            kinds["adapter"] = ""
        if value.get("address"):  # a judge elsewhere
            kinds["model"] = ""
        return {key: with_absolute_paths(one, home, kinds[key]) for key, one in value.items()}
    if isinstance(value, list):
        return [with_absolute_paths(one, home, kind) for one in value]
    if not (kind and value and isinstance(value, str)):
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
    """Return the path of a dataset as the queue stores it; empty if none is named.

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

"""Check a run before it enters the queue: its model and data exist and can be used.

Torch-free and quick: the model's configuration and headers, the first rows of the data file. An
error is reported at submission instead of in a log an hour later. Paths become absolute here, since
the runner has another working directory.
"""

from pathlib import Path

from jobs import ray_cluster
from studio.data.find_dataset import find, origin_of
from studio.data.readers import look
from studio.device_setting import CLUSTER
from studio.errors import DataError, ModelError
from studio.home import Home
from studio.models import find_model
from studio.spec import RunSpec
from studio.training import distributed, objectives, starting_adapter, trackers


def admit(spec: RunSpec, home: Home, *, here: bool = True, may_wait: bool = False) -> RunSpec:
    """Return the spec as the queue stores it.

    Args:
        spec: The run.
        home: Where datasets are.
        here: It runs on this machine, whose processor decides what `model.dtype: auto` becomes.
        may_wait: It may wait for the download of its model, which is checked before that.

    Raises:
        StudioError: The model or the data cannot be used; nothing was changed.
    """
    from studio.data.prepare_run_data import validation_source
    from studio.data.tokenise_first_rows import first_report  # imports numpy
    from studio.training.base_precision import with_stored_precision

    spec = spec.with_parts(
        model={"path": _absolute(spec.model.path)},
        data={
            "path": _data(spec.data.path, home),
            "validation_path": _data(spec.data.validation_path, home),
        },
        train={"general_data": _data(spec.train.general_data, home)},
    )
    if spec.train.device == CLUSTER:
        ray_cluster.admit(spec, home)
    processes = {"num_processes": spec.train.num_devices}
    placed = spec.on_this_machine() if here else spec.with_parts(train=processes)
    distributed.check_sharding(placed)
    objectives.check(spec)
    trackers.check(spec.train.report_to)
    if find_model.origin_of(spec.model.path, spec.model.revision).kind != "hub":
        known = find_model.facts(spec.model)
        if here and spec.train.device != CLUSTER:
            spec = with_stored_precision(spec, known)
        spec = starting_adapter.resolved(spec, home, known)
        first_report(spec, home)  # raises where not one token would be trained
    elif not may_wait:
        raise ModelError(
            f'The model "{spec.model.path}" is not a folder here and not downloaded: get it on the '
            f"Models page or with `studio models get {spec.model.path}`, then try again."
        )
    held = validation_source(spec.data)
    if held and origin_of(held.path, home).kind != "hub":
        find(held, home)  # raises where there is no such split
    return spec


def _absolute(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.exists() else path


def _data(path: str, home: Home) -> str:
    if not path:
        return ""
    kind, place = origin_of(path, home)  # raises for an unknown demo
    if kind == "missing":
        raise DataError(
            f"There is no data file or folder {place}. Check the path, or use a demo such as "
            "starter:pirate."
        )
    if kind == "file":
        look(place)
    if kind == "hub":
        from studio.data.hub_datasets import is_reached

        is_reached(path)  # raises where the hub has no dataset of that name
    return str(place.absolute()) if kind in ("file", "folder") else path

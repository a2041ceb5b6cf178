"""Kinds of jobs: the generator of events or the class of requests that executes each kind.

Heavy imports happen when a job of the kind starts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.job_record import Intent
from studio import hardware
from studio.cluster import Cluster
from studio.device_setting import CLUSTER
from studio.errors import ClusterError, QueueError, nearest
from studio.home import Home
from studio.job_request import Control, Request
from studio.spec import RunSpec
from studio.training.training_events import Event

Wanted = Callable[[], Intent | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The arguments of a kind.

    `control` returns the request that the run should obey now, `intent` why it should stop;
    `device` names its devices on this machine (`cuda:0,cuda:2`).
    """

    spec: dict[str, Any]
    run_dir: Path
    home: Home
    control: Control
    intent: Wanted = lambda: None
    cluster: Cluster | None = None
    device: str = ""


Kind = Callable[[Work], Iterator[Event]]


def train(work: Work) -> Iterator[Event]:
    """Execute a job of the kind `train`: yield the events of an adapter's training."""
    from studio.training.train_run import train as train_spec

    spec = RunSpec.parse(work.spec)
    if spec.train.device == CLUSTER:
        return _train_away(spec, work)
    spec = _as_here(spec, work.device)
    return train_spec(spec, run_dir=work.run_dir, home=work.home, control=work.control)


def train_together(works: Sequence[Work]) -> Iterator[tuple[int, Event | Exception]]:
    """Execute siblings, jobs of the kind `train`, on one base; yield index and event or error."""
    from studio.training.siblings import Sibling, train_siblings

    runs = []
    for work in works:
        spec = _as_here(RunSpec.parse(work.spec), work.device)
        runs.append(Sibling(spec, work.run_dir, work.control))
    return train_siblings(runs, home=works[0].home)


def _as_here(spec: RunSpec, device: str) -> RunSpec:
    """Return the spec in the precision of its device, its GPUs as this process counts them."""
    from studio.models import find_model
    from studio.training.starting_point import with_stored_precision

    spec = with_stored_precision(spec, find_model.facts(spec.model), device)
    if not hardware.is_card(device):
        return spec
    kind = device.partition(":")[0]
    names = [f"{kind}:{n}" for n in range(1 + device.count(","))]
    return spec.with_parts(train={"device": ",".join(names), "num_processes": len(names)})


def _train_away(spec: RunSpec, work: Work) -> Iterator[Event]:
    from studio.cluster.submit import train as train_away

    if work.cluster is None:
        raise ClusterError("The run wants a cluster, but none is set: name one, then resume it.")
    return train_away(
        spec, run_dir=work.run_dir, home=work.home, cluster=work.cluster, control=work.control,
        intent=work.intent,
    )  # fmt: skip


def preflight(work: Work) -> Iterator[Event]:
    """Execute a job of the kind `preflight`: measure a run with two real steps."""
    from studio.training.preflight import preflight as measure_spec

    spec = RunSpec.parse(work.spec)
    here = _as_here(spec, work.device)
    spec = spec.model_copy(update={"model": here.model})
    return measure_spec(spec, run_dir=work.run_dir, home=work.home, device=here.train.device)


def arrive(work: Work) -> Iterator[Event]:
    """Execute a job of the kind `arrive`: take a run that was trained on another machine."""
    from studio.training.transfer_run import unpack as take

    return take(Path(work.spec["folder"]), work.run_dir)


FILES, NETWORK = "files", "network"
BESIDE = (FILES, NETWORK)
"""Slots beside the devices, for jobs that need no GPU; they see the CPU alone."""
FILE_KINDS = frozenset({"import", "curate", "mix_data", "measure"})
"""Kinds of datasets that only read and write files."""
LIGHT_KINDS = {"download": NETWORK} | dict.fromkeys((
    *FILE_KINDS, "arrive", "push", "promote", "picture", "import_adapter", "export_adapter", "gguf",
    "extend_model",
), FILES)  # fmt: skip
"""Kinds that run beside training, and their slots."""

KINDS: dict[str, Kind | str] = {
    "train": train,
    "preflight": preflight,
    "arrive": arrive,
    "merge": "studio.adapters.merge:MergeRequest",
    "mix": "studio.adapters.mix_adapters:MixRequest",
    "picture": "studio.adapters.weight_changes:PictureRequest",
    "import_adapter": "studio.adapters.import_adapter:ImportAdapterRequest",
    "export_adapter": "studio.adapters.export:ExportRequest",
    "gguf": "studio.adapters.gguf:GgufRequest",
    "push": "studio.adapters.export:PushRequest",
    "promote": "studio.evaluation.promote_checkpoint:PromoteRequest",
    "bakeoff": "studio.evaluation.bakeoff_measurements:BakeoffRequest",
    "evaluate": "studio.evaluation.evaluate_on_dataset:EvaluateRequest",
    "tasks": "studio.evaluation.standard_tasks:TasksRequest",
    "suite": "studio.evaluation.suites:SuiteRequest",
    "judge": "studio.evaluation.judge:JudgeRequest",
    "download": "studio.models.download_model:DownloadRequest",
    "extend_model": "studio.models.new_tokens:ExtendRequest",
    "import": "studio.data.dataset_requests:ImportRequest",
    "curate": "studio.data.dataset_requests:CurateRequest",
    "mix_data": "studio.data.dataset_requests:MixtureRequest",
    "measure": "studio.data.dataset_requests:MeasureRequest",
}


def request_of(kind: str) -> type[Request] | None:
    """Return the request class of a kind, None for the kinds that run a spec."""
    place = KINDS.get(kind)
    if not isinstance(place, str):
        return None
    module, _, name = place.partition(":")
    found: type[Request] = getattr(import_module(module), name)
    return found


def named(kind: str) -> Kind:
    """Return the function that runs this kind of job.

    Raises:
        QueueError: The kind is unknown.
    """
    if kind not in KINDS:
        raise QueueError(f'Unknown kind of job "{kind}".{nearest(kind, KINDS)}')
    found = KINDS[kind]
    return partial(_perform, kind) if isinstance(found, str) else found


def _perform(kind: str, work: Work) -> Iterator[Event]:
    request = request_of(kind)
    assert request is not None
    spec = work.spec
    if spec.get("device") and hardware.is_card(work.device):
        own = f"{work.device.partition(':')[0]}:0"  # as this process counts its GPUs
        spec = spec | {"device": own}
    return request.parse(spec).run(work.home, work.run_dir, work.control)

"""Which code runs which kind of job. A kind is a generator of training events.

Everything heavy is imported when a job of the kind starts, never before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.job import Intent
from studio.cluster import DEVICE, Cluster
from studio.errors import ClusterError, QueueError, nearest
from studio.home import Home
from studio.spec import RunSpec
from studio.training.events import Event

Control = Callable[[], Literal["stop", "save", "sample"] | None]
Wanted = Callable[[], Intent | None]


def _nothing() -> Intent | None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a kind gets: its spec, where it may write, and what a person wants meanwhile.

    `control` says what a run should do now, `intent` why it should stop, `device` what it was given
    of this machine (`cuda:0,cuda:2`).
    """

    spec: dict[str, Any]
    run_dir: Path
    home: Home
    control: Control
    intent: Wanted = _nothing
    cluster: Cluster | None = None
    device: str = ""


Kind = Callable[[Work], Iterator[Event]]


def train(work: Work) -> Iterator[Event]:
    """Train an adapter."""
    from studio.training.run import train as train_spec

    spec = RunSpec.parse(work.spec)
    if spec.train.device == DEVICE:
        return _train_away(spec, work)
    spec = _as_seen(spec, work.device)
    return train_spec(spec, run_dir=work.run_dir, home=work.home, control=work.control)


def train_together(works: Sequence[Work]) -> Iterator[tuple[int, Event | Exception]]:
    """Train siblings on one base: events with the number of their run, an exception is its end."""
    from studio.training.siblings import Sibling, train_siblings

    runs = []
    for work in works:
        spec = _as_seen(RunSpec.parse(work.spec), work.device)
        runs.append(Sibling(spec, work.run_dir, work.control))
    return train_siblings(runs, home=works[0].home)


def _as_seen(spec: RunSpec, device: str) -> RunSpec:
    """The spec on the GPUs that this process was given and alone sees, counted from 0."""
    if not device.startswith("cuda:"):
        return spec
    names = [f"cuda:{n}" for n in range(1 + device.count(","))]
    return spec.with_parts(train={"device": ",".join(names), "num_processes": len(names)})


def _train_away(spec: RunSpec, work: Work) -> Iterator[Event]:
    from studio.cluster.submit import train as train_away

    if work.cluster is None:
        raise ClusterError("The run wants a cluster, but none is set: name one, then resume it.")
    return train_away(
        spec, run_dir=work.run_dir, home=work.home, cluster=work.cluster, control=work.control,
        intent=work.intent,
    )  # fmt: skip


def merge(work: Work) -> Iterator[Event]:
    """Fold a stack of adapters into a model, with a certificate."""
    from studio.adapters.requests import MergeRequest

    return MergeRequest.parse(work.spec).perform(work.home)


def mix(work: Work) -> Iterator[Event]:
    """Mix several LoRAs into one."""
    from studio.adapters.requests import MixRequest

    return MixRequest.parse(work.spec).perform(work.home)


def bakeoff(work: Work) -> Iterator[Event]:
    """Measure the adapters of several runs beside each other."""
    from studio.evaluation.bakeoff import BakeoffRequest

    return BakeoffRequest.parse(work.spec).perform(work.home, work.run_dir)


def evaluate(work: Work) -> Iterator[Event]:
    """Measure a stack of adapters on a dataset."""
    from studio.evaluation.evaluate import EvaluateRequest

    return EvaluateRequest.parse(work.spec).perform(work.home, work.run_dir)


def suite(work: Work) -> Iterator[Event]:
    """Ask a suite's prompts of several lanes."""
    from studio.evaluation.suites import SuiteRequest

    return SuiteRequest.parse(work.spec).perform(work.home, work.run_dir, work.control)


def promote(work: Work) -> Iterator[Event]:
    """Make a checkpoint the run's adapter."""
    from studio.evaluation.promotion import PromoteRequest

    return PromoteRequest.parse(work.spec).perform(work.home)


def preflight(work: Work) -> Iterator[Event]:
    """Measure a run with two real steps."""
    from studio.training.preflight import preflight as measure_spec

    spec = RunSpec.parse(work.spec)
    here = _as_seen(spec, work.device).train.device
    return measure_spec(spec, run_dir=work.run_dir, home=work.home, device=here)


def gguf(work: Work) -> Iterator[Event]:
    """Write a model with a stack folded in as one GGUF file."""
    from studio.adapters.gguf import GgufRequest

    return GgufRequest.parse(work.spec).perform(work.home)


def push(work: Work) -> Iterator[Event]:
    """Upload an exported folder to a hub."""
    from studio.adapters.push import PushRequest

    return PushRequest.parse(work.spec).perform(work.home)


def import_(work: Work) -> Iterator[Event]:
    """Keep a file, folder or hub dataset as a snapshot."""
    from studio.data.requests import ImportRequest

    return ImportRequest.parse(work.spec).perform(work.home)


def curate(work: Work) -> Iterator[Event]:
    """Make a new snapshot of a snapshot."""
    from studio.data.requests import CurateRequest

    return CurateRequest.parse(work.spec).perform(work.home)


def measure(work: Work) -> Iterator[Event]:
    """Tokenise a dataset for a model and keep the tokens."""
    from studio.data.requests import MeasureRequest

    return MeasureRequest.parse(work.spec).perform(work.home)


def arrive(work: Work) -> Iterator[Event]:
    """Take a run that was trained on another machine."""
    from studio.training.transfer import unpack as take

    return take(Path(work.spec["folder"]), work.run_dir)


def picture(work: Work) -> Iterator[Event]:
    """Measure what an adapter changed."""
    from studio.adapters.requests import PictureRequest

    return PictureRequest.parse(work.spec).perform()


def import_adapter(work: Work) -> Iterator[Event]:
    """Bring an adapter into the library."""
    from studio.adapters.requests import ImportRequest

    return ImportRequest.parse(work.spec).perform(work.home)


def export_adapter(work: Work) -> Iterator[Event]:
    """Write an adapter to a folder of its own."""
    from studio.adapters.requests import ExportRequest

    return ExportRequest.parse(work.spec).perform(work.home)


KINDS: dict[str, Kind] = {
    "train": train, "merge": merge, "mix": mix, "bakeoff": bakeoff, "evaluate": evaluate,
    "preflight": preflight,
    "arrive": arrive, "import": import_, "curate": curate, "measure": measure,
    "suite": suite, "promote": promote, "gguf": gguf, "push": push,
    "picture": picture, "import_adapter": import_adapter, "export_adapter": export_adapter,
}  # fmt: skip


FILES = "files"
FILE_KINDS = frozenset({"import", "curate", "measure"})
"""Kinds that only read and write files: they run beside training, on a slot of their own."""


def named(kind: str) -> Kind:
    """Return what runs this kind of job.

    Raises:
        QueueError: Nothing here runs it.
    """
    try:
        return KINDS[kind]
    except KeyError:
        raise QueueError(f'No job is of the kind "{kind}".{nearest(kind, KINDS)}') from None

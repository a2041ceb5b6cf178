"""What the Train page says about a model, a dataset and a method before anything runs.

One line each, read from files without torch; a mistake becomes the same sentence as on the command
line.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.preflight import TITLES
from studio import devices, hardware, starter
from studio.data.datasets import origin_of
from studio.data.readers import data_suffix
from studio.data.report import LOW_SHARE
from studio.data.snapshots import open_snapshot, snapshots
from studio.devices import CLUSTER
from studio.errors import DataError, SpecError
from studio.home import Home
from studio.methods import named
from studio.models import sources
from studio.names import readable
from studio.spec import DataSource, ModelSource, RunSpec
from ui.uploads import kept_uploads

HUB_ID = "A hub id: it is downloaded once, when the run starts."
CHECKED_BYTES = 20 * 1024**2
ESTIMATED_BYTES = 16 * 2**20


def model_choices(home: Home) -> list[tuple[str, str]]:
    """Return (label, value) of the starter and the models in the home."""
    found = [path for path in sources.available(home) if path != starter.MODEL]
    return [("Starter · the tiny embedded model", starter.MODEL), *((_leaf(p), p) for p in found)]


def labelled_models(home: Home) -> list[dict[str, str]]:
    """Return the models as pages list them."""
    return [{"label": label, "path": path} for label, path in model_choices(home)]


def data_choices(home: Home) -> list[tuple[str, str]]:
    """Return (label, value) of the demos, of imported datasets and of what was uploaded."""
    own = sorted(p for p in kept_uploads(home).glob("*") if data_suffix(p.name))
    return [
        *((f"Demo · {name}", f"{starter.DATA_PREFIX}{name}") for name in starter.datasets()),
        *((f"Dataset · {found.meta.name}", found.meta.name) for found in snapshots(home)),
        *((path.name, str(path)) for path in own),
    ]


def device_choices() -> list[tuple[str, str]]:
    """Return (label, value) of what a run may train on: this machine's devices, the cluster."""
    found = hardware.devices()
    here = [(f"{device.name} · {device.label}", device.name) for device in found]
    gpus = sum(device.name.startswith("cuda:") for device in found)
    every = f"all · {gpus} GPUs at once" if gpus else "all · the processor, a process a core"
    return [
        ("auto · a free one", devices.AUTO), (every, devices.ALL), *here,
        ("ray · the cluster of the System page", CLUSTER),
    ]  # fmt: skip


def picked_devices(chosen: list[str]) -> list[str]:
    """Return what stays of the devices picked, the newest last: GPUs together, all else alone."""
    if not chosen:
        return [devices.AUTO]
    if not devices.GPU.fullmatch(chosen[-1]):
        return chosen[-1:]
    return [name for name in chosen if devices.GPU.fullmatch(name)]


def model_line(source: ModelSource) -> str:
    """Say what the model is: `Llama · 3.2 M parameters · …`.

    Raises:
        ModelError: It cannot be used; says why.
    """
    if sources.origin_of(source.path).kind == "hub":
        return HUB_ID
    facts = sources.facts(source)
    parts = [
        facts.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel"),
        f"{_compact(facts.parameters)} parameters",
        f"{facts.num_layers} layers",
        f"context {facts.context_length:,}".replace(",", "\u202f"),
        "own chat template" if facts.has_chat_template else "no chat template",
    ]
    return " · ".join(parts)


def data_line(source: DataSource, home: Home) -> str:
    """Say what the dataset is: `300 rows · messages`.

    Raises:
        DataError: It cannot be used; says why.
    """
    kind, path = origin_of(source.path, home)
    if kind == "dataset":
        meta = open_snapshot(home, source.path).meta
        return " · ".join(
            [
                f"{meta.rows:,} rows".replace(",", "\u202f"),
                meta.mapping.format.replace("_", " "),
                f"imported, hash {meta.hash[:12]}",
            ]
        )
    if kind == "hub":
        return HUB_ID
    if kind == "missing":
        raise DataError(f"There is no dataset {path}. Give a file, a folder, or a hub id.")
    if kind == "folder":
        return "A folder: every data file in it is read."
    status = path.stat()
    if status.st_size > CHECKED_BYTES:
        return f"{_bytes(status.st_size)} · counted when the run starts"
    return _checked(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _checked(path: Path, _changed: int, size: int) -> str:
    from studio.data.datasets import check_file

    report = check_file(path)
    if report.error:
        raise DataError(report.error.text)
    rows = report.rows
    parts = [f"{rows.kept:,} rows".replace(",", "\u202f")]
    if rows.dropped:
        parts.append(f"{rows.dropped} dropped")
    return " · ".join([*parts, str(report.format).replace("_", " "), _bytes(size)])


def trained_line(spec: RunSpec, home: Home) -> tuple[str, bool]:
    """Say which share of the first rows' tokens is trained, and whether that is too little.

    Raises:
        StudioError: Not one token would be trained.
    """
    if not sources.origin_of(spec.model.path).is_local:
        return "", False  # shown with the model, or known once it is downloaded
    from studio.data.first_rows import first_report

    report = first_report(spec, home)
    if report is None:
        return "", False
    share = report.trained_token_share
    if share < LOW_SHARE:
        return (
            f"Only {share:.1%} of the tokens would be trained: the rest is read, not learnt. "
            "The X-ray of the Data page shows which.",
            True,
        )
    return f"{share:.0%} of the tokens are trained", False


def forecast(spec: RunSpec, home: Home) -> dict[str, Any]:
    """Return the estimate of a run's memory and time, or why there is none yet (`unknown`)."""
    from studio.training.estimate import estimate

    if why := unknown(spec, home):
        return {"unknown": why}
    try:
        return estimate(spec, home).as_dict() | {"titles": TITLES}
    except SpecError as error:  # devices that are not here
        return {"unknown": error.text}


def unknown(spec: RunSpec, home: Home) -> str:
    """Return why a run cannot be estimated yet; empty if it can."""
    kind, file = origin_of(spec.data.path, home)
    for noun, path, where in (
        ("model", spec.model.path, sources.origin_of(spec.model.path).kind),
        ("dataset", spec.data.path, kind),
    ):
        if where == "missing":
            return f"There is no {noun} at {path}."
        if where == "hub":
            return f"Known once the {noun} is downloaded."
    if kind == "file" and file.stat().st_size > ESTIMATED_BYTES:
        return "A large dataset: press Measure to read it and take two real steps."
    return ""


def method_line(spec: RunSpec) -> str:
    """Return the first sentences of the method's own manual."""
    return named(spec.method.name).manual()


def _leaf(path: str) -> str:
    return Path(path).name or path


def _compact(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}\u202f{unit}"
    return f"{value:.0f}"


def _bytes(size: float) -> str:
    return readable(size).replace(" ", "\u202f")

"""What the Train page says about a model, a dataset and a method before anything runs.

One line each, read from files without torch; a mistake becomes the same sentence as on the command
line.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jobs.copy_and_extend_runs import TITLES
from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio import device_setting, hardware, starter
from studio.adapters import library
from studio.data.dataset_report import LOW_SHARE, RowCounts
from studio.data.find_dataset import missing, origin_of
from studio.data.readers import data_suffix
from studio.data.snapshots import open_snapshot, snapshots
from studio.device_setting import CLUSTER
from studio.errors import DataError, SpecError, StudioError
from studio.home import Home
from studio.methods import methods
from studio.models import download_model, find_model, model_list
from studio.models.hub_models import size_on_disk
from studio.names import compact, readable
from studio.spec import DataSource, ModelSource, RunSpec
from ui.language import say, with_titles

HUB_ID = "Of the hub: downloaded when the run starts. The Data page shows its rows before."
CHECKED_BYTES = 20 * 1024**2
ESTIMATED_BYTES = 16 * 2**20
MOST_RATES = 30  # times the usual learning rate before it is remarked on
SHOWN_ROWS, SHOWN_TOKENS = 3, 240
RECENT_RUNS = 100


def model_choices(home: Home) -> list[tuple[str, str]]:
    """Return the Train page's choices (label, value) of models that need no download."""
    first, *found = [model.path for model in model_list.usable(home)]
    times = Counter(map(_leaf, found))
    return [
        (say("Starter · the tiny embedded model"), first),
        *((_leaf(path) if times[_leaf(path)] == 1 else path, path) for path in found),
    ]


def labelled_models(home: Home) -> list[dict[str, str]]:
    """Return the models as other pages list them, labelled as on the Train page."""
    return [{"label": label, "path": path} for label, path in model_choices(home)]


def data_choices(home: Home) -> list[tuple[str, str]]:
    """Return the Train page's choices (label, value) of data: demos, datasets, uploads."""
    kept = home.datasets / "uploads"  # by older versions, for runs to train on
    own = sorted(p for p in kept.glob("*") if data_suffix(p.name))
    return [
        *(
            (f"{say('Demo')} · {name}", f"{starter.DATA_PREFIX}{name}")
            for name in starter.datasets()
        ),
        *((f"{say('Dataset')} · {found.meta.name}", found.meta.name) for found in snapshots(home)),
        *((path.name, str(path)) for path in own),
    ]


def adapter_choices(home: Home) -> list[tuple[str, str]]:
    """Return the Train page's choices (label, value) of adapters to start from, newest first."""
    found = [one.name for one in library.adapters(home) if not one.is_model]
    return [(say("none"), ""), *((name, name) for name in dict.fromkeys(found))]


def device_choices() -> list[tuple[str, str]]:
    """Return the Train page's choices (label, value) of devices: this machine's, cluster."""
    found = hardware.devices()
    here = [(f"{device.name} · {device.label}", device.name) for device in found]
    gpus = sum(hardware.is_card(device.name) for device in found)
    every = (
        say(f"all · {gpus} GPUs at once") if gpus else say("all · the processor, a process a core")
    )
    return [
        (say("auto · a free one"), device_setting.AUTO), (every, device_setting.ALL), *here,
        (say("ray · the cluster of the System page"), CLUSTER),
    ]  # fmt: skip


def looked_at(spec: RunSpec, home: Home, *, ask: bool = False) -> RunSpec:
    """Return the Train page's run on facts of its hub model, if known before its download.

    With `ask`, the hub is asked for them.

    Raises:
        StudioError: The hub does not have the model, or does not answer.
    """
    if find_model.origin_of(spec.model.path, spec.model.revision).kind != "hub":
        return spec
    folder = (
        download_model.look_at_facts(spec.model, home)
        if ask
        else download_model.known_facts(spec.model, home)
    )
    return spec.with_parts(model={"path": str(folder), "revision": ""}) if folder else spec


def model_line(source: ModelSource, home: Home) -> str:
    """Say the facts on a model for the Train page: `Llama · 3.2 M parameters · …`.

    Raises:
        ModelError: It cannot be used; says why.
    """
    to_download = ""
    if find_model.origin_of(source.path, source.revision).kind == "hub":
        folder = download_model.known_facts(source, home)
        if folder is None:
            return _to_download(source)
        facts = find_model.facts(ModelSource(path=str(folder)))
        left = facts.size_bytes - size_on_disk(source.path)
        to_download = say(f"{_bytes(left)} to download, for which a run waits") if left > 0 else ""
    else:
        facts = find_model.facts(source)
    parts = [
        facts.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel"),
        say(f"{_compact(facts.parameters)} parameters"),
        say(f"{facts.num_layers} layers"),
        say(f"context {_count(facts.context_length)}"),
        say("own chat template") if facts.has_chat_template else say("no chat template"),
        to_download,
    ]
    return " · ".join(filter(None, parts))


def _to_download(source: ModelSource) -> str:
    """Say what is known of a model that is not here, without asking the hub."""
    parts = []
    for one in (one for one in model_list.curated() if one.path == source.path):
        left = one.bytes - size_on_disk(one.path)  # 0 bytes: not known
        parts.append(say(f"{_compact(one.parameters)} parameters"))
        parts += [say(f"{_bytes(left)} to download")] * (left > 0)
        parts += [say("gated")] * one.gated
    return " · ".join([*parts, say("Not here yet: a run waits for its download.")])


def data_line(source: DataSource, home: Home) -> str:
    """Say the facts on a dataset for the Train page: `300 rows · messages`.

    Raises:
        DataError: It cannot be used; says why.
    """
    kind, path = origin_of(source.path, home)
    if kind == "dataset":
        meta = open_snapshot(home, source.path).meta
        return " · ".join(
            [
                *_rows(meta.findings.rows),
                meta.mapping.format.replace("_", " "),
                say(f"imported, hash {meta.hash[:12]}"),
            ]
        )
    if kind == "hub":
        return say(HUB_ID)
    if kind == "missing":
        raise missing(source.path, home)
    if kind == "folder":
        return say("A folder: every data file in it is read.")
    status = path.stat()
    if status.st_size > CHECKED_BYTES:
        return f"{_bytes(status.st_size)} · {say('counted when the run starts')}"
    rows, row_format = _checked(path, status.st_mtime_ns, status.st_size)
    return " · ".join([*_rows(rows), row_format.replace("_", " "), _bytes(status.st_size)])


def _rows(rows: RowCounts) -> list[str]:
    """Say how many rows a dataset has, and how many of them cannot be used."""
    dropped = [say(f"{_count(rows.dropped)} dropped")] if rows.dropped else []
    return [say(f"{_count(rows.read)} rows"), *dropped]


@lru_cache(maxsize=64)
def _checked(path: Path, _changed: int, _size: int) -> tuple[RowCounts, str]:
    """Return the counts of rows, and their format."""
    from studio.data.import_dataset import check_file

    report = check_file(path)
    if report.error:
        raise DataError(report.error.text)
    return report.rows, str(report.format)


def trained_line(spec: RunSpec, home: Home) -> tuple[str, bool]:
    """Say for the Train page which share of tokens is trained, and whether it is too little.

    Raises:
        StudioError: Not one token would be trained.
    """
    if not find_model.origin_of(spec.model.path, spec.model.revision).is_local:
        return "", False  # shown with the model, or known once it is downloaded
    from studio.data.prepare_run_data import first_report

    report = first_report(spec, home)
    if report is None:
        return "", False
    if spec.train.loss == "grpo":
        return say("the model answers the prompts itself"), False
    share = report.trained_token_share
    if share < LOW_SHARE:
        return (
            say(
                f"Only {share:.1%} of the tokens would be trained: the rest is read, not learnt. "
                "The X-ray of the Data page shows which."
            ),
            True,
        )
    return say(f"{share:.0%} of the tokens are trained"), False


def warnings(spec: RunSpec, home: Home) -> Iterator[str]:
    """Yield facts that the Train page warns of: what is rarely meant of valid settings."""
    from studio.training.starting_point import emulation_warning
    from studio.training.steps_and_learning_rate import lr_for

    words, too_little = trained_line(spec, home)
    if too_little:
        yield words
    if slow := emulation_warning(spec):
        yield say(slow)
    rate = spec.train.learning_rate
    if rate != "auto" and find_model.origin_of(spec.model.path, spec.model.revision).is_local:
        usual = lr_for(spec.method, find_model.facts(spec.model).hidden_size)
        if rate > MOST_RATES * usual:
            shown = f"{rate:g}".replace("e+0", "e")
            yield say(
                f"The learning rate {shown} is {rate / usual:,.0f} times the usual {usual:.2g} for "
                f"{spec.method.title} on this model: the loss will most likely diverge."
            )


def model_traits(source: ModelSource) -> list[str]:
    """Return the facts of a model that decide which fields it uses: "experts" for a mixture."""
    from studio.training.sizes_for_estimates import read_shape

    if not find_model.origin_of(source.path, source.revision).is_local:
        return []
    with contextlib.suppress(StudioError):
        return ["experts"] if read_shape(find_model.facts(source)).mixture else []
    return []


def method_sizes(spec: RunSpec) -> dict[str, dict[str, int]]:
    """Return facts for the Train page: trained parameters and bytes of each method's result."""
    from studio.training.estimate_memory_and_time import trained_parameters
    from studio.training.sizes_for_estimates import read_shape

    if not find_model.origin_of(spec.model.path, spec.model.revision).is_local:
        return {}
    try:
        known = find_model.facts(spec.model)
    except StudioError:
        return {}
    shape, found = read_shape(known), {}
    for name, method in methods().items():
        own = spec.method if name == spec.method.name else method()
        count = trained_parameters(spec.model_copy(update={"method": own}), shape, known)
        if own.needs_bias and not getattr(own, "create_missing", False):
            count = find_model.num_biases(known.path)
        found[name] = {"parameters": count, "bytes": 4 * count}
    return found


def data_note(spec: RunSpec, home: Home) -> str:
    """Say the facts on a dataset for the Train page, with the share of tokens trained.

    Raises:
        StudioError: It cannot be used, or not one token would be trained.
    """
    line, (words, too_little) = data_line(spec.data, home), trained_line(spec, home)
    return line if too_little or not words else f"{line} · {words}"


def forecast(spec: RunSpec, home: Home, store: JobStore) -> dict[str, Any]:
    """Return facts on a run before it starts: memory, time, automatic values; or `unknown`.

    The time is corrected by the last run of this method on this model (`like`), if there is one.
    """
    from studio.training.estimate_memory_and_time import estimate

    try:
        seen = looked_at(spec, home, ask="/" in spec.model.path)
    except StudioError as error:
        return {"unknown": error.text}
    news = {"looked": True} if seen is not spec else {}
    spec = seen
    if why := unknown(spec, home):
        return {"unknown": why} | news
    try:
        found = estimate(spec, home).as_dict() | {"titles": TITLES} | _plan(spec, home)
        run, factor = _pace(spec, home, store)
        return found | {"seconds": found["seconds"] * factor, "like": run and run.name} | news
    except SpecError as error:  # devices that are not here
        return {"unknown": with_titles(error.text)}


def _pace(spec: RunSpec, home: Home, store: JobStore) -> tuple[Job | None, float]:
    """Return the last run of this method on this model, and its time relative to its estimate."""
    from studio.training.estimate_memory_and_time import estimate

    def about(given: dict[str, Any]) -> tuple[Any, ...]:
        path, train = given["model"]["path"], given["train"]
        here = path if find_model.origin_of(path).kind == "embedded" else str(Path(path).absolute())
        how = train.get("loss", "sft"), train["device"], train["num_processes"]
        return here, given["method"]["name"], *how

    asked = about(spec.model_dump(mode="json"))
    for job in store.list(["succeeded"], limit=RECENT_RUNS):
        seconds = job.result.get("seconds")
        if job.kind != "train" or not seconds or job.attempt != 1 or about(job.spec) != asked:
            continue
        with contextlib.suppress(StudioError):
            ratio = seconds / estimate(RunSpec.parse(job.spec), home).seconds
            return job, min(20.0, max(0.05, ratio))
    return None, 1.0


def _plan(spec: RunSpec, home: Home) -> dict[str, Any]:
    """Return what automatic fields become, and how many rows are cut."""
    from studio.training.sizes_for_estimates import prepared_rows
    from studio.training.steps_and_learning_rate import plan_run

    known = find_model.facts(spec.model)
    report = prepared_rows(spec, known, home).report
    rows, held_out = report.train_examples, report.validation_examples
    plan = plan_run(spec, num_rows=rows, hidden_size=known.hidden_size, num_held_out=held_out)
    return {
        "rows": rows, "held_out": held_out, "epochs": f"{plan.epoch(plan.total_steps):.3g}",
        "cut": {
            "rows": report.truncated, "of": report.examples, "limit": report.limit,
            "start": report.truncated_start, "longest": report.longest,
            "context": known.context_length,
        },
        "auto": {
            "train.max_steps": say(f"{_count(plan.total_steps)} steps"),
            "train.learning_rate": f"{plan.learning_rate:.2g}",
            "train.beta": f"{spec.train.own_beta:g}",
            "train.warmup_steps": say(f"{plan.warmup_steps} steps"),
            "train.eval_steps": say(f"every {plan.eval_every} steps"),
            "train.save_steps": say(f"every {plan.save_every} steps"),
            "data.format": report.format.replace("_", " "),
            "data.chat_template": report.template,
        },
    }  # fmt: skip


def first_rays(spec: RunSpec, home: Home) -> dict[str, Any]:
    """Return a run's first rows for the Train page as the trainer sees them, or why not."""
    from studio.data.xray import first_xrays

    spec = looked_at(spec, home)
    if why := unknown(spec, home):
        return {"unknown": why}
    shown = first_xrays(spec, home, SHOWN_ROWS)
    return {"rows": [_shortened(row.model_dump(mode="json")) for row in shown]}


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"tokens": row["tokens"][:SHOWN_TOKENS], "text": ""}


def unknown(spec: RunSpec, home: Home) -> str:
    """Return why facts on a run cannot be estimated yet; empty if they can."""
    from studio.data.prepare_run_data import absent

    if why := absent(spec, home):
        return why
    kind, file = origin_of(spec.data.path, home)
    if kind == "file" and file.stat().st_size > ESTIMATED_BYTES:
        return "A large dataset: press Measure to read it and take two real steps."
    return ""


def _leaf(path: str) -> str:
    return Path(path).name or path


def _compact(value: float) -> str:
    return compact(value).replace(" ", "\u202f")


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _bytes(size: float) -> str:
    return readable(size).replace(" ", "\u202f")

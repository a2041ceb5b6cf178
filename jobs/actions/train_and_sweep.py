"""Actions around training: train, sweep, bake-off, preflight, refit, copies, presets, methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from jobs import bakeoff as contests
from jobs import copy_and_extend_runs, supervisor, sweeps
from jobs.actions.models import download_for
from jobs.actions.queue import AfterError, Assignments, JobId, JobName, Retries
from jobs.actions.registry import Reply, action, field, submit
from jobs.copy_and_extend_runs import copied_spec
from jobs.device_placement import needed_bytes
from jobs.job_inputs import admit
from jobs.job_kinds import request_of
from jobs.job_queue import JobStore
from jobs.job_record import Job, summary
from jobs.sweeps import parse_values
from studio import presets
from studio.errors import SpecError
from studio.fields import merge_values, read_yaml
from studio.home import Home
from studio.methods import capabilities, methods
from studio.spec import RunSpec, read_assignment

NONE: Any = ()
SpecFile = Annotated[str, field("Spec file.", positional=True, metavar="[SPEC.yaml]")]
Model = Annotated[str | None, field("Folder, hub id, or starter.", of="model")]
Data = Annotated[str | None, field("File, folder, hub id, or starter:<name>.", of="dataset")]
Method = Annotated[str | None, field("Method; see `studio methods`.", of="method")]
Preset = Annotated[str, field("Preset; see `studio presets list`.")]
PresetName = Annotated[str, field("Name of the preset.", positional=True, metavar="NAME")]


def read_spec(
    home: Home, file: str = "", *, model: str | None = None, data: str | None = None,
    method: str | None = None, assignments: Sequence[str] = (), preset: str = "",
    base: dict[str, Any] | None = None, **given: Any,
) -> RunSpec:  # fmt: skip
    """Return the run that file, preset, options, assignments of `studio train` give, in order.

    Raises:
        SpecError: An option is empty, or a field unknown or invalid.
    """
    values = read_yaml(Path(file)) if file else dict(base or {})
    if preset:
        values = presets.apply_preset(home, preset, RunSpec.parse(values)).model_dump(mode="json")
    short = {"model.path": model, "data.path": data, "method.name": method, **given}
    short = {name: value for name, value in short.items() if value is not None}
    for name, value in short.items():
        if not value.strip() and name != "name":
            option = "--" + name.partition(".")[0]
            raise SpecError(f"{option} is empty: give a value, or leave it out.", field=name)
    return RunSpec.parse(values).with_values(short | dict(map(read_assignment, assignments)))


@action("train", follow=True)
def train(
    store: JobStore,
    spec: SpecFile = "",
    model: Model = None,
    data: Data = None,
    method: Method = None,
    set: Assignments = NONE,
    preset: Preset = "",
    name: Annotated[str | None, field("Name of the run.")] = None,
    needs: Annotated[
        tuple[int | str, ...], field("Start after this job succeeded.", metavar="ID", of="job")
    ] = NONE,
    retries: Retries = None,
    hold: Annotated[bool, field("Add it to the queue in the held state.")] = False,
) -> Job:
    """Train an adapter: queue a run and, unless detached, follow it.

    Ctrl-C stops following, never the run.
    """
    run = read_spec(
        store.home, spec, model=model, data=data, method=method, assignments=set, preset=preset,
        name=name or None,
    )  # fmt: skip
    return launch(store, run, needs=needs, retries=retries or 0, hold=hold)


def launch(
    store: JobStore, spec: RunSpec, *, needs: Sequence[int | str] = (), retries: int = 0,
    hold: bool = False, parent: int | None = None,
) -> Job:  # fmt: skip
    """Do as the action `train`: check a run, queue it after its model's download, start the queue.

    Raises:
        StudioError: The model, the data or an option cannot be used; nothing was queued.
    """
    admitted = admit(spec, store.home, may_wait=True)
    before = [store.get(other).id for other in needs]
    if download := download_for(store, admitted.model):
        before.append(download.id)
        admitted = admitted.with_parts(model={"path": download.spec["repo"]})
    job = store.submit(
        admitted, needs=before, retries=retries, held=hold, parent=parent,
        memory_bytes=needed_bytes(admitted, store.home),
    )  # fmt: skip
    supervisor.ensure_running(store.home)
    return job


@action("sweep", title="Queue a sweep", starts=True)
def sweep(
    store: JobStore,
    name: Annotated[str, field("Name of the sweep.", positional=True, max_length=100)],
    over: Annotated[
        tuple[str, ...],
        field(
            "Values of a setting; may be repeated.",
            title="Values to try",
            lines=4,
            metavar="FIELD=A,B,C",
        ),
    ],
    random: Annotated[int, field("Draw N random combinations; 0 runs all.", metavar="N", ge=0)] = 0,
    like: Annotated[
        int | str, field("Start from the settings of this run.", metavar="ID", of="job")
    ] = "",
    model: Model = None,
    data: Data = None,
    method: Method = None,
    set: Assignments = NONE,
    on_error: Annotated[
        AfterError,
        field(
            "After a failed run: continue, or stop and hold the rest.",
            labels={"continue": "Continue with the others", "stop": "Hold the rest"},
        ),
    ] = "continue",
    retries: Retries = None,
) -> Reply:
    """Queue one run for each combination of some values, as a group."""
    base = read_spec(
        store.home, base=store.get(like).spec if like else None, model=model, data=data,
        method=method, assignments=set, name="",
    )  # fmt: skip
    fields: dict[str, list[Any]] = {}
    for path, several in map(parse_values, over):
        fields.setdefault(path, []).extend(several)
    jobs = sweeps.submit_sweep(
        store, base, fields, name=name,
        count=random, on_error=on_error, retries=retries or 0,
    )  # fmt: skip
    return Reply(jobs=tuple(jobs), facts={"sweep": name, "jobs": [summary(job) for job in jobs]})


@action("bakeoff", title="Bake-off", follow=True)
def bakeoff(
    store: JobStore,
    name: Annotated[str, field("Name of the bake-off.", max_length=120)] = "bake-off",
    model: Annotated[str, field("Folder, hub id, or starter.", of="model")] = "starter",
    data: Annotated[
        str, field("File, folder, hub id, or starter:<name>.", of="dataset")
    ] = "starter:pirate",
    methods: Annotated[
        str, field("Comma-separated methods; all by default.", several=True, of="method")
    ] = "",
    set: Assignments = NONE,
    prompt: Annotated[
        tuple[str, ...], field("Prompt that every adapter answers; repeat for several.", lines=2)
    ] = NONE,
    best_rates: Annotated[
        bool,
        field(
            "Find the learning rate of each method first: fairer, twice the time.",
            title="Each at its best learning rate",
        ),
    ] = False,
    seeds: Annotated[
        int, field("Runs of each method, for means with intervals.", ge=1, le=contests.MOST_SEEDS)
    ] = 1,
    show: Annotated[str, field("Show the table of this bake-off.", metavar="NAME")] = "",
) -> Any:
    """Train several methods on the same data and budget, and compare what they cost and learn."""
    if show:
        return contests.shown(store, show)
    chosen = [word.strip() for word in methods.split(",") if word.strip()]
    spec = read_spec(store.home, model=model, data=data, assignments=set, name="")
    prompts = [text for text in prompt if text.strip()] or contests.PROMPTS
    jobs = contests.submit(
        store, spec, chosen, name=name, prompts=prompts, seeds=seeds, best_rates=best_rates
    )
    supervisor.ensure_running(store.home)
    return Reply(jobs=tuple(jobs), facts=contests.shown(store, name.strip()))


@action("preflight", follow=True)
def estimated(
    store: JobStore,
    spec: SpecFile = "",
    model: Model = None,
    data: Data = None,
    method: Method = None,
    set: Assignments = NONE,
    measure: Annotated[bool, field("Take two real steps on the longest batch.")] = False,
    fit: Annotated[bool, field("Change what must change for it to fit.")] = False,
) -> Any:
    """Estimate a run's memory by part and its time before it starts."""
    from studio.training.estimate_memory_and_time import estimate
    from studio.training.fit_in_memory import make_it_fit
    from studio.training.starting_point import emulation_warning

    run = read_spec(
        store.home, spec, model=model, data=data, method=method, assignments=set,
    )  # fmt: skip
    run = admit(run, store.home)
    changes = make_it_fit(run, store.home)[0] if fit else {}
    run = run.with_values(changes)
    if not measure:
        found = estimate(run, store.home).as_dict()
        return found | {"changes": changes, "warning": emulation_warning(run)}
    job = copy_and_extend_runs.submit_measure(store, run)
    supervisor.ensure_running(store.home)
    return Reply(jobs=(job,), facts={"changes": changes})


@action("refit", title="Make it fit", starts=True)
def refit(
    store: JobStore,
    job: JobId,
    remedy: Annotated[
        str, field("What to change; by default the first that keeps the result.")
    ] = "",
    listing: Annotated[bool, field("Only list what could be changed.", flag="--list")] = False,
) -> Any:
    """Queue a run that ran out of memory again so that it fits."""
    found = [one.as_dict() for one in copy_and_extend_runs.offers(store, job)]
    if listing:
        return found
    again, taken = copy_and_extend_runs.fit_and_retry(store, job, remedy)
    return {"id": again.id, "name": again.name, "remedy": taken.as_dict(), "offers": found}


@action("duplicate", starts=True)
def duplicate(store: JobStore, job: JobId, set: Assignments = (), name: JobName = "") -> Job:
    """Queue a copy of a job with some settings changed."""
    change = dict(map(read_assignment, set)) | ({"name": name} if name else {})
    found = store.get(job)
    if found.kind == "train":
        return launch(store, copied_spec(store, found, change), parent=found.id)
    if found.kind == "preflight":
        run = admit(copied_spec(store, found, change), store.home)
        return copy_and_extend_runs.submit_measure(store, run, parent=found.id)
    values = merge_values({**found.spec, "name": ""}, change)
    if kind := request_of(found.kind):
        return submit(store, kind.parse(values), parent=found.id)
    return store.submit(values, kind=found.kind, parent=found.id)


@action("presets.list")
def presets_list(home: Home) -> list[dict[str, Any]]:
    """List the presets and what each sets."""
    return presets.presets(home)


@action("presets.save")
def presets_save(home: Home, name: PresetName, set: Assignments = NONE) -> list[dict[str, Any]]:
    """Save settings under a name; model and data are not saved."""
    presets.save_preset(home, name, read_spec(home, assignments=set))
    return presets.presets(home)


@action("presets.forget")
def presets_forget(home: Home, name: PresetName) -> list[dict[str, Any]]:
    """Delete one of your own presets."""
    presets.delete_preset(home, name)
    return presets.presets(home)


@action("methods")
def listed() -> list[dict[str, Any]]:
    """List the methods that can train an adapter."""
    return [
        {
            "name": name, "title": method.title, "paper": method.paper,
            "summary": method.manual().split("\n\n")[0].replace("\n", " "),
            "capabilities": capabilities(name),
        }
        for name, method in methods().items()
    ]  # fmt: skip

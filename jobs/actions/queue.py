"""Actions on runs and the queue: list, show, report, order, hold, stop, schedule, extend, note."""

import json
import time
from typing import Annotated, Any, Literal

from jobs import (
    ended_jobs,
    queue_settings,
    secret_store,
    send_to_trackers,
    supervisor,
    sweeps,
    webhook,
)
from jobs.actions.registry import action, field, write_file
from jobs.copy_and_extend_runs import extend as extend_run
from jobs.copy_and_extend_runs import then
from jobs.html_reports import report
from jobs.job_inputs import refuse_needed
from jobs.job_queue import JobStore
from jobs.job_record import STATES, Job, State, summary
from jobs.run_findings import reading
from studio.errors import QueueError, nearest
from studio.spec import read_assignment
from studio.train_args import LOSSES, START_MODES
from studio.training.trackers import parse_trackers

JobId = Annotated[
    int | str, field("Number or name of the job.", positional=True, metavar="ID", of="job")
]
JobOrNone = Annotated[
    int | str, field("Number or name of the job.", positional=True, metavar="[ID]", of="job")
]
SweepName = Annotated[str, field("All runs of this sweep.", max_length=200)]
JobName = Annotated[str, field("Name of the new job.", max_length=120)]
Assignments = Annotated[
    tuple[str, ...],
    field(
        "A setting, as in method.r=16; may be repeated.",
        title="Settings",
        lines=2,
        metavar="FIELD=VALUE",
        flag="--set",
    ),
]
Retries = Annotated[
    int | None,
    field(
        "Retry up to N times after a transient failure, e.g. out of memory.",
        metavar="N",
        ge=0,
        le=ended_jobs.MOST_RETRIES,
    ),
]
AfterError = Literal["continue", "stop"]
STARTS = {
    "any": "At any time", "idle": "Only when the machine is idle",
    "night": "Only at night (22 to 7)",
}  # fmt: skip


@action("runs")
def runs(
    store: JobStore,
    search: Annotated[str, field("Part of the name.")] = "",
    state: Annotated[tuple[str, ...], field("Only this state; may be repeated.")] = (),
    limit: Annotated[int, field("Show at most N runs; 0 shows all.", metavar="N", ge=0)] = 0,
) -> list[dict[str, Any]]:
    """List the runs, newest first."""
    for one in state:
        if one not in STATES:
            raise QueueError(f'Unknown state "{one}".{nearest(one, STATES)}')
    wanted: list[State] = [one for one in STATES if one in state]
    return [summary(job) for job in store.list(wanted or None, limit=limit or None, search=search)]


@action("show")
def show(store: JobStore, job: JobId) -> dict[str, Any]:
    """Show one run: state, progress, losses, adapter, history."""
    found = store.get(job)
    history = [
        {"time": event["time"], "state": event["dst"], "why": event["why"]}
        for event in store.events(found.id)
    ]
    folder = str(store.home.run(found.id))
    general, questions = found.result.get("forgetting"), found.result.get("questions") or []
    return {
        **summary(found), "general": general, "spec": found.spec, "folder": folder,
        "reading": reading(store, found), "history": history, "questions": questions,
        "answers": _answers(store, found.id, questions),
    }  # fmt: skip


def _answers(store: JobStore, job: int, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last answers to the sample prompts, with those that their rows want."""
    asked = {one["prompt"]: one for one in reversed(questions)}  # held-out ones come first
    shots = store.samples(job)
    return [
        {"step": one["step"], "answer": one["text"], "prompt": one["prompt"],
         **{key: asked.get(one["prompt"], {}).get(key) for key in ("wanted", "trained")}}
        for one in shots if one["step"] == shots[-1]["step"]
    ]  # fmt: skip


@action("report", title="Save a report")
def report_page(
    store: JobStore,
    jobs: Annotated[
        tuple[str, ...],
        field("Run, several runs, bake-off, suite or merge.", positional=True, metavar="[ID]..."),
    ] = (),
    conversation: Annotated[str, field("A conversation of Compare.", metavar="ID")] = "",
    out: Annotated[str, field("New .html file; printed without.", of="file")] = "",
) -> dict[str, Any]:
    """Write runs, a bake-off or a conversation as one HTML file that needs nothing else."""
    name, html = report(store, jobs, conversation)
    return {"out": write_file(out, html)} if out else {"name": name, "html": html}


@action("runs.export", title="Export to trackers")
def export_runs(
    store: JobStore,
    jobs: Annotated[tuple[str, ...], field("Runs.", positional=True, metavar="ID...")],
    to: Annotated[
        str, field("Trackers between commas: tensorboard, trackio, wandb, mlflow.")
    ] = "tensorboard",
) -> dict[str, Any]:
    """Write the curves of runs to trackers, by their own libraries."""
    report_to = parse_trackers(to)
    if report_to == "none" or not jobs:
        raise QueueError("Name at least one run and one tracker.")
    return send_to_trackers.export(store, [store.get(one) for one in jobs], report_to)


@action("queue")
def queue(
    store: JobStore,
    hold: Annotated[bool, field("Stop starting jobs.")] = False,
    release: Annotated[bool, field("Start jobs again.")] = False,
    on_error: Annotated[
        AfterError | None, field("After a failed job: continue, or stop and hold the queue.")
    ] = None,
    limit: Annotated[int, field("Show at most this many jobs.", ge=1)] = 100,
) -> dict[str, Any]:
    """Show running and queued jobs in the order in which they start; hold or release the queue."""
    if hold and release:
        raise QueueError("Hold the queue or release it, not both.")
    if hold:
        queue_settings.hold_queue(store)
    if release:
        queue_settings.release_queue(store)
    if on_error:
        queue_settings.on_error(store, on_error)
    jobs = store.queue(limit=limit)
    held = queue_settings.read(store, "held")
    if release or (jobs and not held):
        supervisor.ensure_running(store.home)
    return {
        "held": held,
        "on_error": queue_settings.read(store, "on_error"),
        "jobs": [summary(job) for job in jobs],
    }


@action("move")
def move(
    store: JobStore,
    job: JobId,
    before: Annotated[int | str, field("Place it before this job.", metavar="ID", of="job")] = "",
    first: Annotated[bool, field("Place it first.")] = False,
    last: Annotated[bool, field("Place it last.")] = False,
    by: Annotated[int, field("Move it by N places; negative is earlier.", metavar="N")] = 0,
) -> dict[str, Any]:
    """Change the place of a queued job."""
    if sum((bool(before), first, last, bool(by))) != 1:
        raise QueueError("Give exactly one place: --before ID, --first, --last, or --by N.")
    if first:
        moved = store.run_next(job)
    elif by:
        moved = store.shift(job, by)
    else:
        moved = store.move(job, before=before or None)
    places = {one.id: number for number, one in enumerate(store.queue(), 1)}
    place = places.get(moved.id, 0) if moved.state == "queued" else 0
    return {**summary(moved), "place": place}


def job_or_sweep(
    store: JobStore, job: int | str, sweep: str, change: Literal["hold", "release", "cancel"],
    **options: Any,
) -> Job | dict[str, Any]:  # fmt: skip
    """Do the action hold, release or cancel on a job of the queue, or on the runs of a sweep.

    Raises:
        QueueError: Both are given or neither, or its state does not allow it.
    """
    if bool(job) == bool(sweep):
        raise QueueError(f"Give the job to {change}, or a sweep with --sweep.")
    if sweep:
        return sweeps.for_sweep(store, sweep, change)
    changes = {"hold": store.pause, "release": store.resume, "cancel": store.cancel}
    return changes[change](job, **options)


@action("hold")
def hold(store: JobStore, job: JobOrNone = "", sweep: SweepName = "") -> Any:
    """Hold a job or a whole sweep; a running job saves a checkpoint and frees its device."""
    return job_or_sweep(store, job, sweep, "hold")


@action("release", starts=True)
def release(store: JobStore, job: JobOrNone = "", sweep: SweepName = "") -> Any:
    """Let held jobs start again."""
    return job_or_sweep(store, job, sweep, "release")


@action("pause", starts=True)
def pause(store: JobStore, job: JobId) -> Job:
    """Pause a run: a queued one is held, a running one saves and frees its device."""
    return store.pause(job)


@action("resume", starts=True)
def resume(
    store: JobStore,
    job: JobId,
    restart: Annotated[bool, field("Discard the checkpoints and start at step 0.")] = False,
) -> Job:
    """Queue a stopped run again, from its newest checkpoint."""
    return store.resume(job, restart=restart)


@action("cancel", starts=True)
def cancel(
    store: JobStore,
    job: JobOrNone = "",
    drop: Annotated[bool, field("Delete its checkpoints too.")] = False,
    sweep: SweepName = "",
) -> Any:
    """Cancel a run; a running one saves a checkpoint first, so that it can be resumed."""
    return job_or_sweep(store, job, sweep, "cancel", **({} if sweep else {"drop": drop}))


@action("delete")
def delete(store: JobStore, job: JobId) -> dict[str, Any]:
    """Delete a job that is not running, with its folder."""
    found = store.get(job)
    refuse_needed(store, store.home.run(found.id), found.name)
    store.delete(found.id)
    return {"deleted": found.id, "name": found.name}


@action("schedule", starts=True)
def schedule(
    store: JobStore,
    job: JobId,
    at: Annotated[
        str | None,
        field(
            "Earliest start: 02:30, +2h, or 2027-01-31 02:30.", title="Not before", max_length=100
        ),
    ] = None,
    when: Annotated[
        Literal["", "any", "idle", "night"],
        field("Start only when idle or at night; any clears.", title="Only", labels=STARTS),
    ] = "",
    needs: Annotated[
        tuple[int | str, ...] | None,
        field(
            'Start after job ID has succeeded; "none" clears.',
            title="After these",
            metavar="ID",
            of="job",
        ),
    ] = None,
    retries: Retries = None,
    anyway: Annotated[bool, field("Start even if memory is short.")] = False,
) -> Job:
    """Set when a queued job may start; with no options, clear the schedule."""
    if anyway:
        found = store.get(job)
        if found.state != "queued" or not found.waits or not found.memory_bytes:
            raise QueueError(f'"{found.name}" does not wait for memory: it is {found.state}.')
        store.database.change(_ANYWAY, (found.id,))
        return store.get(found.id)
    start = None
    if at is not None or when:
        given = queue_settings.parse_time(at, now=time.time()) if at and at.strip() else None
        kept = store.get(job)
        earlier = kept.start_after if (kept.start_after or 0) > time.time() else None
        moment = earlier if at is None else given
        only: Any = when or kept.start_when
        start = queue_settings.Start(moment, "" if only == "any" else only)
    elif needs is None and retries is None:
        start = queue_settings.Start()
    others = None if needs is None else [one for one in needs if one != "none"]
    return queue_settings.schedule(store, job, start, needs=others, retries=retries)


@action("extend", title="Train longer", starts=True)
def extend(
    store: JobStore,
    job: JobId,
    epochs: Annotated[float, field("Additional epochs.", ge=0, when={"steps": ("0", "")})] = 0,
    steps: Annotated[int, field("Additional optimizer steps.", ge=0)] = 0,
    name: JobName = "",
) -> Job:
    """Train a finished run longer, from its newest checkpoint, as a new run."""
    return extend_run(store, job, epochs=epochs, steps=steps, name=name)


@action("then", title="Queue a next stage", starts=True)
def next_stage(
    store: JobStore,
    job: JobId,
    data: Annotated[str, field("File, folder, hub id, or starter:<name>.", of="dataset")],
    loss: Annotated[
        Literal["sft", "dpo", "ipo", "kto", "orpo", "simpo", "cpo", "grpo"],
        field("Loss of the next stage.", labels=LOSSES),
    ] = "dpo",
    mode: Annotated[
        Literal["continue", "stack"],
        field(
            "Train the run's adapter further, or stack a fresh one on it.",
            title="Start by",
            labels=START_MODES,
        ),
    ] = "continue",
    set: Assignments = (),
    name: JobName = "",
) -> Job:
    """Queue a next stage that starts from a run's adapter after the run has succeeded."""
    change = dict(map(read_assignment, set))
    return then(store, job, data, loss=loss, mode=mode, assignments=change, name=name)


@action("save")
def save(store: JobStore, job: JobId) -> Job:
    """Save a checkpoint of a running training now."""
    return store.request(job, "save")


@action("sample")
def sample(store: JobStore, job: JobId) -> Job:
    """Answer the sample prompts of a running training now."""
    return store.request(job, "sample")


@action("note", title="Write a note")
def note(
    store: JobStore,
    job: JobId,
    text: Annotated[
        str | None,
        field(
            "The note.", title="Note", lines=5, positional=True, metavar="[TEXT]", max_length=10_000
        ),
    ] = None,
    tag: Annotated[tuple[str, ...], field("Add a tag; may be repeated.")] = (),
    untag: Annotated[tuple[str, ...], field("Remove a tag; may be repeated.")] = (),
    tags: Annotated[
        tuple[str, ...] | None, field("Separated by commas; the search finds them.", flag="-")
    ] = None,
) -> Job:
    """Write a job's note and tags; without a change, show them."""
    found = store.get(job)
    if tag or untag:
        tags = tuple(one for one in (*found.tags, *tag) if one not in untag)
    if text is None and tags is None:
        return found
    words = None if tags is None else json.dumps(sorted({one.strip() for one in tags} - {""}))
    store.database.change(_NOTE, (text, words, found.id))
    return store.get(found.id)


@action("webhook", title="Set the webhook")
def set_webhook(
    store: JobStore,
    url: Annotated[
        str,
        field(
            "An http or https address.",
            title="Address",
            positional=True,
            metavar="[URL]",
            max_length=2000,
        ),
    ] = "",
    off: Annotated[bool, field("Disable the webhook.", title="Disable")] = False,
) -> dict[str, Any]:
    """Post a message to an address whenever a job ends; the address is stored privately."""
    if off:
        secret_store.forget(store.home, "webhook")
    elif url.strip():
        webhook.choose(store, url)
    return {
        "webhook": webhook.shown(store.home), "kept": secret_store.where(store.home, "webhook"),
    }  # fmt: skip


_ANYWAY = "UPDATE jobs SET memory_bytes = 0, waits = '' WHERE id = ?"
_NOTE = "UPDATE jobs SET notes = COALESCE(?, notes), tags = COALESCE(?, tags) WHERE id = ?"

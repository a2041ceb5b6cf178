"""Actions on runs: list, show, cancel, pause, resume."""

from typing import Annotated, Any

from jobs import send_to_trackers
from jobs.actions.queue import JobId, JobOrNone, SweepName, job_or_sweep
from jobs.actions.registry import action, field, write_file
from jobs.html_reports import report
from jobs.job_queue import JobStore
from jobs.job_record import STATES, Job, State, summary
from jobs.run_findings import reading
from studio.errors import QueueError, nearest
from studio.training.trackers import parse_trackers


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


@action("cancel", starts=True)
def cancel(
    store: JobStore,
    job: JobOrNone = "",
    drop: Annotated[bool, field("Delete its checkpoints too.")] = False,
    sweep: SweepName = "",
) -> Any:
    """Cancel a run; a running one saves a checkpoint first, so that it can be resumed."""
    return job_or_sweep(store, job, sweep, "cancel", **({} if sweep else {"drop": drop}))


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

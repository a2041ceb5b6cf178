"""Actions on the home folder: storage rules, clean-up, backup, restore, packed runs, stop."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Annotated, Any

from jobs import chat_client, disk_usage, queue_settings, supervisor
from jobs import ray_cluster as clusters
from jobs.actions.queue import Assignments
from jobs.actions.registry import action, field
from jobs.actions.train_and_sweep import Data, Method, Model, SpecFile, read_spec
from jobs.backup import backup as write_backup
from jobs.doctor import diagnostics
from jobs.job_inputs import admit
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.restore import restore as restore_backup
from studio.errors import HomeError
from studio.home import Home
from studio.training import transfer_run


@action("storage")
def show_storage(store: JobStore) -> dict[str, Any]:
    """Show what uses space in the home, and what the rules allow to remove."""
    return {**disk_usage.usage(store), "spare": disk_usage.report(disk_usage.spare(store))}


@action("diagnostics")
def show_diagnostics(home: Home | None) -> dict[str, Any]:
    """Print versions, devices, findings, the last error and its log, without secrets and paths."""
    return {"diagnostics": diagnostics(home)}


@action("clean", title="Clean up")
def clean(
    store: JobStore,
    yes: Annotated[bool, field("Remove; without it only list.")] = False,
    keep_checkpoints: Annotated[
        int | None,
        field("Rule: checkpoints to keep for each finished run.", metavar="N", ge=0, le=1000),
    ] = None,
    keep_days: Annotated[
        int | None,
        field(
            "Rule: remove checkpoints of runs older than N days; 0 never.",
            metavar="N",
            ge=0,
            le=36_500,
        ),
    ] = None,
    trash: Annotated[bool, field("Only deleted adapters and datasets, but all of them.")] = False,
) -> dict[str, Any]:
    """List, and with --yes remove, spare checkpoints and files that nothing refers to."""
    for name, rule in {"keep_checkpoints": keep_checkpoints, "keep_days": keep_days}.items():
        if rule is not None:
            queue_settings.write(store, name, rule)
    found = (disk_usage.clean if yes else disk_usage.spare)(store, trash=trash)
    return {**disk_usage.report(found), "removed": yes}


@action("backup", title="Back up the home")
def backup(
    home: Home,
    file: Annotated[
        str, field("New .tar file outside the home.", positional=True, of="file", max_length=1000)
    ],
) -> dict[str, Any]:
    """Write the whole home into one file; the studio may be in use."""
    target = Path(file.strip()).expanduser()
    if not target.is_absolute() or target.suffix != ".tar":
        raise HomeError("Give the full path of a new file that ends in .tar.")
    return write_backup(home, target)


@action("restore", title="Restore a backup")
def restore(
    home: Home,
    file: Annotated[
        str,
        field("A backup, or a copy of the database.", positional=True, of="file", max_length=1000),
    ],
) -> dict[str, Any]:
    """Restore a backup; the home that was there before is moved aside."""
    return restore_backup(home.path, Path(file.strip()).expanduser())


@action("pack", title="Pack a run")
def pack(
    home: Home,
    spec: SpecFile = "",
    out: Annotated[str, field("New folder.", of="folder")] = "packed-run",
    model: Model = None,
    data: Data = None,
    method: Method = None,
    set: Assignments = (),
    with_model: Annotated[bool, field("Include a copy of the model folder.")] = False,
) -> dict[str, Any]:
    """Write a run as a folder that trains elsewhere, with accelerate and Slurm scripts."""
    run = read_spec(home, spec, model=model, data=data, method=method, assignments=set)
    folder = Path(out).expanduser()
    transfer_run.pack(admit(run, home, here=False), folder, home, with_model=with_model)
    return {"out": str(folder.absolute())}


@action("unpack", title="Unpack a run", follow=True, starts=True)
def unpack(
    store: JobStore,
    folder: Annotated[
        str, field("Packed folder that was trained elsewhere.", positional=True, of="folder")
    ],
    name: Annotated[str, field("Name of the run here.", max_length=120)] = "",
) -> Job:
    """Import a run that was trained elsewhere: its curves, samples and adapter."""
    place = Path(folder).expanduser()
    spec = transfer_run.read_spec(place)
    values = spec.model_dump(mode="json")
    values |= {"folder": str(place.absolute()), "name": name or spec.name or place.name}
    return store.submit(values, kind="arrive")


@action("cluster", title="Ray cluster")
def set_cluster(
    store: JobStore,
    address: Annotated[
        str,
        field(
            "Address of its dashboard, as in http://10.0.0.5:8265.",
            positional=True,
            metavar="[ADDRESS]",
            max_length=500,
        ),
    ] = "",
    storage: Annotated[
        str, field("Storage that both sides can write: a folder, s3://…, gs://…", max_length=1000)
    ] = "",
    off: Annotated[bool, field("Use no cluster any more.")] = False,
) -> dict[str, Any] | None:
    """Set the Ray cluster for runs with train.device=ray, or show it."""
    if off:
        queue_settings.write(store, "cluster", None)
    elif address.strip() or storage.strip():
        before = clusters.chosen(store)
        clusters.choose(store, address or (before.address if before else ""), storage)
    return clusters.shown(store)


@action("stop", terminal=True)
def stop(store: JobStore) -> dict[str, list[str]]:
    """End the page, the queue and the chat; running jobs save and go on at the next start."""
    ended = []
    for row in store.processes():
        if row["role"] in ("web", "chat") and row["pid"] != os.getpid():
            with contextlib.suppress(OSError):  # it ends by itself
                os.kill(row["pid"], signal.SIGTERM)
            ended.append(row["role"])
    if supervisor.stop(store.home):
        ended.append("supervisor")
    return {"ended": ended}


def stop_if_idle(home: Home) -> None:
    """End queue and chat as the action `stop`, unless jobs wait or run or another page is open."""
    with contextlib.closing(JobStore(home)) as store:
        pages = [row["pid"] for row in store.processes() if row["role"] == "web"]
        if set(pages) - {os.getpid()} or not supervisor.WORK.isdisjoint(store.counts()):
            return
        host = chat_client.status(home)
        if host and not host["answering"]:
            chat_client.quit_host(home)
        supervisor.stop(home)
        if not supervisor.WORK.isdisjoint(store.counts()):  # queued meanwhile
            supervisor.ensure_running(home)

"""The bodies of `studio preflight` and `studio presets`, and the way out of a full memory."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import plans, supervisor
from jobs.admission import admit
from jobs.job import Job
from jobs.memory import needed_bytes
from jobs.store import JobStore
from studio import presets
from studio.devices import CLUSTER
from studio.errors import OutOfMemory, QueueError, WeightsTooLarge
from studio.fields import merge_values, parse_assignment, read_yaml
from studio.home import Home
from studio.spec import RunSpec
from studio.training.estimate import estimate
from studio.training.preflight import REPORT
from studio.training.remedies import Remedy, make_it_fit, pick, remedies
from ui.cli.follow import follow_to_the_end
from ui.cli.show import exit_code

FULL = (OutOfMemory.kind, WeightsTooLarge.kind)
TITLES = {
    "runtime": "Program and libraries", "weights": "Base weights", "adapter": "Adapter",
    "gradients": "Gradients", "optimizer": "Optimizer", "activations": "Activations",
    "logits": "Logits", "workspace": "Workspace",
}  # fmt: skip


def preflight(
    home: Home, spec_file: Path | None, given: Mapping[str, Any], assignments: Sequence[str], *,
    measure: bool, fit: bool, as_json: bool,
) -> int:  # fmt: skip
    """Print what a run will take; with `measure` after two real steps in a job."""
    values = read_yaml(spec_file) if spec_file else {}
    values = merge_values(values, dict(given) | dict(map(parse_assignment, assignments)))
    spec = admit(RunSpec.parse(values), home)
    changes: dict[str, Any] = {}
    if fit:
        changes, _ = make_it_fit(spec, home)
        spec = spec.with_values(changes)
    if measure:
        with closing(JobStore(home)) as store:
            job = submit_measure(store, spec)
            supervisor.ensure_running(home)
            job = follow_to_the_end(store, job)
        if job.state != "succeeded":
            error = {"kind": job.error_kind, "text": job.error_text or job.state}
            print(json.dumps({"error": error}) if as_json else error["text"])
            return exit_code(job)
        found = read_measured(home, job.id)
    else:
        found = estimate(spec, home).as_dict()
    report = {**found, "changes": changes}
    print(json.dumps(report) if as_json else _lines(report))
    return 0


def submit_measure(store: JobStore, spec: RunSpec) -> Job:
    """Queue two real steps of a run; those of a run on the cluster are taken on this machine."""
    if spec.train.device == CLUSTER:
        spec = spec.with_parts(train={"device": "auto", "num_processes": 1})
    return store.submit(
        {**spec.model_dump(mode="json"), "name": ""}, kind="preflight",
        memory_bytes=needed_bytes(spec, store.home),
    )  # fmt: skip


def read_measured(home: Home, job_id: int) -> dict[str, Any]:
    """Return what a preflight job found."""
    found: dict[str, Any] = json.loads((home.run(job_id) / REPORT).read_text(encoding="utf-8"))
    return found


def offers(store: JobStore, job_id: int | str) -> list[Remedy]:
    """Return what would make a run that ran out of memory smaller, best first.

    Raises:
        QueueError: It did not end that way.
    """
    job = store.get(job_id)
    if job.kind != "train" or job.error_kind not in FULL:
        raise QueueError(f'"{job.name}" did not run out of memory, so there is nothing to fit.')
    on_gpu = job.device.startswith("cuda") if job.device else None
    found = remedies(RunSpec.parse(job.spec), on_gpu=on_gpu)
    if job.error_kind == WeightsTooLarge.kind:
        return [one for one in found if one.of_weights]
    return found


def fit_and_retry(store: JobStore, job_id: int | str, name: str = "") -> tuple[Job, Remedy]:
    """Queue a run that ran out of memory again with one remedy, and return both.

    Args:
        store: The queue.
        job_id: The run's number or name.
        name: The remedy; the first that keeps the result when empty.

    Raises:
        QueueError: It did not end that way.
        SpecError: There is no such remedy.
        OutOfMemory: Nothing that keeps the result is left to change.
    """
    remedy = pick(offers(store, job_id), name)
    return plans.duplicate(store, store.get(job_id).id, remedy.changes), remedy


def refit(home: Home, job_id: str, *, remedy: str, listing: bool, as_json: bool) -> int:
    """Queue a run that ran out of memory again so that it fits, or list how it could."""
    with closing(JobStore(home)) as store:
        found = offers(store, job_id)
        if listing:
            print(json.dumps([one.as_dict() for one in found]) if as_json else _offered(found))
            return 0
        job, taken = fit_and_retry(store, job_id, remedy)
        supervisor.ensure_running(home)
    if as_json:
        print(json.dumps({"id": job.id, "name": job.name, "remedy": taken.as_dict()}))
        return 0
    print(f'Queued "{job.name}" as number {job.id}. {taken.title}: {taken.about}')
    if others := [one for one in found if one.name != taken.name]:
        print(f"Other ways, with --remedy NAME:\n{_offered(others)}")
    return 0


def _offered(found: Sequence[Remedy]) -> str:
    return "\n".join(
        f"  {one.name:14} {one.about} "
        f"{one.lacks or ('Same result.' if one.same_result else 'The result changes.')}"
        for one in found
    )


def list_presets(home: Home, *, as_json: bool) -> None:
    """Print every preset."""
    found = presets.presets(home)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for preset in found:
        print(f"{preset['name']}: {preset['about']}")
        for field, value in preset["values"].items():
            print(f"  {field}={value}")


def _lines(report: Mapping[str, Any]) -> str:
    lines = [
        f"{TITLES[part]:22} {size / 2**20:10.1f} MiB" for part, size in report["parts"].items()
    ]
    how = "measured" if report["measured"] else "estimated"
    fits = "fits" if report["fits"] else "does not fit"
    size, apart = report["processes"], report["on_device"] == 1
    each, pace = "", ""
    if size > 1:
        each = " on each device" if apart else f" for all {size} processes"
        each += "" if apart else f" of {report['process_bytes'] / 2**20:.1f} MiB"
        pace = f", if {size} are {report['efficiency'] * size:.2g} times as fast as one"
    return "\n".join(
        [
            *lines,
            f"{'Peak, ' + how:22} {report['total_bytes'] / 2**20:10.1f} MiB{each}, {fits} into "
            f"{report['device_bytes'] / 2**20:.0f} MiB free on {report['device']}",
            f"{report['total_steps']} steps of about {report['tokens_per_step']} tokens, about "
            f"{report['seconds']:.0f} s{pace}",
            *(f"changed: {field}={value}" for field, value in report["changes"].items()),
        ]
    )

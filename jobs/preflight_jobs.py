"""Preflight jobs, and the remedies offered for a run that ran out of memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobs import copy_and_extend_runs
from jobs.job_inputs import needed_bytes
from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio import hardware
from studio.device_setting import CLUSTER
from studio.errors import OutOfMemory, QueueError, WeightsTooLarge
from studio.spec import RunSpec

if TYPE_CHECKING:
    from studio.training.memory_remedies import Remedy

FULL = (OutOfMemory.kind, WeightsTooLarge.kind)
TITLES = {
    "runtime": "Program and libraries", "weights": "Base weights", "adapter": "Adapter",
    "gradients": "Gradients", "optimizer": "Optimizer", "activations": "Activations",
    "logits": "Logits", "workspace": "Workspace",
}  # fmt: skip


def submit_measure(store: JobStore, spec: RunSpec, *, parent: int | None = None) -> Job:
    """Queue two real steps of a run; those of a run on the cluster are taken on this machine."""
    if spec.train.device == CLUSTER:
        spec = spec.with_parts(train={"device": "auto", "num_processes": 1})
    return store.submit(
        {**spec.model_dump(mode="json"), "name": ""}, kind="preflight", parent=parent,
        memory_bytes=needed_bytes(spec, store.home),
    )  # fmt: skip


def outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return what a preflight job measured."""
    from studio.training.preflight import REPORT

    found: dict[str, Any] = json.loads((store.home.run(job.id) / REPORT).read_text("utf-8"))
    return found | {"titles": TITLES}


def offers(store: JobStore, job_id: int | str) -> list[Remedy]:
    """Return what would make a run that ran out of memory smaller, best first.

    Raises:
        QueueError: It did not end that way.
    """
    from studio.training.memory_remedies import remedies

    job = store.get(job_id)
    if job.kind != "train" or job.error_kind not in FULL:
        raise QueueError(f'"{job.name}" did not run out of memory, so there is nothing to fit.')
    on_gpu = hardware.is_card(job.device) if job.device else None
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
    from studio.training.memory_remedies import pick

    remedy = pick(offers(store, job_id), name)
    return copy_and_extend_runs.duplicate(store, store.get(job_id).id, remedy.changes), remedy

"""Queue runs from others: copies, longer ones, next stages, smaller ones; and their preflights.

A run that is extended stays as it is. The longer one is its child: it starts from the newest and
best checkpoints and the curve, with the learning-rate schedule of the longer run. A preflight job
takes two real steps of a run; one that ran out of memory is queued again with a remedy.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.device_placement import needed_bytes
from jobs.job_inputs import admit
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.job_table import free_name
from jobs.run_folder import folder_of, needed_steps
from studio import atomic, hardware
from studio.data.find_dataset import missing, origin_of
from studio.device_setting import CLUSTER
from studio.errors import OutOfMemory, QueueError, WeightsTooLarge
from studio.spec import DataSource, RunSpec

if TYPE_CHECKING:
    from studio.training.fit_in_memory import Remedy

OF_ONE_DATASET = (
    "subset", "split", "format", "judged", "validation_path", "validation_split"
)  # fmt: skip

AUTO_RATE = {"method.name", "model.path", "train.loss", "train.optim"}
"""Fields that an automatic learning rate follows."""

FULL = (OutOfMemory.kind, WeightsTooLarge.kind)
TITLES = {
    "runtime": "Program and libraries", "weights": "Base weights", "adapter": "Adapter",
    "gradients": "Gradients", "optimizer": "Optimizer", "activations": "Activations",
    "logits": "Logits", "workspace": "Workspace",
}  # fmt: skip


def duplicate(store: JobStore, job_id: int | str, assignments: Mapping[str, Any]) -> Job:
    """Queue a copy of a run with some fields changed.

    Raises:
        StudioError: The copy cannot be trained.
    """
    job = store.get(job_id)
    spec = admit(copied_spec(store, job, assignments), store.home)
    return store.submit(spec, parent=job.id, memory_bytes=needed_bytes(spec, store.home))


def copied_spec(store: JobStore, job: Job, assignments: Mapping[str, Any]) -> RunSpec:
    """Return the spec of a run's copy: without its name, with some fields changed."""
    settled = job.spec if AUTO_RATE & assignments.keys() else settled_spec(store, job)
    own = RunSpec.parse({**settled, "name": ""})
    copy = own.with_values(dict(assignments))
    trained = copy.method.trains_base and not own.method.trains_base
    if trained and "model.dtype" not in assignments:
        # Earlier versions stored what auto became for frozen weights.
        copy = copy.with_parts(model={"dtype": "auto"})
    return copy


def settled_spec(store: JobStore, job: Job) -> dict[str, Any]:
    """Return a run's spec for copies and longer runs, with the rate that `auto` became.

    So it resumes, extends and duplicates with its own rate, whatever the rule is by then. Runs of
    earlier versions kept it in their curve alone, whose peak it is.
    """
    train = job.spec["train"] if job.kind == "train" else {}
    if train.get("learning_rate") != "auto" and not train.get("find_learning_rate"):
        return job.spec
    rate = job.result.get("learning_rate")
    if rate is None:
        with store.database.reading() as db:
            (rate,) = db.conn.execute(_PEAK, [job.id]).fetchone()
    if rate is None:
        return job.spec
    settled = {"learning_rate": rate, "find_learning_rate": False}
    return {**job.spec, "train": job.spec["train"] | settled}


def extend(
    store: JobStore, job_id: int | str, *, epochs: float = 0, steps: int = 0, name: str = ""
) -> Job:
    """Queue a longer run that continues an ended one.

    Raises:
        QueueError: It is not a training that succeeded, has no checkpoint, or nothing is added.
        DataError: A dataset of it was deleted.
    """
    job = store.get(job_id)
    if job.kind != "train":
        raise QueueError(f'"{job.name}" is a {job.kind}; only training runs can be extended.')
    if job.state != "succeeded":
        raise QueueError(
            f'"{job.name}" is {job.state}; only a run that succeeded can be extended. '
            "Resume it instead."
        )
    spec = _longer(job, epochs=epochs, steps=steps, name=name or _next_name(store, job))
    for path in (spec.data.path, spec.data.validation_path, spec.train.general_data):
        if path and origin_of(path, store.home).kind == "missing":
            raise missing(path, store.home)
    kept = needed_steps(store.home.run(job.id))
    if not kept:
        raise QueueError(
            f'"{job.name}" has no checkpoint to continue from. Start a new run with more steps '
            f"instead: studio duplicate {job.id} --set train.max_steps=…"
        )
    child = store.submit(spec, parent=job.id, held=True, memory_bytes=job.memory_bytes)
    try:
        for step in kept:  # the newest last, with which the child can continue
            _copy_checkpoint(folder_of(store.home.run(job.id), step), store.home.run(child.id))
    except BaseException:
        store.cancel(child.id)
        store.delete(child.id)
        raise
    with store.database.writing() as db:
        for statement in _CURVE:
            db.conn.execute(statement, {"old": job.id, "new": child.id, "step": step})
        kept_facts = ("first_loss", "rows", "learning_rate", "questions")
        facts = {key: job.result[key] for key in kept_facts if key in job.result}
        db.conn.execute(
            "UPDATE jobs SET step = ?, result = ? WHERE id = ?",
            (step, json.dumps(facts), child.id),
        )
    return store.resume(child.id)


def then(
    store: JobStore, job_id: int | str, data: str, *, loss: str, mode: str,
    assignments: Mapping[str, Any], name: str = "",
) -> Job:  # fmt: skip
    """Queue the next stage of a run: it starts from the run's adapter after the run has succeeded.

    It has the run's settings, with other data, another loss and an automatic learning rate.

    Raises:
        StudioError: It does not train an adapter, will not succeed, or the data cannot be used.
    """
    job = store.get(job_id)
    if job.kind != "train" or job.state in ("failed", "cancelled"):
        what = f"is {job.state}" if job.kind == "train" else f"is a {job.kind}"
        raise QueueError(
            f'"{job.name}" {what}: a next stage starts from the adapter of a training run that '
            "is waiting, running or succeeded."
        )
    fresh = {f"data.{field}": DataSource.model_fields[field].default for field in OF_ONE_DATASET}
    spec = RunSpec.parse({**job.spec, "name": name})
    if spec.method.trains_base:
        raise QueueError(
            f'"{job.name}" trains the whole model and leaves no adapter to start from: when it has '
            f"succeeded, start a run with model.path={store.home.run(job.id) / 'adapter'}."
        )
    own, spec = spec.method, spec.with_values({
        **fresh, "data.path": data, "train.loss": loss, "train.learning_rate": "auto",
        "train.init_adapter": str(store.home.run(job.id) / "adapter"), "train.init_mode": mode,
        **assignments,
    })  # fmt: skip
    if spec.train.init_mode == "continue" and spec.method != own:
        raise QueueError(
            f'The adapter of "{job.name}" keeps its method when it is trained further: change '
            "nothing of method, or stack a fresh adapter on it (stack)."
        )
    spec = admit(spec, store.home)
    memory = needed_bytes(spec, store.home)
    return store.submit(spec, parent=job.id, needs=[job.id], memory_bytes=memory)


def submit_measure(store: JobStore, spec: RunSpec, *, parent: int | None = None) -> Job:
    """Queue the preflight of a run: two real steps, on this machine even for a cluster run."""
    if spec.train.device == CLUSTER:
        spec = spec.with_parts(train={"device": "auto", "num_processes": 1})
    return store.submit(
        {**spec.model_dump(mode="json"), "name": ""}, kind="preflight", parent=parent,
        memory_bytes=needed_bytes(spec, store.home),
    )  # fmt: skip


def preflight_outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return what a preflight job measured."""
    from studio.training.preflight import REPORT

    found: dict[str, Any] = json.loads((store.home.run(job.id) / REPORT).read_text("utf-8"))
    return found | {"titles": TITLES}


def offers(store: JobStore, job_id: int | str) -> "list[Remedy]":
    """Return what would make a copy of a run that ran out of memory smaller, best first.

    Raises:
        QueueError: It did not end that way.
    """
    from studio.training.fit_in_memory import remedies

    job = store.get(job_id)
    if job.kind != "train" or job.error_kind not in FULL:
        raise QueueError(f'"{job.name}" did not run out of memory, so there is nothing to fit.')
    on_gpu = hardware.is_card(job.device) if job.device else None
    found = remedies(RunSpec.parse(job.spec), on_gpu=on_gpu)
    if job.error_kind == WeightsTooLarge.kind:
        return [one for one in found if one.of_weights]
    return found


def fit_and_retry(store: JobStore, job_id: int | str, name: str = "") -> "tuple[Job, Remedy]":
    """Queue a copy of a run that ran out of memory with one remedy, and return both.

    Without a name the remedy is the first that keeps the result.

    Raises:
        QueueError: It did not end that way.
        SpecError: There is no such remedy.
        OutOfMemory: Nothing that keeps the result is left to change.
    """
    from studio.training.fit_in_memory import pick

    remedy = pick(offers(store, job_id), name)
    return duplicate(store, store.get(job_id).id, remedy.changes), remedy


def _longer(job: Job, *, epochs: float, steps: int, name: str) -> RunSpec:
    if (epochs > 0) == (steps > 0) or epochs < 0 or steps < 0:
        raise QueueError("Give the epochs or the steps to add, one of them and more than 0.")
    train = job.spec["train"]
    if steps:
        change = {"train.max_steps": (job.total_steps or job.step) + steps}
    elif train["max_steps"] > 0:
        raise QueueError(
            f'"{job.name}" counts steps, not epochs (train.max_steps is {train["max_steps"]}). '
            "Extend it by steps."
        )
    else:
        change = {"train.num_train_epochs": train["num_train_epochs"] + epochs}
    return RunSpec.parse({**job.spec, "name": name}).with_values(change)


def _next_name(store: JobStore, job: Job) -> str:
    """Return a free name that begins with that of a run."""
    with store.database.reading() as db:
        return free_name(db, job.name[:110])


def _copy_checkpoint(checkpoint: Path, run_dir: Path) -> None:
    """Copy a checkpoint into a new run, completely or not at all."""
    target = run_dir / "checkpoints" / checkpoint.name
    temporary = atomic.beside(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(checkpoint, temporary)
        atomic.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_PEAK = "SELECT max(value) FROM metrics WHERE job = ? AND name = 'learning_rate'"
_CURVE = (
    """UPDATE counters SET value = value +
         (SELECT COUNT(*) FROM metrics WHERE job = :old AND step <= :step)
       WHERE name = 'metrics'""",
    """INSERT INTO metrics(job, name, step, value, flag, time, seq)
       SELECT :new, name, step, value, flag, time,
         (SELECT value FROM counters WHERE name = 'metrics') + 1
           - ROW_NUMBER() OVER (ORDER BY name, step DESC)
       FROM metrics WHERE job = :old AND step <= :step""",
    """INSERT INTO samples(job, step, prompt, text, time)
       SELECT :new, step, prompt, text, time FROM samples
       WHERE job = :old AND step <= :step ORDER BY id""",
)

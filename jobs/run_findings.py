"""Findings on the curves of a run, read from the database, with a command that mends each."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jobs.job_queue import JobStore
from jobs.job_record import Job
from studio.errors import SpecError
from studio.spec import RunSpec
from studio.training.curve_findings import Correction, RunCurves, read

STEP_CURVES = (
    "loss", "grad_norm", "rewards_chosen", "rewards_accuracies", "reward", "frac_reward_zero_std",
)  # fmt: skip
EVAL_CURVES = (
    "eval_loss", "eval_rewards_accuracies", "answer_length", "answers_overrun", "answers_copied",
    "answer_tokens",
)  # fmt: skip

MOST_POINTS = 4000
"""Points of a curve that are read; longer ones are read in equal strides."""


def reading(store: JobStore, job: Job) -> list[dict[str, Any]]:
    """Return the findings on a training run; none for other jobs and runs that cannot be read."""
    if job.kind != "train" or not (job.step or job.error_kind == "diverged"):
        return []
    try:
        spec = RunSpec.parse(job.spec)
    except SpecError:  # of a version with other fields
        return []
    found: dict[str, list[tuple[int, float]]] = {}
    values = {"job": job.id, "stride": 1 + job.step // MOST_POINTS}
    with store.database.reading() as db:
        for name in (*STEP_CURVES, *EVAL_CURVES):
            query = _STEPS if name in STEP_CURVES else _EVALUATIONS
            found[name] = db.conn.execute(query, values | {"name": name}).fetchall()
    shots = store.samples(job.id)
    rows, share = job.result.get("rows") or {}, job.result.get("longer_chosen")
    run = RunCurves(
        spec=spec, curves=found, total_steps=job.total_steps or job.step,
        rate=job.result.get("learning_rate") or spec.method.base_learning_rate,
        ended=job.state == "succeeded", diverged=job.error_kind == "diverged",
        held_out=rows.get("held_out"), is_text=rows.get("format") == "text",
        rows_ended=job.result.get("rows_ended"), rows_truncated=rows.get("truncated") or 0,
        answers=[one["text"] for one in shots if one["step"] == shots[-1]["step"]],
        longer_chosen=0.5 if share is None else share,
        checkpoints=() if spec.method.trains_base
        else tuple(row["step"] for row in store.checkpoints(job.id)),
    )  # fmt: skip
    findings = read(run)
    with store.database.reading() as db:
        since = {"job": job.id, "since": job.result.get("training_since", 0)}
        pace = db.conn.execute(_PACE, since).fetchone()[0] if findings else None
    return [asdict(one) | {"queues": _queued(job, spec, one.remedy, pace)} for one in findings]


def _queued(
    job: Job, spec: RunSpec, remedy: Correction | None, pace: float | None
) -> dict[str, float | None] | None:
    """Return the steps and seconds of the run that a remedy queues; `pace` is of its steps."""
    total, args = job.total_steps or job.step, spec.train
    if remedy is None or remedy.action == "compare" or not total:
        return None
    epochs, again = args.num_train_epochs, args
    if remedy.action == "extend":
        added = remedy.values.get("epochs", 0)
        steps = remedy.values.get("steps") or added * total / epochs
    else:
        again = spec.with_values(remedy.values).train
        larger = again.rows_per_step / args.rows_per_step
        steps = again.max_steps
        if steps < 1:
            steps = again.num_train_epochs * total / epochs / larger
    steps = math.ceil(steps)
    return {
        "steps": steps,
        "seconds": pace and steps * pace * again.rows_per_step / args.rows_per_step,
    }


def command(job: Mapping[str, Any], remedy: Mapping[str, Any] | None) -> str:
    """Return the command that mends a finding on a run; empty without a remedy."""
    if remedy is None:
        return ""
    number, values = job["id"], remedy["values"]
    if remedy["action"] == "compare":
        model = job["spec"]["model"]["path"]
        return (
            f"studio compare --lane {model} --lane {model}~{number}@{values['step']}:1 --prompt …"
        )
    if remedy["action"] == "extend":
        return f"studio extend {number} " + " ".join(f"--{k} {v}" for k, v in values.items())
    words = " ".join(f"--set {key}={str(v).lower()}" for key, v in values.items())
    return f"studio duplicate {number} {words}"


_STEPS = """
SELECT step, value FROM metrics
WHERE job = :job AND name = :name AND value IS NOT NULL AND step % :stride = 0 ORDER BY step
"""
_EVALUATIONS = """
SELECT step, value FROM metrics
WHERE job = :job AND name = :name AND value IS NOT NULL ORDER BY step
"""
_PACE = """
SELECT (max(time) - min(time)) / (max(step) - min(step)) FROM metrics
WHERE job = :job AND name = 'loss' AND time >= :since
"""

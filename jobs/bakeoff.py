"""The bake-off: the same data, budget and seed over several methods, and one table at the end.

Each method is an ordinary run of one group; one more job measures their adapters beside each other.
The table joins what the queue knows of each run with what was measured of each method alone.
"""

from collections.abc import Sequence
from itertools import groupby, product
from statistics import fmean
from typing import Any

from jobs import job_table
from jobs.device_placement import needed_bytes
from jobs.job_inputs import admit_each
from jobs.job_queue import JobStore
from jobs.job_record import ENDED, Job, summary
from studio import atomic
from studio.errors import QueueError
from studio.evaluation.bakeoff_measurements import REPORT, BakeoffRequest
from studio.evaluation.ranking_and_intervals import half_width
from studio.methods import methods, named
from studio.spec import RunSpec
from studio.training import objectives

AVERAGED = ("eval_loss", "forgetting", "last_loss", "learning_rate")
TRAINED = ("trainable_parameters", "total_parameters", "learning_rate")
MEASURED = ("memory_bytes", "seconds_per_step", "size_bytes", "live_ratio", "merged_ratio")
FIGURES = {
    "eval_loss": ("Held-out loss", "", "", "min"),
    "forgetting": (
        "Forgetting", "", "KL divergence from the base, per token of its own answers to neutral "
        "prompts", "min",
    ),
    "changed": ("Changed", "", "Answers to neutral prompts that changed", "min"),
    "trainable_parameters": ("Parameters", "count", "", "min"),
    "size_bytes": ("On disk", "bytes", "", "min"),
    "memory_bytes": ("Memory", "bytes", "Training memory above the base, measured alone", "min"),
    "seconds_per_step": ("Seconds per step", "", "Of a few steps, measured alone", "min"),
    "seconds_to_loss": (
        "To equal loss", "s", "Time to the lowest held-out loss that every method reached", "min"
    ),
    "learning_rate": ("Learning rate", "", "", None),
    "last_loss": ("Last loss", "", "", "min"),
    "live_ratio": ("Live", "×", "Time per generated token relative to the base alone", "min"),
    "merged_ratio": ("Merged", "×", "The same after merging; – cannot be merged", "min"),
}  # fmt: skip
"""Title, unit and meaning of the figures of a method, and which of them is the best."""
MOST_SEEDS = 9
PROMPTS = ("What is the capital of France?", "What sound does a cow make?", "Tell me a story.")


def submit(
    store: JobStore, spec: RunSpec, chosen: Sequence[str], *, name: str,
    prompts: Sequence[str] = PROMPTS, seeds: int = 1, best_rates: bool = False,
) -> list[Job]:  # fmt: skip
    """Queue a bake-off: one run per method and seed as a group, and the job that measures them.

    Nothing is queued if one of them cannot be.

    Args:
        spec: What all runs have in common; each is checked with its own method.
        chosen: Names of methods; all that fit the loss when empty.
        prompts: Prompts that every adapter answers.
        seeds: Runs of each method, from the seed of `spec` on.
        best_rates: Find the learning rate of each run first; else each method has its default.

    Raises:
        QueueError: No name, no method, or a name is taken.
        StudioError: One of the runs cannot be trained.
    """
    name = name.strip()
    if not name:
        raise QueueError("A bake-off needs a name: its runs are called after it.")
    fitting = [name for name, kind in methods().items()
               if not (objectives.needs_reference(spec) and kind().trains_base)]  # fmt: skip
    picked = list(dict.fromkeys(chosen or fitting))
    for method in picked:
        named(method)  # refuses an unknown one
    specs = [
        spec.with_values(
            {
                "name": f"{name} {method}" + (f" seed {seed}" if seeds > 1 else ""),
                "method.name": method, "seed": seed, "train.find_learning_rate": best_rates,
            }
        )
        for method, seed in product(picked, range(spec.seed, spec.seed + seeds))
    ]  # fmt: skip
    specs = admit_each(specs, store.home)
    if any(job.sweep == name for job in store.list(search=name)):
        raise QueueError(f'There is already "{name}". Give the bake-off another name.')
    memory = [needed_bytes(one, store.home) for one in specs]
    with store.database.writing() as db:
        runs = [
            job_table.insert(db, one, {"sweep": name, "memory": needed})
            for one, needed in zip(specs, memory, strict=True)
        ]
        request = BakeoffRequest(
            name=f"{name} table", model=specs[0].model, runs=tuple(runs), prompts=tuple(prompts)
        )
        measuring = {"kind": "bakeoff", "sweep": name}
        last = job_table.insert(db, request.model_dump(mode="json"), measuring)
    return [store.get(job) for job in (*runs, last)]


def outcome(store: JobStore, job: Job) -> dict[str, Any]:
    """Return the bake-off that a job measured, as `shown` does."""
    return shown(store, str(job.sweep))


def shown(store: JobStore, name: str) -> dict[str, Any]:
    """Return a bake-off as far as it is known by now.

    That is its columns, one row per method, and the prompts of the answers in the rows.

    Raises:
        QueueError: There is no such bake-off.
    """
    jobs = [job for job in store.list(search=name) if job.sweep == name]
    if not jobs:
        raise QueueError(f'There is no bake-off "{name}".')
    measured: dict[int, dict[str, Any]] = {}
    prompts: Sequence[str] = ()
    for job in (one for one in jobs if one.kind == "bakeoff"):
        prompts = job.spec.get("prompts", ())
        report = atomic.read_object(store.home.run(job.id) / REPORT)
        measured = {row["run"]: row for row in report.get("rows", ())}
    runs = sorted((job for job in jobs if job.kind == "train"), key=lambda job: job.id)
    rows = [_row(store, job, measured.get(job.id, {})) for job in runs]
    found = [_of_method(list(own)) for _, own in groupby(rows, lambda row: row["method"])]
    columns = [
        {"key": key, "title": title, "unit": unit, "hint": hint, "best": best}
        for key, (title, unit, hint, best) in FIGURES.items()
    ]
    return {"name": name, "columns": columns, "rows": _with_times(found), "prompts": prompts}


def _with_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the seconds to the lowest held-out loss that every method reached, each alone."""
    curves = [row.pop("curve") for row in rows]
    reached = [min(curve.values()) for curve in curves if curve]
    target = max(reached, default=None)
    for row, curve in zip(rows, curves, strict=True):
        steps = [step for step, loss in curve.items() if target is not None and loss <= target]
        pace = row["seconds_per_step"]
        row["target_loss"] = target
        row["seconds_to_loss"] = min(steps) * pace if steps and pace else None
    return rows


def _of_method(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of a method's runs: means with 95 % intervals over the seeds that succeeded.

    `seeds` is their number. The state is that of a run that has not ended, if there is one.
    """
    done = [row for row in rows if row["state"] == "succeeded"]
    left = [row for row in rows if row["state"] != "succeeded"]
    still = [row for row in left if row["state"] not in ENDED]
    used = done if len(rows) > 1 else rows
    found = {**(done or rows)[0], "runs": [row["run"] for row in rows], "seeds": len(used)}
    found |= {"state": (still or done or left)[0]["state"], "error": (left or rows)[0]["error"]}
    curves = [row["curve"] for row in used or rows]
    shared = [step for step in curves[0] if all(step in curve for curve in curves)]
    found["curve"] = {step: fmean(curve[step] for curve in curves) for step in shared}
    for key in AVERAGED:
        values = [row[key] for row in used if row[key] is not None]
        found[key] = fmean(values) if values else None
        if key in ("eval_loss", "forgetting"):
            found[f"{key}_interval"] = half_width(values)
    return found


def _row(store: JobStore, job: Job, measured: dict[str, Any]) -> dict[str, Any]:
    facts, method = summary(job), job.spec["method"]["name"]
    known, general = methods().get(method), job.result.get("forgetting") or {}
    return {
        "run": job.id,
        "method": method,
        "title": known.title if known else method,
        "state": job.state,
        "error": job.error_text,
        **{key: job.result.get(key) for key in TRAINED},
        **{key: measured.get(key) for key in MEASURED},
        **{key: facts[key] for key in ("first_loss", "last_loss", "eval_loss", "forgetting")},
        "curve": dict(store.points(job.id, "eval_loss")) if job.state == "succeeded" else {},
        "changed": general.get("changed"),
        "neutral_prompts": general.get("prompts"),
        "answers": measured.get("answers", []),
    }

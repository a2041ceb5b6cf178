"""The table of results: a row per adapter and base, a column per figure that was measured of it.

Figures come from where they are: passports (held-out loss, forgetting), evaluations and suites of
the queue, votes. A newer evaluation of the same data replaces an older one.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from jobs import judgements, suite_results
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.votes import Votes
from studio import atomic
from studio.adapter_stack import read_lane
from studio.adapters import library
from studio.adapters.adapter_lineage import frozen_below
from studio.errors import AdapterError
from studio.evaluation.evaluate_on_dataset import REPORT
from studio.home import Home
from studio.methods import methods

Form = Literal["json", "csv", "markdown"]
FIXED = {
    "eval_loss": ("Held-out loss", "min"), "forgetting": ("Forgetting", "min"),
    "win_rate": ("Win rate", "max"), "size_bytes": ("Bytes", "min"),
}  # fmt: skip
MEASURED = {
    "accuracy": ("accuracy", "max"), "macro_f1": ("macro F1", "max"), "eval_loss": ("loss", "min"),
    "token_accuracy": ("token accuracy", "max"), "exact_match": ("exact match", "max"),
    "rouge_l": ("ROUGE-L", "max"), "pattern": ("pattern", "max"), "json": ("JSON", "max"),
    "regex": ("regex", "max"), "judged": ("judged", "max"), "mae": ("mean absolute error", "min"),
    "pearson": ("correlation", "max"),
}  # fmt: skip
Rows = dict[str, dict[str, Any]]


def table(store: JobStore) -> dict[str, Any]:
    """Return the columns, as key, title, best and job, and the rows with a value by key."""
    rows: Rows = {}
    for one in library.adapters(store.home):
        known = methods().get(one.method)
        rows[str(one.path)] = {
            "name": one.name, "id": one.id, "method": known.title if known else one.method,
            "base": one.base, "data": one.data_path, "eval_loss": one.eval_loss,
            "forgetting": one.forgetting, "size_bytes": one.size_bytes,
        }  # fmt: skip
    columns = {key: {"title": title, "best": best} for key, (title, best) in FIXED.items()}
    for job in reversed(store.list()):
        if job.kind == "evaluate" and (
            report := atomic.read_object(store.home.run(job.id) / REPORT)
        ):
            model, stack = job.spec["model"]["path"], job.spec.get("stack") or ()
            row = _row(store, rows, _place(store.home, model, stack))
            figures = {**report, **report.get("scores", {})}
            _put(columns, row, Path(job.spec["data"]["path"]).name, figures, job.id)
            row["forgetting"] = figures.get("forgetting") or row.get("forgetting")
        elif job.kind == "tasks":
            _put_tasks(store, rows, columns, job)
        elif job.kind == suite_results.KIND:
            found = suite_results.table(store, job.id)
            for lane, means in zip(found["lanes"], found["means"], strict=True):
                _put(columns, _of_lane(store, rows, lane), job.name, means, job.id)
        elif (
            job.kind == judgements.KIND and (judged := judgements.table(store, job.id))["evidence"]
        ):
            for one in judged["standings"]:
                rate = {"judged": _win_rate(one)}
                _put(columns, _of_lane(store, rows, one["lane"]), job.name, rate, job.id)
    board = Votes(store.database).board()
    for one in board["standings"]:
        _of_lane(store, rows, one["lane"])["win_rate"] = _win_rate(one)
    used = [key for key in columns if any(row.get(key) is not None for row in rows.values())]
    return {
        "columns": [{"key": key, **columns[key]} for key in used],
        "rows": [{"key": key, **row} for key, row in rows.items()],
    }


def _win_rate(one: Mapping[str, Any]) -> float:
    won, games = one["wins"] + one["ties"] / 2, one["wins"] + one["losses"] + one["ties"]
    return float(won / games)


def _put(
    columns: dict[str, Any], row: dict[str, Any], about: str, figures: Mapping[str, Any], job: int,
    measured: Mapping[str, tuple[str, str | None]] = MEASURED,
) -> None:  # fmt: skip
    for key, (title, best) in measured.items():
        if figures.get(key) is not None:
            name = f"{about} {key}"
            columns[name] = {"title": f"{about}: {title}", "best": best, "job": job}
            row[name] = figures[key]
            row.setdefault("jobs", {})[name] = job


def _put_tasks(store: JobStore, rows: Rows, columns: dict[str, Any], job: Job) -> None:
    """Put what a job measured on standard tasks into the rows of its lanes.

    Figures of other prompts or documents than the task's own have columns of their own.
    """
    report, spec = atomic.read_object(store.home.run(job.id) / REPORT), job.spec
    shots, limit = spec.get("num_fewshot", -1), spec.get("limit")
    ways = (shots >= 0 and f"{shots}-shot", limit and f"first {limit}", spec.get("chat") and "chat")
    how = ", ".join(way for way in ways if way)
    for number, lane in enumerate(report.get("lanes", ())):
        row = _of_lane(store, rows, lane)
        for one in report["tasks"]:
            known = {one["metric"]: (one["metric"], one["best"] or None)}
            figures = {one["metric"]: one["values"][number]}
            about = f"{one['task']} ({how})" if how else one["task"]
            _put(columns, row, about, figures, job.id, known)


def _of_lane(store: JobStore, rows: Rows, lane: str) -> dict[str, Any]:
    read = read_lane(lane)
    return _row(store, rows, _place(store.home, read["model"], read["stack"]))


def _place(home: Home, model: str, stack: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Return a lane's model and adapter; None for a stack of several.

    A stack that is an adapter and what it was trained on top of counts as that adapter.
    """
    if len(stack) < 2:
        return (model, *(str(item["name"]) for item in stack))
    with suppress(AdapterError):  # one of them is gone
        folders = [library.resolve(home, str(item["name"])) for item in stack]
        for top in folders:
            below = {one.path for one in frozen_below(library.describe(top))}
            rest = {folder: item for folder, item in zip(folders, stack, strict=True)
                    if folder != top}  # fmt: skip
            if below == rest.keys() and all(item["weight"] == 1 for item in rest.values()):
                return model, str(top)
    return None


def _row(store: JobStore, rows: Rows, place: tuple[str, ...] | None) -> dict[str, Any]:
    """Return the row of an adapter, or of the base; made where there is none.

    A stack of several has none: what is put into it is not shown.
    """
    if place is None:
        return {}
    model, adapter = (*place, "")[:2]
    if not adapter and model in rows:  # full fine-tuning: an adapter that is a model
        return rows[model]
    key = adapter or f"base {model}"
    with suppress(AdapterError):
        key = str(library.resolve(store.home, adapter)) if adapter else key
    fresh = {"name": Path(adapter or model).name, "id": "", "base": model, "data": ""}
    return rows.setdefault(key, fresh | {"method": "" if adapter else "Base"})


def written(found: dict[str, Any], form: Form) -> str:
    """Return the table as CSV or as Markdown, in which the best of a column is bold."""
    from studio.data.export_rows import harmless

    heads = ["Name", "Method", "Base", *(column["title"] for column in found["columns"])]
    text = io.StringIO(newline="")
    write = csv.writer(text).writerow
    if form == "csv":
        write(map(harmless, heads))
    else:
        marks = ["---"] * 3 + ["---:"] * len(found["columns"])
        text.write("\n".join("| " + " | ".join(line) + " |" for line in (heads, marks)) + "\n")
    best = {
        column["key"]: (min if column["best"] == "min" else max)(
            row[column["key"]] for row in found["rows"] if row.get(column["key"]) is not None
        )
        for column in found["columns"] if column["best"]
    }  # fmt: skip
    for row in found["rows"]:
        words = [str(row[key] or "") for key in ("name", "method", "base")]
        values = {column["key"]: row.get(column["key"]) for column in found["columns"]}
        if form == "csv":
            write([*map(harmless, words), *("" if v is None else v for v in values.values())])
            continue
        cells = [word.replace("|", "\\|").replace("\n", " ") for word in words]
        for key, value in values.items():
            shown = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else value
            is_best = value is not None and value == best.get(key)
            cells.append(f"**{shown}**" if is_best else str(shown))
        text.write("| " + " | ".join(cells) + " |\n")
    return text.getvalue()

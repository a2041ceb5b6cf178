"""Print the answer of any action: a sentence or table for each, else its values by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jobs.ray_cluster import sentence as cluster
from ui.cli import print_adapters, print_compare, print_data, print_home, print_models, print_runs

PASSPORT = (
    "id", "name", "path", "base", "method", "tags", "ended", "parents", "passport", "blind_test",
)  # fmt: skip


def lines(text: str, empty: str = "") -> Callable[[Any], None]:
    """Return a printer of a sentence with values of the answer, or of each row of it.

    Args:
        text: A format with the names of the values.
        empty: Printed instead where there are no rows.
    """

    def show(answer: Any) -> None:
        for row in answer if isinstance(answer, list) else [answer]:
            print(text.format(**row))
        if empty and not answer:
            print(empty)

    return show


def plain(answer: Any) -> None:
    """Print the values of an answer, or of each row of it, that are not empty."""
    for row in answer if isinstance(answer, list) else [answer]:
        for key, value in row.items() if isinstance(row, dict) else [("", row)]:
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                value = ", ".join(value)
            if value not in (None, "", [], {}):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                print(f"{key:14} {text}" if key else text)


def reported(answer: Any) -> None:
    """Print a report, or where it was written."""
    print(answer.get("html") or f"Written to {answer['out']}")


SENTENCES: dict[str, Callable[[Any], None]] = {
    "train": print_runs.trained,
    "bakeoff": print_runs.contest,
    "preflight": print_runs.estimated,
    "refit": print_runs.refitted,
    **dict.fromkeys(("presets.list", "presets.save", "presets.forget"), print_runs.presets),
    "methods": print_runs.methods,
    "merge": print_adapters.merged,
    "mix": lines("Mixed into {adapter} ({how}, error {error:.2g})"),
    "import": lines('Imported {method} adapter "{name}" to {path}'),
    "export": print_adapters.exported,
    "gguf": print_adapters.exported,
    "push": lines("Uploaded to {address}"),
    "promote": lines("The adapter of the run is now {adapter}"),
    "evaluate": print_adapters.evaluated,
    "results": print_adapters.results,
    "report": reported,
    "diagnostics": lambda answer: print(answer["diagnostics"], end=""),
    "runs.export": print_runs.exported_runs,
    "data.check": print_data.checked,
    "data.import": print_data.dataset,
    "data.mix": print_data.mixed,
    "data.search": print_data.hub_datasets,
    "data.show": print_data.hub_dataset,
    "data.map": print_data.mapped,
    "data.xray": print_data.xray,
    "data.list": lines(
        "{name:32} {rows:>12,} rows  {format:18} {hash:.12}",
        empty="No dataset is imported yet: studio data import FILE",
    ),
    "data.export": lines("{rows:,} rows are in {file}."),
    "data.delete": lines("Deleted {deleted}. Restore it with `studio data undo`."),
    "data.undo": lines("Restored {name}."),
    "data.overlap": lines("{rows:,} rows of {other} are in {dataset} too."),
    **dict.fromkeys(("data.split", "data.filter", "data.dedupe", "data.drop"), print_data.curated),
    "compare": print_compare.compared,
    "suite": print_compare.suite,
    "judge": print_compare.judge,
    "leaderboard": print_compare.leaderboard,
    "vote": lines("Turn {turn}: {verdict}."),
    "conversations": print_compare.conversations,
    "recipes": print_compare.recipes,
    "endpoint": print_compare.endpoint,
    "adapters": print_adapters.adapters,
    "adapters.show": lambda a: plain({key: value for key, value in a.items() if key in PASSPORT}),
    "adapters.rename": lines('Renamed to "{name}".'),
    "adapters.tag": lambda a: print(f'Tags of "{a["name"]}": {", ".join(a["tags"]) or "none"}.'),
    "adapters.delete": lines('Deleted "{name}". Restore it with `studio adapters undo`.'),
    "adapters.undo": lines('Restored "{name}".'),
    "adapters.trash": lines("{name}", empty="The trash is empty."),
    "adapters.picture": print_adapters.picture,
    "models": print_models.models,
    "models.search": print_models.found,
    "models.show": print_models.one,
    "models.get": lines("{model} is in {folder}"),
    "models.remove": print_models.removed,
    "models.folders": lines("{path}  {trouble}", empty="No folder is registered."),
    "models.token": print_models.token,
    "welcome": print_home.welcome,
    "guide": print_home.guide,
    "guide.template": print_home.template,
    "offline": lambda a: print("The hub is " + ("not used." if a["offline"] else "used.")),
    "queue": print_runs.queue,
    "move": lambda job: print(
        f'"{job["name"]}" is number {job["place"]} of the queue.' if job["place"] else job["name"]
    ),
    **dict.fromkeys(
        ("hold", "release", "schedule", "cancel", "pause", "resume"), print_runs.changed
    ),
    "delete": lines('"{name}" is deleted.'),
    "duplicate": lines('Queued "{name}" as number {id}.'),
    "sweep": lambda a: print(f'Queued {len(a["jobs"])} runs as the sweep "{a["sweep"]}".'),
    "then": lines('Queued "{name}" as number {id}, after run {parent}.'),
    "extend": lines('Queued "{name}" as number {id}, from step {step}.'),
    "save": lines('"{name}" saves a checkpoint at its next step.'),
    "sample": lines('"{name}" answers its sample prompts at its next step.'),
    "note": print_runs.note,
    "webhook": print_home.webhook,
    "runs": print_runs.runs,
    "show": print_runs.run,
    "storage": print_home.storage,
    "clean": print_home.cleaned,
    "backup": print_home.backed_up,
    "restore": print_home.restored,
    "stop": lambda a: print(
        "Ended: " + ", ".join(a["ended"]) + "." if a["ended"] else "Nothing was running."
    ),
    "pack": lines("Packed into {out}. Its README.txt says how to train it and bring it back."),
    "unpack": lines('"{name}" is here, as number {id}.'),
    "cluster": lambda found: print(cluster(found)),
    "modules": lines("{key}  {shape[0]} x {shape[1]}"),
}
CODES: dict[str, Callable[[Any], int]] = {
    "data.check": lambda reports: 0 if all(one["ok"] for one in reports) else 2,
    "compare": lambda found: 2 if all("error" in one for one in found["lanes"]) else 0,
}

"""The printer of each action's answer, and the exit codes of those that may fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.ray_cluster import sentence as cluster
from ui.cli import print_compare, print_home, print_library, print_runs
from ui.cli.terminal_tables import lines, plain

PASSPORT = (
    "id", "name", "path", "base", "method", "tags", "ended", "parents", "passport", "blind_test",
)  # fmt: skip


def reported(answer: Any) -> None:
    """Print the answer of the action `report`: the report, or where it was written."""
    print(answer.get("html") or f"Written to {answer['out']}")


SENTENCES: dict[str, Callable[[Any], None]] = {
    "train": print_runs.trained,
    "bakeoff": print_runs.contest,
    "preflight": print_runs.estimated,
    "refit": print_runs.refitted,
    **dict.fromkeys(("presets.list", "presets.save", "presets.forget"), print_runs.presets),
    "methods": print_runs.methods,
    "merge": print_library.made("merge", "Merged into {out}"),
    "mix": print_library.made("mix", "Mixed into {adapter}"),
    "import": lines('Imported {method} adapter "{name}" to {path}'),
    **dict.fromkeys(("export", "gguf"), print_library.made("gguf", "Exported to {out}")),
    "push": lines("Uploaded to {address}"),
    "promote": lines("The adapter of the run is now {adapter}"),
    "evaluate": print_library.evaluated,
    "results": print_library.results,
    "report": reported,
    "diagnostics": lambda answer: print(answer["diagnostics"], end=""),
    "runs.export": print_runs.exported_runs,
    "data.check": print_library.checked,
    "data.import": print_library.dataset,
    "data.mix": print_library.mixed,
    "data.search": print_library.hub_datasets,
    "data.show": print_library.hub_dataset,
    "data.map": print_library.mapped,
    "data.xray": print_library.xray,
    "data.list": lines(
        "{name:32} {rows:>12,} rows  {format:18} {hash:.12}",
        empty="No dataset is imported yet: studio data import FILE",
    ),
    "data.export": lines("{rows:,} rows are in {file}."),
    "data.delete": lines("Deleted {deleted}. Restore it with `studio data undo`."),
    "data.undo": lines("Restored {name}."),
    "data.overlap": lines("{rows:,} rows of {other} are in {dataset} too."),
    **dict.fromkeys(
        ("data.split", "data.filter", "data.dedupe", "data.drop"), print_library.curated
    ),
    "compare": print_compare.compared,
    "suite": print_compare.suite,
    "judge": print_compare.judge,
    "leaderboard": print_compare.leaderboard,
    "vote": lines("Turn {turn}: {verdict}."),
    "conversations": print_compare.conversations,
    "recipes": print_compare.recipes,
    "endpoint": print_compare.endpoint,
    "adapters": print_library.adapters,
    "adapters.show": lambda a: plain({key: value for key, value in a.items() if key in PASSPORT}),
    "adapters.rename": lines('Renamed to "{name}".'),
    "adapters.tag": lambda a: print(f'Tags of "{a["name"]}": {", ".join(a["tags"]) or "none"}.'),
    "adapters.delete": lines('Deleted "{name}". Restore it with `studio adapters undo`.'),
    "adapters.undo": lines('Restored "{name}".'),
    "adapters.trash": lines("{name}", empty="The trash is empty."),
    "adapters.picture": print_library.picture,
    "models": print_library.models,
    "models.search": print_library.hub_models,
    "models.show": print_library.hub_model,
    "models.get": lines("{model} is in {folder}"),
    "models.remove": print_library.removed_model,
    "models.folders": lines("{path}  {trouble}", empty="No folder is registered."),
    "models.token": print_library.hub_token,
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

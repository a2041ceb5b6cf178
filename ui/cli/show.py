"""What commands print: a sentence or table for the answer of an action, exit codes of jobs."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.cluster import sentence as cluster
from jobs.job import Job
from jobs.jobs_table import summary
from jobs.preflight import TITLES
from studio.errors import InputError
from studio.names import readable
from ui.cli import show_models
from ui.cli.show_data import (
    checked,
    compared,
    conversations,
    curated,
    dataset,
    duration,
    endpoint,
    leaderboard,
    mapped,
    number,
    recipes,
    suite,
    table,
    xray,
)

Answer = Any


def exit_code(job: Job) -> int:
    """Return the contract's exit code for how a job ended."""
    if job.state == "succeeded":
        return 0
    if job.state in ("cancelled", "paused"):
        return 4
    return 2 if job.error_kind in _input_kinds(InputError) else 3


def _input_kinds(root: type[InputError]) -> set[str]:
    return {root.kind}.union(*(_input_kinds(child) for child in root.__subclasses__()))


def ending(job: Job, as_json: bool) -> int:
    """Print how a job ended that made nothing, and return the exit code."""
    facts, whole = summary(job), job.kind in ("train", "arrive")
    if as_json:
        error = None if whole else facts["error"]
        print(json.dumps({"error": error} if error else facts, ensure_ascii=False))
    elif job.kind == "train":
        text = f'"{job.name}" ended at step {job.step}: {job.state}.'
        print(f"{text}\n{job.error_text}" if job.error_text else text)
    else:
        print(job.error_text or f'"{job.name}" is {job.state}.', file=sys.stderr)
    return exit_code(job)


# -- adapters --------------------------------------------------------------------------------------


def merged(answer: Answer) -> None:
    """Print where a merged model is and its certificate."""
    found = answer["certificate"]
    print(f"Merged into {answer['out']}")
    print(
        f"Certificate: max logit error {found['max_error']:.2g} (allowed "
        f"{found['tolerance']:.2g}), {found['tokens_changed']} of "
        f"{found['tokens_compared']} tokens changed, base {found['base_precision']}."
    )
    if found["left"]:
        print("Not merged, still adapters: " + ", ".join(found["left"]))


def exported(answer: Answer) -> None:
    """Print where an export is and how exact it is."""
    print(f"Exported to {answer['out']}")
    check = answer["check"] or {}
    if check.get("max_error") is None:
        return
    changed = ""
    if "tokens_changed" in check:
        changed = f", {check['tokens_changed']} of {check['tokens_compared']} tokens changed"
    print(f"Read back: max logit error {check['max_error']:.2g}{changed}.")
    for note in check.get("notes") or ():
        print(note)


def evaluated(report: Mapping[str, Any]) -> None:
    """Print an evaluation."""
    print(f"rows            {report['rows']}")
    print(f"loss            {report['eval_loss']:.4f}")
    print(f"perplexity      {report['perplexity']:.4g}")
    print(f"token accuracy  {report['token_accuracy']:.1%} of {report['tokens']} tokens")
    if "accuracy" in report:
        low, high = report["accuracy_interval"]
        print(f"accuracy        {report['accuracy']:.1%} ({low:.1%} to {high:.1%})")
        print(f"macro F1        {report['macro_f1']:.4f}")
        print(f"calibration     {report['ece']:.4f} expected error")
    if report.get("forgetting") is not None:
        changed, prompts = report["changed"], report["general"]["prompts"]
        print(f"forgetting      {report['forgetting']:.4f} KL, {changed} of {prompts} changed")
    for name, value in report.get("scores", {}).items():
        print(f"{name:15} {value:.1%}")


def picture(answer: Answer) -> None:
    """Print what an adapter changed, one line a module."""
    for change in answer["changes"]:
        size = f"{change['norm']:.2%}" if change["relative"] else f"{change['norm']:.3g}"
        rank = change["effective_rank"]
        words = "" if rank is None else f"  rank {rank:.1f}"
        layer = "outside" if change["layer"] < 0 else f"layer {change['layer']}"
        print(f"{layer:>8}  {change['module']:<28} {size:>9}{words}")


def adapters(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the library."""
    if not found:
        print("No adapters yet. `studio train --data starter:pirate` makes the first.")
    for one in found:
        loss = "" if one["last_loss"] is None else f", loss {one['last_loss']:.4f}"
        ended = f", {one['ended']} after {one['steps']} steps" if one["ended"] else ""
        print(f"{one['name']}: {one['method_title']} on {one['base']}{ended}{loss}")


def results(answer: Answer) -> None:
    """Print the results table, or its text in another format."""
    if "text" in answer:
        print(answer["text"], end="")
        return
    columns = answer["columns"]
    rows = [
        [row["name"], row["method"], *(number(row.get(one["key"])) for one in columns)]
        for row in answer["rows"]
    ]
    table(["Adapter", "Method", *(one["title"] for one in columns)], rows)


# -- training --------------------------------------------------------------------------------------


def trained(facts: Mapping[str, Any]) -> None:
    """Print how a training went and what to do next."""
    print(
        f'"{facts["name"]}" is trained: {facts["step"]} steps in {duration(facts["seconds"])}, '
        f"loss {number(facts['first_loss'])} → {number(facts['last_loss'])}.\n"
        f"Its adapter is {facts['adapter']}\n"
        f"Talk to it: studio chat --adapter {shlex.quote(facts['name'])}"
    )


def estimated(report: Mapping[str, Any]) -> None:
    """Print the memory of a run by part, and its time."""
    for part, size in report["parts"].items():
        print(f"{TITLES[part]:22} {size / 2**20:10.1f} MiB")
    how = "measured" if report["measured"] else "estimated"
    fits = "fits" if report["fits"] else "does not fit"
    size, apart = report["processes"], report["on_device"] == 1
    each, pace = "", ""
    if size > 1:
        each = " on each device" if apart else f" for all {size} processes"
        each += "" if apart else f" of {report['process_bytes'] / 2**20:.1f} MiB"
        pace = f", if {size} are {report['efficiency'] * size:.2g} times as fast as one"
    print(
        f"{'Peak, ' + how:22} {report['total_bytes'] / 2**20:10.1f} MiB{each}, {fits} into "
        f"{report['device_bytes'] / 2**20:.0f} MiB free on {report['device']}"
    )
    print(
        f"{report['total_steps']} steps of about {report['tokens_per_step']} tokens, about "
        f"{report['seconds']:.0f} s{pace}"
    )
    for field, value in report["changes"].items():
        print(f"changed: {field}={value}")


def refitted(answer: Answer) -> None:
    """Print what was changed so that a run fits, and the other ways."""
    offers = answer if isinstance(answer, list) else answer["offers"]
    if not isinstance(answer, list):
        taken = answer["remedy"]
        offers = [one for one in offers if one["name"] != taken["name"]]
        queued = f'Queued "{answer["name"]}" as number {answer["id"]}.'
        print(f"{queued} {taken['title']}: {taken['about']}")
        if offers:
            print("Other ways, with --remedy NAME:")
    for one in offers:
        same = "Same result." if one["same_result"] else "The result changes."
        print(f"  {one['name']:14} {one['about']} {one['lacks'] or same}")


def presets(found: Sequence[Mapping[str, Any]]) -> None:
    """Print what each preset sets."""
    for preset in found:
        print(f"{preset['name']}: {preset['about']}")
        for field, value in preset["values"].items():
            print(f"  {field}={value}")


def contest(answer: Answer) -> None:
    """Print the table of a bake-off."""
    rows = []
    for row in answer["rows"]:
        if row["state"] != "succeeded":
            rows.append((row["title"], row["error"] or row["state"]))
            continue
        rows.append(
            (
                row["title"],
                f"{row['trainable_parameters']:,}",
                number(row["peak_memory_bytes"], "{:.0f} MiB", 2**20),
                number(row["seconds_per_step"], "{:.3f}"),
                number(row["learning_rate"], "{:.2g}"),
                *(
                    number(row[key], "{:.3f}")
                    + (f" ± {margin:.2f}" if (margin := row.get(f"{key}_interval")) else "")
                    for key in ("last_loss", "eval_loss", "forgetting")
                ),
                number(row["size_bytes"], "{:.0f} KiB", 1024),
                *(number(row[key], "× {:.2f}") for key in ("live_ratio", "merged_ratio")),
            )
        )
    table("Method Trainable Memory s/step Rate Last Eval Forgetting Size Live Merged".split(), rows)


def methods(found: Sequence[Mapping[str, Any]]) -> None:
    """Print every method with its paper and what it can do."""
    width = max(len(one["name"]) for one in found)
    for one in found:
        able = ", ".join(key for key, value in one["capabilities"].items() if value)
        print(f"{one['name']:{width}}  {one['title']} ({one['paper']})")
        print(f"{'':{width}}  {one['summary']}")
        if able:
            print(f"{'':{width}}  {able}")


def diagnosis(facts: Mapping[str, Any]) -> None:
    """Print what `studio doctor` found."""
    print(f"Python {facts['python']} on {facts['system']}, SQLite {facts['sqlite']}")
    print(", ".join(f"{name} {v}" for name, v in facts["packages"].items() if v))
    for device in facts["devices"]:
        free, total = readable(device["free_bytes"]), readable(device["total_bytes"])
        print(f"{device['name']}: {device['label']}, {free} of {total} free")
    if facts["allocator"]:
        print(f"Memory allocator of runs: {facts['allocator']}")
    if home := facts["home"]:
        print(f"Home {home['path']}, {readable(home['free_bytes'])} free")
        print("Runs: " + (", ".join(f"{n} {s}" for s, n in home["jobs"].items()) or "none"))
        if home["cluster"] and not home["cluster"]["trouble"]:
            print(cluster(home["cluster"]))
        for row in home["processes"]:
            print(f"Process {row['pid']}: {row['role']} {row['url']}".rstrip())
    if model := facts.get("model"):
        print(f"Model {model['path']}: {', '.join(model['works']) or 'nothing'} work")
        for name, why in model["fails"].items():
            print(f"  {name}: {why}")
    for finding in facts["findings"]:
        print(f"{finding['kind'].capitalize()}: {finding['text']}")
    print("No problems found." if facts["ok"] else "Problems found (see above).")


# -- the queue -------------------------------------------------------------------------------------


def schedule_of(job: Mapping[str, Any]) -> str:
    """Return what a queued job waits for, in brackets; empty if nothing."""
    parts = []
    if job["start_after"] and job["start_after"] > time.time():
        moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["start_after"]))
        parts.append(f"not before {moment}")
    if job["start_when"]:
        parts.append({"idle": "when idle", "night": "at night"}[job["start_when"]])
    if job["needs"]:
        parts.append("after " + ", ".join(map(str, job["needs"])))
    if job["retries_left"]:
        parts.append(f"retried up to {job['retries_left']} times")
    if job["waits"]:
        parts.append(job["waits"])
    return f" ({'; '.join(parts)})" if parts else ""


def queue(answer: Answer) -> None:
    """Print running and queued jobs in order."""
    if answer["held"]:
        print(f"The queue is held: {answer['held']} Release it with `studio queue --release`.")
    for job in answer["jobs"]:
        print(f"{job['id']:>6}  {job['state']:9} {job['name']}{schedule_of(job)}")
    if not answer["jobs"]:
        print("The queue is empty.")


def changed(answer: Answer) -> None:
    """Print the new state of a job, or how many runs of a sweep changed."""
    if "changed" in answer:
        print(f'{answer["changed"]} runs of "{answer["sweep"]}" changed.')
    else:
        print(f'"{answer["name"]}" is {answer["state"]}{schedule_of(answer)}.')


def runs(found: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of runs."""
    if not found:
        print("No runs yet. `studio train --data starter:pirate` makes the first.")
        return
    rows = []
    for job in found:
        total = "–" if job["total_steps"] is None else job["total_steps"]
        steps = f"{job['step']} / {total}"
        losses = (number(job[key]) for key in ("last_loss", "eval_loss", "forgetting"))
        rows.append([str(job["id"]), job["name"], job["state"], steps, *losses,
                     duration(job["seconds"])])  # fmt: skip
    table("ID|Name|State|Steps|Loss|Eval loss|Forgetting|Time".split("|"), rows)


def run(job: Mapping[str, Any]) -> None:
    """Print everything about one run."""
    print(f"{job['name']} (number {job['id']}) is {job['state']}.")
    if job["error"] and job["error"]["text"]:
        print(job["error"]["text"])
    total = "" if job["total_steps"] is None else f" of {job['total_steps']}"
    print(f"  step       {job['step']}{total}")
    for key in ("first_loss", "last_loss", "eval_loss", "forgetting"):
        print(f"  {key.replace('_', ' '):10} {number(job[key])}")
    print(f"  time       {duration(job['seconds'])}")
    print("  rows       " + ", ".join(f"{v} {k}" for k, v in job["rows"].items() if v))
    print(f"  adapter    {job['adapter'] or '–'}")
    print(f"  folder     {job['folder']}")
    for event in job["history"]:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        print(f"  {moment}  {event['state']:12} {event['why']}")


def note(job: Mapping[str, Any]) -> None:
    """Print a job's tags and note."""
    print("\n".join([f"{job['name']}: {', '.join(job['tags'])}", job["notes"]]).strip())


def webhook(answer: Answer) -> None:
    """Print where job notifications go."""
    places = {"keyring": "in the system's keyring", "file": "in a file that only you can read"}
    if not answer["kept"]:
        print("No webhook is set.")
        return
    print(
        f"Job notifications go to {answer['webhook']}; the address is stored "
        f"{places[answer['kept']]}."
    )


# -- the home --------------------------------------------------------------------------------------


def storage(facts: Mapping[str, Any]) -> None:
    """Print what uses space, and what the rules allow to remove."""
    for part in facts["parts"]:
        print(f"{readable(part['bytes']):>12}  {part['name']}")
    print(f"{readable(facts['free_bytes']):>12}  free on this disk")
    for one in facts["runs"]:
        print(f"{readable(one['bytes']):>12}  run {one['name']} ({one['state']})")
    print(f"`studio clean` would free {readable(facts['spare']['bytes'])}.")


def cleaned(found: Mapping[str, Any]) -> None:
    """Print what was or would be removed."""
    for item in found["items"]:
        print(f"{readable(item['bytes']):>12}  {item['what']}: {item['why']}")
    if found["removed"]:
        print(f"Freed {readable(found['bytes'])}.")
    elif found["items"]:
        print(f"`studio clean --yes` frees {readable(found['bytes'])}.")
    else:
        print("There is nothing to clean up.")


def backed_up(done: Mapping[str, Any]) -> None:
    """Print what a backup holds."""
    print(
        f"{done['file']} holds {done['files']} files, {readable(done['bytes'])}. "
        "Secrets and running processes are not included."
    )


def restored(done: Mapping[str, Any]) -> None:
    """Print where a backup was restored."""
    before = f" The previous home is now {done['before']}." if done["before"] else ""
    print(f"{done['home']} is restored.{before} Open the studio to continue.")


def lines(text: str, empty: str = "") -> Callable[[Answer], None]:
    """Return a printer of a sentence with values of the answer, or of each row of it.

    Args:
        text: A format with the names of the values.
        empty: Printed instead where there are no rows.
    """

    def show(answer: Answer) -> None:
        for row in answer if isinstance(answer, list) else [answer]:
            print(text.format(**row))
        if empty and not answer:
            print(empty)

    return show


def plain(answer: Answer) -> None:
    """Print the values of an answer, or of each row of it, that are not empty."""
    for row in answer if isinstance(answer, list) else [answer]:
        for key, value in row.items() if isinstance(row, dict) else [("", row)]:
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                value = ", ".join(value)
            if value not in (None, "", [], {}):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                print(f"{key:14} {text}" if key else text)


PASSPORT = (
    "id", "name", "path", "base", "method", "tags", "ended", "parents", "passport", "blind_test",
)  # fmt: skip
SENTENCES: dict[str, Callable[[Any], None]] = {
    "train": trained,
    "bakeoff": contest,
    "preflight": estimated,
    "refit": refitted,
    "presets.list": presets,
    "presets.save": presets,
    "presets.forget": presets,
    "methods": methods,
    "merge": merged,
    "mix": lines("Mixed into {adapter} ({how}, error {error:.2g})"),
    "import": lines('Imported {method} adapter "{name}" to {path}'),
    "export": exported,
    "gguf": exported,
    "push": lines("Uploaded to {address}"),
    "promote": lines("The adapter of the run is now {adapter}"),
    "evaluate": evaluated,
    "results": results,
    "data.check": checked,
    "data.import": dataset,
    "data.map": mapped,
    "data.xray": xray,
    "data.list": lines(
        "{name:32} {rows:>12,} rows  {format:18} {hash:.12}",
        empty="No dataset is imported yet: studio data import FILE",
    ),
    "data.export": lines("{rows:,} rows are in {file}."),
    "data.delete": lines("{deleted} is deleted."),
    "data.overlap": lines("{rows:,} rows of {other} are in {dataset} too."),
    **dict.fromkeys(("data.split", "data.filter", "data.dedupe", "data.drop"), curated),
    "compare": compared,
    "suite": suite,
    "leaderboard": leaderboard,
    "vote": lines("Turn {turn}: {verdict}."),
    "conversations": conversations,
    "recipes": recipes,
    "endpoint": endpoint,
    "adapters": adapters,
    "adapters.show": lambda a: plain({key: value for key, value in a.items() if key in PASSPORT}),
    "adapters.rename": lines('Renamed to "{name}".'),
    "adapters.tag": lambda a: print(f'Tags of "{a["name"]}": {", ".join(a["tags"]) or "none"}.'),
    "adapters.delete": lines('Deleted "{name}". Restore it with `studio adapters undo`.'),
    "adapters.undo": lines('Restored "{name}".'),
    "adapters.trash": lines("{name}", empty="The trash is empty."),
    "adapters.picture": picture,
    "models": show_models.models,
    "models.search": show_models.found,
    "models.show": show_models.one,
    "models.get": lines("{model} is in {folder}"),
    "models.remove": show_models.removed,
    "models.folders": lines("{path}  {trouble}", empty="No folder is registered."),
    "models.token": show_models.token,
    "offline": lambda a: print("The hub is " + ("not used." if a["offline"] else "used.")),
    "queue": queue,
    "move": lambda job: print(
        f'"{job["name"]}" is number {job["place"]} of the queue.' if job["place"] else job["name"]
    ),
    "hold": changed,
    "release": changed,
    "delete": lines('"{name}" is deleted.'),
    "duplicate": lines('Queued "{name}" as number {id}.'),
    "sweep": lambda a: print(f'Queued {len(a["jobs"])} runs as the sweep "{a["sweep"]}".'),
    "schedule": changed,
    "then": lines('Queued "{name}" as number {id}, after run {parent}.'),
    "extend": lines('Queued "{name}" as number {id}, from step {step}.'),
    "save": lines('"{name}" saves a checkpoint at its next step.'),
    "sample": lines('"{name}" answers its sample prompts at its next step.'),
    "note": note,
    "webhook": webhook,
    "runs": runs,
    "show": run,
    "cancel": changed,
    "pause": changed,
    "resume": changed,
    "storage": storage,
    "clean": cleaned,
    "backup": backed_up,
    "restore": restored,
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

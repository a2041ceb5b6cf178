"""Print runs, the queue, presets, methods, estimates and bake-offs; the exit codes of jobs."""

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.copy_and_extend_runs import TITLES
from jobs.job_record import TRAINS, Job, summary
from jobs.run_findings import command
from studio.errors import revived
from studio.names import readable
from ui.cli.terminal_tables import duration, number, table
from ui.language import say

Answer = Any


def exit_code(job: Job) -> int:
    """Return the contract's exit code for how a job ended."""
    if job.state == "succeeded":
        return 0
    if job.state in ("cancelled", "paused"):
        return 4
    return revived({"kind": job.error_kind or "", "text": ""}).exit_code


def ending(job: Job, as_json: bool) -> int:
    """Print how a run or other job ended that made nothing, and return the exit code."""
    facts, whole = summary(job), job.kind in TRAINS
    if as_json:
        error = None if whole else facts["error"]
        print(json.dumps({"error": error} if error else facts, ensure_ascii=False))
    elif job.kind == "train":
        text = f'"{job.name}" ended at step {job.step}: {job.state}.'
        print(f"{text}\n{say(job.error_text)}" if job.error_text else text)
    else:
        print(say(job.error_text or f'"{job.name}" is {job.state}.'), file=sys.stderr)
    return exit_code(job)


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
    if report.get("warning"):
        print(report["warning"])


def refitted(answer: Answer) -> None:
    """Print what was changed so that a run fits, and the other ways."""
    offers = answer if isinstance(answer, list) else answer["offers"]
    if not isinstance(answer, list):
        taken = answer["remedy"]
        offers = [one for one in offers if one["name"] != taken["name"]]
        queued = f'Queued "{answer["name"]}" as number {answer["id"]}.'
        print(f"{queued} {say(taken['title'])}: {say(taken['about'])}")
        if offers:
            print("Other ways, with --remedy NAME:")
    for one in offers:
        same = "Same result." if one["same_result"] else "The result changes."
        print(f"  {one['name']:14} {say(one['about'])} {say(one['lacks'] or same)}")


def presets(found: Sequence[Mapping[str, Any]]) -> None:
    """Print what each preset sets."""
    for preset in found:
        print(f"{preset['name']}: {preset['about']}")
        for field, value in preset["values"].items():
            print(f"  {field}={value}")


def contest(answer: Answer) -> None:
    """Print the table of a bake-off."""
    rows: list[tuple[str, ...]] = []
    for row in answer["rows"]:
        if row["state"] != "succeeded":
            rows.append((row["title"], row["error"] or row["state"]))
            continue
        count = len(row["runs"])
        some = f" ({row['seeds']} of {count} runs)" if row["seeds"] < count else ""
        rows.append((row["title"] + some, *(_figure(row, one) for one in answer["columns"])))
    table(["Method", *(one["title"] for one in answer["columns"])], rows)


def _figure(row: Mapping[str, Any], column: Mapping[str, str]) -> str:
    """Return a figure of a bake-off in its unit, with its interval."""
    value, margin = row[column["key"]], row.get(f"{column['key']}_interval")
    if value is None:
        return "–"
    forms = {"bytes": readable, "count": "{:,}".format, "s": duration, "×": "× {:.2f}".format}
    figure = forms.get(column["unit"], "{:.4g}".format)(value)
    return f"{figure} ± {margin:.2f}" if margin else figure


def methods(found: Sequence[Mapping[str, Any]]) -> None:
    """Print every method with its paper and what it can do."""
    width = max(len(one["name"]) for one in found)
    for one in found:
        able = ", ".join(key for key, value in one["capabilities"].items() if value)
        print(f"{one['name']:{width}}  {one['title']} ({one['paper']})")
        print(f"{'':{width}}  {one['summary']}")
        if able:
            print(f"{'':{width}}  {able}")


# -- the queue -------------------------------------------------------------------------------------


def schedule_of(job: Mapping[str, Any]) -> str:
    """Return what a queued run waits for, as printed in brackets; empty if nothing."""
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
        parts.append(say(job["waits"]))
    return f" ({'; '.join(parts)})" if parts else ""


def queue(answer: Answer) -> None:
    """Print the queue: running and queued jobs in order."""
    if answer["held"]:
        print(f"The queue is held: {answer['held']} Release it with `studio queue --release`.")
    for job in answer["jobs"]:
        print(f"{job['id']:>6}  {job['state']:9} {job['name']}{schedule_of(job)}")
    if not answer["jobs"]:
        print("The queue is empty.")


def changed(answer: Answer) -> None:
    """Print the new state of a run or other job, or how many runs of a sweep changed."""
    if "changed" in answer:
        print(f'{answer["changed"]} runs of "{answer["sweep"]}" changed.')
        for text in answer["refused"]:
            print(say(text))
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
        print(say(job["error"]["text"]))
    total = "" if job["total_steps"] is None else f" of {job['total_steps']}"
    print(f"  step       {job['step']}{total}")
    for key in ("first_loss", "last_loss", "eval_loss", "forgetting"):
        print(f"  {key.replace('_', ' '):10} {number(job[key])}")
    print(f"  time       {duration(job['seconds'])}")
    print("  rows       " + ", ".join(f"{v} {k}" for k, v in job["rows"].items() if v))
    print(f"  adapter    {job['adapter'] or '–'}")
    print(f"  folder     {job['folder']}")
    for one in job["reading"]:
        print(
            f"  {say(one['title'])}: {say(one['text'])}\n    {command(job, one['remedy'])}".rstrip()
        )
    for event in job["history"]:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        print(f"  {moment}  {event['state']:12} {say(event['why'])}")


def note(job: Mapping[str, Any]) -> None:
    """Print the tags and the note of a run or other job."""
    print("\n".join([f"{job['name']}: {', '.join(job['tags'])}", job["notes"]]).strip())


def exported_runs(answer: Answer) -> None:
    """Print how many values of each run the trackers got."""
    for name, count in answer["values"].items():
        print(f'{count:,} values of "{name}" written to {answer["report_to"]}')
    for folder in answer["folders"]:
        print(f"tensorboard --logdir {shlex.quote(folder)}")

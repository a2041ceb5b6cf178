"""The bodies of the commands that make something of adapters: merge, mix, import, export.

Merging and mixing are queued jobs that are followed like a run; importing and exporting are copies.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import supervisor
from jobs.admission import admit
from jobs.job import Job
from jobs.jobs_table import summary
from jobs.store import JobStore
from studio.adapters.requests import MergeRequest, MixRequest
from studio.fields import merge_values, parse_assignment
from studio.home import Home
from studio.spec import ModelSource, RunSpec
from studio.stack import StackItem
from ui.cli.follow import follow_to_the_end
from ui.cli.runs_commands import say_state


def merge(
    home: Home, *, model: ModelSource, adapters: Sequence[str], out: str, name: str,
    follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Queue a merge and, unless detached, wait for its certificate."""
    stack = tuple(StackItem.read(text) for text in adapters)
    values = {"name": name, "model": model, "stack": stack, "out": out}
    request = MergeRequest.parse(values).checked(home)
    job = _run(home, "merge", request.model_dump(mode="json"), follow=follow)
    if not follow or job.state != "succeeded":
        return say_state(job, as_json)
    from studio.adapters.merge import read_certificate

    certificate = read_certificate(Path(request.out))
    if as_json:
        print(json.dumps({"out": request.out, "certificate": certificate}, ensure_ascii=False))
        return 0
    print(f"Merged into {request.out}")
    print(
        f"Certificate: max logit error {certificate['max_error']:.2g} (allowed "
        f"{certificate['tolerance']:.2g}), {certificate['tokens_changed']} of "
        f"{certificate['tokens_compared']} tokens changed, base {certificate['base_precision']}."
    )
    if certificate["left"]:
        print("Not merged, still adapters: " + ", ".join(certificate["left"]))
    return 0


def mix(
    home: Home, values: dict[str, Any], *, adapters: Sequence[str], follow: bool, as_json: bool
) -> int:
    """Queue a mix and, unless detached, wait for the new adapter."""
    stack = [StackItem.read(text).model_dump() for text in adapters]
    request = MixRequest.parse({**values, "stack": stack}).checked(home)
    job = _run(home, "mix", request.model_dump(mode="json"), follow=follow)
    if not follow or job.state != "succeeded":
        return say_state(job, as_json)
    from studio.adapters.library import describe

    folder = Path(str(summary(job)["adapter"]))
    mixed = describe(folder).passport.get("mix", {})
    if as_json:
        print(json.dumps({"adapter": str(folder), **mixed}, ensure_ascii=False))
    else:
        print(f"Mixed into {folder} ({mixed['how']}, error {mixed['error']:.2g})")
    return 0


def import_(home: Home, source: str, *, name: str, model: str, as_json: bool) -> int:
    """Copy an adapter folder or hub id into the library."""
    from studio.adapters.imports import import_adapter

    base = ModelSource(path=model) if model else None
    found = import_adapter(home, source, name=name, model=base)
    if as_json:
        values = {"name": found.name, "path": str(found.path), "method": found.method}
        print(json.dumps(values, ensure_ascii=False))
    else:
        print(f'Imported {found.method} adapter "{found.name}" to {found.path}')
    return 0


def export(home: Home, name: str, *, out: str, form: str, model: str, as_json: bool) -> int:
    """Write an adapter to a folder of its own."""
    from studio.adapters.export import as_format, export_adapter
    from studio.adapters.verify import EXPORT_REPORT, read_report

    folder = export_adapter(home, name, Path(out).expanduser(), form=as_format(form), model=model)
    check = read_report(folder, EXPORT_REPORT)
    if as_json:
        print(json.dumps({"out": str(folder), "check": check or None}))
    else:
        print(f"Exported to {folder}")
        if check.get("max_error") is not None:
            print(f"Read back on its base: max logit error {check['max_error']:.2g}.")
    return 0


def export_gguf(
    home: Home, name: str, *, out: str, model: str, precision: str, as_json: bool
) -> int:
    """Queue a GGUF export of an adapter (`NAME[:WEIGHT]`) or of a model folder, and wait."""
    from studio.adapters.gguf import GgufRequest
    from studio.adapters.library import describe, resolve
    from studio.adapters.verify import GGUF_REPORT, read_report

    item = StackItem.read(name)
    stack, base = [item], model
    if Path(name).expanduser().joinpath("config.json").is_file() or name == "starter":
        stack, base = [], name
    else:
        found = describe(resolve(home, item.name))
        base = base or found.base
        if found.is_model:
            stack, base = [], str(found.path)
    values = {
        "model": {"path": base or "starter"}, "stack": [one.model_dump() for one in stack],
        "precision": precision, "out": out,
    }  # fmt: skip
    request = GgufRequest.parse(values).checked(home)
    job = _run(home, "gguf", request.model_dump(mode="json"), follow=True)
    if job.state != "succeeded":
        return say_state(job, as_json)
    check = read_report(Path(request.out), GGUF_REPORT)
    if as_json:
        print(json.dumps({"out": request.out, "check": check}, ensure_ascii=False))
        return 0
    print(f"Exported to {request.out}")
    print(
        f"Read back: max logit error {check['max_error']:.2g} (allowed {check['tolerance']:.2g}), "
        f"{check['tokens_changed']} of {check['tokens_compared']} tokens changed."
    )
    for note in check["notes"]:
        print(note)
    return 0


def push(home: Home, values: dict[str, Any], *, follow: bool, as_json: bool) -> int:
    """Queue an upload and, unless detached, wait until it has arrived."""
    from studio.adapters.push import PushRequest

    request = PushRequest.parse(values).checked(home)
    job = _run(home, "push", request.model_dump(mode="json"), follow=follow)
    if not follow or job.state != "succeeded":
        return say_state(job, as_json)
    address = job.result.get("address")
    print(json.dumps({"address": address}) if as_json else f"Uploaded to {address}")
    return 0


def _run(home: Home, kind: str, values: dict[str, Any], *, follow: bool) -> Job:
    with closing(JobStore(home)) as store:
        job = store.submit(values, kind=kind)
        supervisor.ensure_running(home)
        return follow_to_the_end(store, job) if follow else job


def bakeoff(
    home: Home, name: str, fields: dict[str, Any], assignments: Sequence[str], *,
    methods: Sequence[str], prompts: Sequence[str], follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Queue a bake-off and, unless detached, print its table at the end."""
    from jobs import bakeoff as contest

    values = merge_values({}, fields | dict(map(parse_assignment, assignments)))
    spec = admit(RunSpec.parse(values), home)
    with closing(JobStore(home)) as store:
        jobs = contest.submit(store, spec, methods, name=name, prompts=prompts or contest.PROMPTS)
        supervisor.ensure_running(home)
        if follow:
            for job in jobs:
                follow_to_the_end(store, job)
        rows = contest.table(store, name)
    if as_json:
        print(json.dumps({"name": name, "rows": rows}, ensure_ascii=False))
    elif follow:
        _print_table(rows)
    else:
        print(f'Queued "{name}": {len(rows)} runs.')
    return 0


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = "Method Trainable Memory s/step First Last Eval Size Live Merged"
    table = Table(*columns.split(), box=None)
    for row in rows:
        if row["state"] != "succeeded":
            table.add_row(row["method"], row["error"] or row["state"])
            continue
        table.add_row(
            row["method"],
            f"{row['trainable_parameters']:,}",
            _with(row["peak_memory_bytes"], 2**20, "{:.0f} MiB"),
            _with(row["seconds_per_step"], 1, "{:.3f}"),
            *(_with(row[key], 1, "{:.3f}") for key in ("first_loss", "last_loss", "eval_loss")),
            _with(row["size_bytes"], 1024, "{:.0f} KiB"),
            *(_with(row[key], 1, "× {:.2f}") for key in ("live_ratio", "merged_ratio")),
        )
    Console(highlight=False).print(table)


def _with(value: float | None, unit: float, form: str) -> str:
    return "–" if value is None else form.format(value / unit)

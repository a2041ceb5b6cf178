"""The bodies of the commands that make something of adapters: merge, mix, import, export.

Merging and mixing are queued jobs that are followed like a run; importing and exporting are copies.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import supervisor
from jobs.commands import exit_code
from jobs.follow import follow_to_the_end
from jobs.record import Job
from jobs.store import JobStore
from jobs.summary import summary
from studio.adapters.requests import MergeRequest, MixRequest, StackItem
from studio.home import Home
from studio.spec import ModelSource


def merge(
    home: Home, *, model: ModelSource, adapters: Sequence[str], out: str, name: str,
    follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Queue a merge and, unless detached, wait for its certificate."""
    stack = tuple(StackItem.read(text) for text in adapters)
    request = MergeRequest(name=name, model=model, stack=stack, out=out).checked(home)
    job = _run(home, "merge", request.model_dump(mode="json"), follow=follow)
    if not follow or job.state != "succeeded":
        return _say(job, as_json)
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
        return _say(job, as_json)
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
    from studio.adapters.exchange import import_adapter

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
    from studio.adapters.exchange import as_format, export_adapter

    folder = export_adapter(home, name, Path(out).expanduser(), form=as_format(form), model=model)
    print(json.dumps({"out": str(folder)}) if as_json else f"Exported to {folder}")
    return 0


def _run(home: Home, kind: str, values: dict[str, Any], *, follow: bool) -> Job:
    with closing(JobStore(home)) as store:
        job = store.submit(values, kind=kind)
        supervisor.ensure_running(home)
        return follow_to_the_end(store, job) if follow else job


def _say(job: Job, as_json: bool) -> int:
    facts = summary(job)
    if as_json:
        error = facts["error"]
        print(json.dumps({"error": error} if error else facts, ensure_ascii=False))
    else:
        text = f'Queued "{job.name}" as number {job.id}.' if job.state == "queued" else ""
        print(text or job.error_text or f'"{job.name}" is {job.state}.', file=sys.stderr)
    return 0 if job.state == "queued" else exit_code(job)

"""The bodies of `studio pack`, `studio unpack` and `studio cluster`."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import cluster as clusters
from jobs import supervisor
from jobs.admission import admit
from jobs.store import JobStore
from studio.fields import merge_values, parse_assignment, read_yaml
from studio.home import Home
from studio.spec import RunSpec
from studio.training import transfer
from ui.cli.follow import follow_to_the_end
from ui.cli.runs_commands import say
from ui.cli.show import exit_code


def pack(
    home: Home, spec_file: Path | None, given: dict[str, Any], assignments: Sequence[str],
    *, out: Path, with_model: bool, as_json: bool,
) -> int:  # fmt: skip
    """Check a run as if it were queued, and write it as a folder."""
    values = read_yaml(spec_file) if spec_file else {}
    values = merge_values(values, given | dict(map(parse_assignment, assignments)))
    transfer.pack(admit(RunSpec.parse(values), home), out, home, with_model=with_model)
    if as_json:
        print(json.dumps({"out": str(out.absolute())}))
    else:
        print(f"Packed into {out}. Its README.txt says how to train it and bring it back.")
    return 0


def unpack(home: Home, folder: Path, *, name: str, follow: bool, as_json: bool) -> int:
    """Queue the taking of a folder that came back and, unless detached, wait for it."""
    spec = transfer.read_spec(folder)
    values = spec.model_dump(mode="json")
    values |= {"folder": str(folder.absolute()), "name": name or spec.name or folder.name}
    with closing(JobStore(home)) as store:
        job = store.submit(values, kind="arrive")
        supervisor.ensure_running(home)
        if follow:
            job = follow_to_the_end(store, job)
    sentence = f'Queued "{job.name}" as number {job.id}.'
    if follow:
        sentence = job.error_text or f'"{job.name}" is here, as number {job.id}.'
    say(job, as_json, sentence)
    return exit_code(job) if follow else 0


def cluster(home: Home, address: str, storage: str, *, off: bool, as_json: bool) -> None:
    """Choose, show or forget the cluster."""
    with closing(JobStore(home)) as store:
        if off:
            clusters.forget(store)
        elif address or storage:
            before = clusters.chosen(store)
            clusters.choose(store, address or (before.address if before else ""), storage)
        found = clusters.shown(store)
    print(json.dumps(found) if as_json else clusters.sentence(found))

"""The bodies of the commands that make something of adapters: merge, mix, import, export.

Merging and mixing are queued jobs that are followed like a run; importing and exporting are copies.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from jobs import supervisor
from jobs.admission import admit
from jobs.store import JobStore
from studio.fields import merge_values, parse_assignment
from studio.home import Home
from studio.spec import RunSpec
from ui.cli.follow import follow_to_the_end


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

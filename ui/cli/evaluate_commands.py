"""The body of `studio evaluate`: queue the measurement, wait for it, print what was found."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs import supervisor
from jobs.jobs_table import summary
from jobs.store import JobStore
from studio.evaluation.evaluate import REPORT, EvaluateRequest
from studio.fields import merge_values, parse_assignment
from studio.home import Home
from studio.spec import RunSpec
from studio.stack import StackItem
from ui.cli.follow import follow_to_the_end
from ui.cli.runs_commands import exit_code


def evaluate(
    home: Home, given: Mapping[str, Any], assignments: Sequence[str], *, adapters: Sequence[str],
    follow: bool, as_json: bool,
) -> int:  # fmt: skip
    """Queue an evaluation and, unless detached, print its report."""
    values = merge_values({}, dict(given) | dict(map(parse_assignment, assignments)))
    values["stack"] = [StackItem.read(text).model_dump() for text in adapters]
    if isinstance(values["scores"], str):
        values["scores"] = [values["scores"]]
    if not values["model"]["path"]:
        values["model"]["path"] = _base(home, values["stack"])
    values["data"]["path"] = _absolute(values["data"]["path"])
    request = EvaluateRequest.parse(values).checked(home)
    with closing(JobStore(home)) as store:
        job = store.submit(request.model_dump(mode="json"), kind="evaluate")
        supervisor.ensure_running(home)
        job = follow_to_the_end(store, job) if follow else job
    if not follow or job.state != "succeeded":
        facts = summary(job)
        if as_json:
            print(json.dumps({"error": facts["error"]} if facts["error"] else facts))
        else:
            waits = f'Queued "{job.name}" as number {job.id}.'
            print(waits if not follow else job.error_text or job.state, file=sys.stderr)
        return 0 if not follow else exit_code(job)
    report = json.loads((home.run(job.id) / REPORT).read_text(encoding="utf-8"))
    print(json.dumps({"id": job.id, **report}, ensure_ascii=False) if as_json else _lines(report))
    return 0


def _lines(report: Mapping[str, Any]) -> str:
    lines = [
        f"rows            {report['rows']}",
        f"loss            {report['eval_loss']:.4f}",
        f"perplexity      {report['perplexity']:.4g}",
        f"token accuracy  {report['token_accuracy']:.1%} of {report['tokens']} tokens",
    ]
    lines += [f"{name:15} {value:.1%}" for name, value in report.get("scores", {}).items()]
    return "\n".join(lines)


def _base(home: Home, stack: Sequence[Mapping[str, Any]]) -> str:
    from studio.adapters.library import describe, resolve

    found = describe(resolve(home, str(stack[0]["name"]))).base if stack else ""
    return found or str(RunSpec().model.path)


def _absolute(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path

"""What lanes can hold, and lanes as people write them: `starter~pirate:1+terse:0.5`."""

from collections.abc import Sequence
from typing import Any

from studio.chat.run_checkpoints import steps_of
from studio.errors import AdapterError
from studio.home import Home
from studio.stack import read_lane

MOST_CHECKPOINTS = 200


def adapters_and_checkpoints(home: Home) -> list[dict[str, Any]]:
    """Return everything a lane can stack: adapters, then the checkpoints of their runs."""
    from studio.adapters import library

    known = [adapter for adapter in library.adapters(home) if not adapter.is_model]
    rows: list[dict[str, Any]] = [
        {"name": one.name, "base": str(one.base), "method": str(one.method), "checkpoint": False}
        for one in known
    ]
    kept: list[dict[str, Any]] = []
    for run in sorted(home.runs.iterdir(), reverse=True):
        if not run.name.isdigit() or len(kept) >= MOST_CHECKPOINTS:
            continue
        if steps := steps_of(home, int(run.name)):
            base, method, called = _trained_on(run)
            kept += [
                {"name": f"{run.name}@{step}", "base": base, "method": method, "checkpoint": True,
                 "label": f"{called or f'run {run.name}'} at step {step}"}
                for step in reversed(steps) if base and method != "full"
            ]  # fmt: skip
    return rows + kept


def run_of(home: Home, lanes: Sequence[str]) -> dict[int, str]:
    """Return the runs that trained the lanes' adapters, as number: name."""
    from studio.adapters import library

    found: dict[int, str] = {}
    for lane in lanes:
        for part in read_lane(lane)["stack"]:
            run, at, _ = part["name"].partition("@")
            if at and run.isdigit():
                found[int(run)] = f"run {run}"
                continue
            try:
                adapter = library.resolve(home, part["name"])
            except AdapterError:
                continue
            if adapter.parent.parent == home.runs and adapter.parent.name.isdigit():
                found[int(adapter.parent.name)] = part["name"]
    return found


def _trained_on(run: Any) -> tuple[str, str, str]:
    """Return a run's base, method and name; empty where its spec cannot be read."""
    from studio.errors import StudioError
    from studio.fields import read_yaml
    from studio.spec import RunSpec

    try:
        spec = RunSpec.parse(read_yaml(run / "spec.yaml"))
    except (StudioError, OSError):
        return "", "", ""
    return str(spec.model.path), spec.method.name, spec.name

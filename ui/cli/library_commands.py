"""The bodies of `studio adapters …`: each is what a button of the Adapters page does."""

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from jobs import library
from jobs.jobs_table import summary
from jobs.store import JobStore
from studio.adapters import library as keeping
from studio.adapters.library import Adapter
from studio.adapters.picture import drawn
from studio.home import Home
from ui.cli.follow import follow_to_the_end
from ui.cli.runs_commands import exit_code


def show(home: Home, name: str, *, as_json: bool) -> None:
    """Print a passport with what is known around it."""
    adapter = keeping.find(home, name)
    facts = _facts(adapter) | {"passport": adapter.passport, "picture": drawn(adapter.path)}
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        if value and key != "picture":
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
            print(f"{key:14} {', '.join(value) if isinstance(value, list) else text}")


def rename(home: Home, name: str, new: str, *, as_json: bool) -> None:
    """Give an adapter another name."""
    with closing(JobStore(home)) as store:
        adapter = library.rename(store, name, new)
    _say(_facts(adapter), f'It is called "{adapter.name}" now.', as_json)


def tag(home: Home, name: str, tags: Sequence[str], *, as_json: bool) -> None:
    """Set an adapter's tags."""
    adapter = keeping.set_tags(home, name, tags)
    words = ", ".join(adapter.tags) or "none"
    _say(_facts(adapter), f'Tags of "{adapter.name}": {words}.', as_json)


def delete(home: Home, name: str, *, as_json: bool) -> None:
    """Move an adapter to the trash."""
    with closing(JobStore(home)) as store:
        gone = library.delete(store, name)
    text = f'Deleted "{gone.name}". `studio adapters undo` brings it back.'
    _say({"deleted": gone.name, "token": gone.token}, text, as_json)


def undo(home: Home, name: str, *, as_json: bool) -> None:
    """Restore a deleted adapter."""
    adapter = keeping.restore(home, name)
    _say(_facts(adapter), f'"{adapter.name}" is back.', as_json)


def trash(home: Home, *, as_json: bool) -> None:
    """List what can be restored."""
    waiting = keeping.trash(home)
    if as_json:
        rows = [{"name": one.name, "token": one.token, "deleted": one.deleted} for one in waiting]
        print(json.dumps(rows, ensure_ascii=False))
        return
    print("\n".join(one.name for one in waiting) or "The trash is empty.")


def picture(home: Home, name: str, *, model: str, as_json: bool) -> int:
    """Queue the measurement, wait for it and print it; one that is there is only printed."""
    adapter = keeping.find(home, name)
    if drawn(adapter.path) is None:
        with closing(JobStore(home)) as store:
            values = {"adapter": str(adapter.path), "model": {"path": model}}
            job = follow_to_the_end(store, library.ask(store, "picture", values))
        if job.state != "succeeded":
            error = summary(job)["error"]
            _say({"error": error}, job.error_text or f'"{job.name}" is {job.state}.', as_json)
            return exit_code(job)
    found = drawn(adapter.path) or {"changes": []}
    if as_json:
        print(json.dumps(found))
        return 0
    for change in found["changes"]:
        size = f"{change['norm']:.2%}" if change["relative"] else f"{change['norm']:.3g}"
        rank = change["effective_rank"]
        words = "" if rank is None else f"  rank {rank:.1f}"
        layer = "outside" if change["layer"] < 0 else f"layer {change['layer']}"
        print(f"{layer:>8}  {change['module']:<28} {size:>9}{words}")
    return 0


def _facts(adapter: Adapter) -> dict[str, Any]:
    return {
        "id": adapter.id, "name": adapter.name, "path": str(adapter.path), "base": adapter.base,
        "method": adapter.method, "tags": list(adapter.tags), "ended": adapter.ended,
        "parents": list(adapter.parents),
    }  # fmt: skip


def _say(values: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(values, ensure_ascii=False) if as_json else text)

"""What the commands that only look print: methods and adapters."""

import json
from typing import Any

from studio.home import Home
from studio.methods import capabilities, methods


def print_methods(*, as_json: bool) -> None:
    """Print every method with its paper and what it can do."""
    found = [describe_method(name) for name in methods()]
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    width = max(len(method["name"]) for method in found)
    for method in found:
        able = ", ".join(key for key, value in method["capabilities"].items() if value)
        print(f"{method['name']:{width}}  {method['title']} ({method['paper']})")
        print(f"{'':{width}}  {method['summary']}")
        if able:
            print(f"{'':{width}}  {able}")


def describe_method(name: str) -> dict[str, Any]:
    """Return a method's name, title, paper, capabilities and the first line of its manual."""
    method = methods()[name]
    return {
        "name": name,
        "title": method.title,
        "paper": method.paper,
        "summary": method.manual().split("\n\n")[0].replace("\n", " "),
        "capabilities": capabilities(name),
    }


def print_adapters(home: Home, *, as_json: bool) -> None:
    """Print every adapter of the home, newest first."""
    from studio.adapters.library import adapters

    found = [
        {
            "id": one.id, "name": one.name, "tags": list(one.tags), "path": str(one.path),
            "source": one.source, "base": one.base, "method": one.method,
            "size_bytes": one.size_bytes, "created": one.created,
            "ended": one.ended, "steps": one.steps, "first_loss": one.first_loss,
            "last_loss": one.last_loss, "eval_loss": one.eval_loss,
        }
        for one in adapters(home)
    ]  # fmt: skip
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    if not found:
        print("No adapters yet. `studio train --data starter:pirate` makes the first.")
    for one in found:
        loss = "" if one["last_loss"] is None else f", loss {one['last_loss']:.4f}"
        ended = f", {one['ended']} after {one['steps']} steps" if one["ended"] else ""
        print(f"{one['name']}: {one['method']} on {one['base']}{ended}{loss}")

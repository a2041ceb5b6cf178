"""What the commands that only look print: methods, adapters, checks of data files."""

import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.home import Home
from studio.methods import methods


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
        "capabilities": _capabilities(method),
    }


def print_adapters(home: Home, *, as_json: bool) -> None:
    """Print every adapter of the home, newest first."""
    from studio.adapters.library import adapters

    found = [
        {
            "name": one.name, "path": str(one.path), "source": one.source, "base": one.base,
            "method": one.method, "size_bytes": one.size_bytes, "created": one.created,
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


def print_checks(files: Iterable[Path], *, as_json: bool) -> int:
    """Print how each file would be read; 2 when one was refused."""
    reports = [_checked(file) for file in files]
    if as_json:
        print(json.dumps(reports, ensure_ascii=False))
    else:
        for report in reports:
            _print_check(report)
    return 0 if all(report["ok"] for report in reports) else 2


def _checked(file: Path) -> dict[str, Any]:
    from studio.data.check import check_file

    try:
        return dict(check_file(file).model_dump(mode="json"))
    except StudioError as error:
        nothing = {"read": 0, "kept": 0, "dropped": 0}
        return {
            "file": str(file), "ok": False, "format": None, "rows": nothing, "problems": [],
            "warnings": [], "error": error.as_dict(),
        }  # fmt: skip


def _print_check(report: dict[str, Any]) -> None:
    rows = report["rows"]
    if report["error"]:
        print(f"{report['file']}: {report['error']['text']}")
    else:
        counted = f"{rows['read']} rows, {rows['kept']} kept, {rows['dropped']} dropped"
        print(f"{report['file']}: {report['format']}, {counted}")
    for problem in report["problems"][:20]:
        print(f"  line {problem['line']}: {problem['text']}")
    if len(report["problems"]) > 20:
        print(f"  and {len(report['problems']) - 20} more")
    for warning in report["warnings"]:
        print(f"  note: {warning if isinstance(warning, str) else warning.get('text')}")


def _capabilities(method: type[Any]) -> dict[str, bool]:
    found = inspect.getattr_static(method, "capabilities", None)
    if found is None:
        return {}
    value = method.capabilities
    return {key: bool(flag) for key, flag in (value() if callable(value) else value).items()}

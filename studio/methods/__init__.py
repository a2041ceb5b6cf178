"""The registry of methods: every method file beside this one, found by itself.

Importing it needs no torch. The machinery that runs methods on a model is `studio.backbone`.
"""

import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path

from studio.errors import MethodError, nearest
from studio.methods.method import Method, Phase

__all__ = ["Method", "Phase", "capabilities", "methods", "named"]


@cache
def methods() -> dict[str, type[Method]]:
    """Return every method by name, in the order a person should meet them."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg or module.name == "method":
            continue
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, Method) and value is not Method:
                found[str(value.model_fields["name"].default)] = value
    return dict(sorted(found.items(), key=lambda item: (item[0] != "lora", item[0])))


def named(name: str) -> type[Method]:
    """Return the method called `name`.

    Raises:
        MethodError: There is none; names the nearest.
    """
    try:
        return methods()[name]
    except KeyError:
        raise MethodError(
            f'There is no method called "{name}".{nearest(name, methods())}'
        ) from None


@cache
def capabilities(name: str) -> dict[str, bool]:
    """Return what a probe found this method able to do (`layer/probe.py`); empty if unprobed."""
    table = json.loads((Path(__file__).parent / "capabilities.json").read_text(encoding="utf-8"))
    return dict(table.get(name, {}))

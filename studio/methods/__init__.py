"""Registry of fine-tuning methods: every file in this folder that defines one is found.

Importing it needs no torch. `studio.backbone` runs methods on a model.
"""

import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path

from studio.errors import MethodError, nearest
from studio.methods.method import Method, Phase

__all__ = [
    "DEFAULT",
    "Method",
    "Phase",
    "capabilities",
    "is_low_rank",
    "methods",
    "named",
    "trains_base",
]

DEFAULT = "lora"
VARIANTS = {  # names of the field that are a setting of a method here
    "dora": "lora with method.use_dora=true",
    "rslora": "lora with method.use_rslora=true",
    "pissa": "lora with method.init_lora_weights=pissa",
    "houlsby": "bottleneck with method.placement=houlsby",
    "pfeiffer": "bottleneck with method.placement=pfeiffer",
    "adapter": "bottleneck",
}


@cache
def methods() -> dict[str, type[Method]]:
    """Return every method by name, the default first."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg or module.name == "method":
            continue
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            own = getattr(value, "__module__", "") == loaded.__name__
            if own and isinstance(value, type) and issubclass(value, Method):
                found[str(value.model_fields["name"].default)] = value
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT, item[0])))


def named(name: str) -> type[Method]:
    """Return the method called `name`.

    Raises:
        MethodError: The method does not exist.
    """
    try:
        return methods()[name]
    except KeyError:
        variant = VARIANTS.get(name.lower().replace("-", "").replace("_", ""))
        hint = f" It is {variant} here." if variant else nearest(name, methods())
        raise MethodError(f'There is no method called "{name}".{hint}') from None


def trains_base(name: str) -> bool:
    """Return True if the method called `name` trains the base itself instead of an adapter."""
    return name in methods() and methods()[name].phase is Phase.WEIGHTS


def is_low_rank(name: str) -> bool:
    """Return True if adapters of the method called `name` are plain LoRA."""
    return name in methods() and methods()[name].is_low_rank


@cache
def capabilities(name: str) -> dict[str, bool]:
    """Return a method's capabilities as `tests/method_capabilities.py` measured them, or none."""
    table = json.loads((Path(__file__).parent / "capabilities.json").read_text(encoding="utf-8"))
    return dict(table.get(name, {}))

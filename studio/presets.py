"""Presets: named settings over the form. Four are ours, the others a person saved.

A preset never names a model or a dataset: it says how to train, not what.
"""

from __future__ import annotations

import json
import os
from typing import Any

from studio.errors import SpecError, nearest
from studio.home import Home
from studio.spec import RunSpec

Values = dict[str, Any]
OURS: dict[str, tuple[str, Values]] = {
    "quick look": (
        "A minute or so: does it learn at all?",
        {"train.max_steps": 60, "data.max_length": 512},
    ),
    "balanced": ("Three passes over the data; what to take when in doubt.", {}),
    "thorough": (
        "Up to ten passes, ended when the held-out loss stops falling; the best one is kept.",
        {
            "train.num_train_epochs": 10, "train.early_stopping_patience": 3,
            "data.validation_fraction": 0.1, "train.weight_decay": 0.01,
        },
    ),
    "low memory": (
        "The same result in the least memory: one row at a time, activations recomputed.",
        {
            "train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 8,
            "train.gradient_checkpointing": True, "train.optim": "adafactor",
        },
    ),
}  # fmt: skip
WHAT = ("name", "model.path", "model.revision", "data.path", "data.subset", "data.split",
        "data.validation_path", "train.device")  # fmt: skip
FILE = "presets.json"


def presets(home: Home) -> list[dict[str, Any]]:
    """Return every preset: name, what it is for, its settings, and whether it is the person's."""
    ours = [
        {"name": name, "about": about, "values": values, "own": False}
        for name, (about, values) in OURS.items()
    ]
    own = [
        {"name": name, "about": "Your own.", "values": values, "own": True}
        for name, values in sorted(_read(home).items())
    ]
    return [*ours, *own]


def applied(home: Home, name: str, spec: RunSpec) -> RunSpec:
    """Return the spec with a preset's settings; what it does not name goes back to the default.

    Raises:
        SpecError: There is no such preset.
    """
    known = {preset["name"]: preset["values"] for preset in presets(home)}
    if name not in known:
        raise SpecError(f'There is no preset "{name}".{nearest(name, known)}')
    kept = _flat(spec.model_dump(mode="json"))
    what = {field: kept[field] for field in WHAT if field in kept}
    method = known[name].get("method.name", spec.method.name)
    if method == spec.method.name and not any(f.startswith("method.") for f in known[name]):
        what |= {field: value for field, value in kept.items() if field.startswith("method.")}
    return RunSpec().with_values({**what, "method.name": method, **known[name]})


def save_preset(home: Home, name: str, spec: RunSpec) -> None:
    """Keep how a spec trains under a name.

    Raises:
        SpecError: The name is empty or one of ours.
    """
    name = name.strip()
    if not name or name in OURS or len(name) > 60:
        raise SpecError(f'"{name}" cannot be a preset\'s name: take another, up to 60 letters.')
    mine, base = _flat(spec.model_dump(mode="json")), _flat(RunSpec().model_dump(mode="json"))
    changed = {
        field: value for field, value in mine.items()
        if field not in WHAT and field != "version" and base.get(field) != value
    }  # fmt: skip
    if spec.method.name != "lora":
        changed["method.name"] = spec.method.name
    _write(home, _read(home) | {name: changed})


def forget_preset(home: Home, name: str) -> None:
    """Drop one of the person's presets.

    Raises:
        SpecError: It is not the person's.
    """
    own = _read(home)
    if name not in own:
        raise SpecError(f'There is no preset of your own called "{name}".{nearest(name, own)}')
    _write(home, {key: values for key, values in own.items() if key != name})


def _flat(values: dict[str, Any]) -> Values:
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def _read(home: Home) -> dict[str, Values]:
    try:
        found = json.loads((home.path / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise SpecError(
            f"{home.path / FILE} cannot be read: mend it, or remove it to lose your presets."
        ) from None
    return {str(k): v for k, v in found.items() if isinstance(v, dict)}


def _write(home: Home, values: dict[str, Values]) -> None:
    temporary = home.path / f".{FILE}-{os.getpid()}"
    temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, home.path / FILE)

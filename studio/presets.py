"""Presets: named training settings, four built in and the others saved by the user.

A preset never contains a model or a dataset.
"""

from __future__ import annotations

import json
from typing import Any

from studio import atomic
from studio.errors import SpecError, nearest
from studio.home import Home
from studio.spec import DataSource, RunSpec, differences

Values = dict[str, Any]
BUILT_IN: dict[str, tuple[str, Values]] = {
    "quick look": (
        "About a minute, to see whether the run learns at all.",
        {"train.max_steps": 60, "data.max_length": 512},
    ),
    "balanced": ("Three epochs with default settings.", {}),
    "thorough": (
        "Up to ten epochs with early stopping on the held-out loss; keeps the best checkpoint.",
        {
            "train.num_train_epochs": 10, "train.early_stopping_patience": 3,
            "data.validation_fraction": 0.1, "train.weight_decay": 0.01,
        },
    ),
    "low memory": (
        "Least memory: one row at a time, gradient checkpointing, Adafactor.",
        {
            "train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 8,
            "train.gradient_checkpointing": True, "train.optim": "adafactor",
        },
    ),
}  # fmt: skip
NOT_IN_PRESETS = (
    "name", "model.path", "model.revision", "data.path", "data.subset", "data.split",
    "data.validation_path", "data.validation_split", "train.device",
)  # fmt: skip
# What is trained, and with which loss; everything else goes back to its default with a preset.
STAYS = (
    *NOT_IN_PRESETS, "model.dtype", "model.quantization", "seed",
    *(f"data.{name}" for name in DataSource.model_fields
      if name not in ("max_length", "validation_fraction")),
    *(f"train.{name}" for name in (
        "loss", "rewards", "beta", "label_smoothing", "rpo_alpha", "simpo_gamma", "cpo_alpha",
        "desirable_weight", "undesirable_weight", "reward_pattern", "reward_json_schema",
        "num_generations", "max_completion_length", "temperature", "scale_rewards",
        "num_iterations", "epsilon", "init_adapter", "init_mode", "general_data",
        "sample_prompts", "report_to", "num_processes", "fsdp",
    )),
)  # fmt: skip
FILE = "presets.json"


def presets(home: Home) -> list[dict[str, Any]]:
    """Return every preset: name, description, settings, and whether the user saved it (`own`)."""
    ours = [
        {"name": name, "about": about, "values": values, "own": False}
        for name, (about, values) in BUILT_IN.items()
    ]
    own = [
        {"name": name, "about": "Saved by you.", "values": values, "own": True}
        for name, values in sorted(_read(home).items())
    ]
    return [*ours, *own]


def apply_preset(home: Home, name: str, spec: RunSpec) -> RunSpec:
    """Return the spec with a preset's settings, and defaults for the other ones but `STAYS`.

    Raises:
        SpecError: The preset does not exist.
    """
    known = {preset["name"]: preset["values"] for preset in presets(home)}
    if name not in known:
        raise SpecError(f'There is no preset "{name}".{nearest(name, known)}')
    kept = _flat(spec.model_dump(mode="json"))
    what = {field: kept[field] for field in STAYS if field in kept}
    if spec.method.quantization != "none":  # it quantizes the base itself, another may not
        del what["model.quantization"]
    of_method = any(field.startswith("method.") for field in known[name])
    usual = RunSpec() if of_method else spec  # older files left the default method's name out
    method = known[name].get("method.name", usual.method.name)
    if method == spec.method.name and not of_method:
        what |= {field: value for field, value in kept.items() if field.startswith("method.")}
    return RunSpec().with_values({**what, "method.name": method, **known[name]})


def save_preset(home: Home, name: str, spec: RunSpec) -> None:
    """Save the training settings of a spec as a preset.

    Raises:
        SpecError: The name is empty, too long, or that of a built-in preset.
    """
    name = name.strip()
    if not name or name in BUILT_IN or len(name) > 60:
        raise SpecError(
            f'"{name}" cannot be a preset\'s name: use another, of up to 60 characters.'
        )
    changed = {key: v for key, v in differences(spec).items() if key not in NOT_IN_PRESETS}
    if any(key.startswith("method.") for key in changed):
        changed["method.name"] = spec.method.name
    _write(home, _read(home) | {name: changed})


def delete_preset(home: Home, name: str) -> None:
    """Delete a preset of the user.

    Raises:
        SpecError: The user has no preset of this name.
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
            f"{home.path / FILE} cannot be read: fix it, or delete it together with your presets."
        ) from None
    return {str(k): v for k, v in found.items() if isinstance(v, dict)}


def _write(home: Home, values: dict[str, Values]) -> None:
    atomic.write(home.path / FILE, json.dumps(values, indent=1, ensure_ascii=False))

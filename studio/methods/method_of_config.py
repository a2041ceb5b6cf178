"""Read the method of an adapter from its `adapter_config.json`, PEFT's or AdapterHub's.

No tensor is opened and no torch imported, so that a run can be checked before it is queued.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studio.errors import AdapterError, nearest
from studio.methods import methods
from studio.methods.bottleneck import Bottleneck
from studio.methods.lora import Lora
from studio.methods.method import Method

CONFIG = "adapter_config.json"
MAX_JSON_BYTES = 1_000_000
NOT_MATHS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "auto_mapping", "target_parameters",
}  # fmt: skip
APPLIED_TO_TENSORS = {
    "rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices", "lora_bias",
}  # fmt: skip
"""Fields of LoRA's config that are applied to the tensors."""
UNSUPPORTED = ("phm_layer", "inv_adapter", "use_gating", "cross_adapter", "ln_before", "ln_after",
               "stochastic_depth", "shared_W_phm")  # fmt: skip


def method_in(folder: Path) -> Method:
    """Return the method of the adapter in a folder, with the modules that it names.

    Raises:
        AdapterError: The config is missing, invalid, or of a method that is not supported.
    """
    config = read_json(folder / CONFIG)
    if is_adapterhub(config):
        return read_bottleneck(config, int(config.get("hidden_size") or 0))
    method, own = read_method(config), dict[str, Any]()
    if "target_modules" in type(method).model_fields and (
        named := _names(config, "target_modules")
    ):
        own["target_modules"] = named
    if isinstance(method, Lora):
        tokens = config.get("trainable_token_indices") or []
        lists = tokens.values() if isinstance(tokens, dict) else [tokens]
        ids = tuple(dict.fromkeys(i for one in lists for i in one if isinstance(i, int)))
        own |= {"trainable_token_indices": ids or "none",
                "modules_to_save": _names(config, "modules_to_save") or "none"}  # fmt: skip
    return method.model_copy(update=own)


def _names(config: dict[str, Any], field: str) -> tuple[str, ...]:
    """Return the names in a list; PEFT also takes regular expressions, which nothing here runs."""
    found = config.get(field)
    names = found if isinstance(found, list) else []
    return tuple(name for name in names if isinstance(name, str))


def is_adapterhub(config: dict[str, Any]) -> bool:
    """Return True if an `adapter_config.json` is in AdapterHub's format."""
    return "peft_type" not in config and isinstance(config.get("config"), dict)


def read_json(path: Path) -> dict[str, Any]:
    """Return the values of one of an adapter's JSON files.

    Raises:
        AdapterError: It is missing, too large, unreadable, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise AdapterError(f"{path} is too large (limit 1 MB).")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise AdapterError(f"{path.parent} is not an adapter: it has no {path.name}.") from None
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise AdapterError(f"{path} is not valid JSON.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} must hold a JSON object.")
    return values


def read_method(config: dict[str, Any]) -> Method:
    """Return the method of a config, with its fields."""
    mapping = config.get("auto_mapping")
    if mapping:
        library = mapping.get("parent_library") if isinstance(mapping, dict) else str(mapping)
        if not str(library).startswith("transformers."):
            raise AdapterError(
                f"adapter_config.json asks to import code from {str(library)[:80]!r} "
                "(auto_mapping); code named by a file is never run."
            )
    known = {method.peft_type: method for method in reversed(methods().values())}
    kind = str(config.get("peft_type", ""))
    if kind not in known:
        raise AdapterError(
            f"adapter_config.json has peft_type {kind[:40]!r}, which is not supported."
            f"{nearest(kind, known)}"
        )
    left_out = NOT_MATHS | (APPLIED_TO_TENSORS if kind == Lora.peft_type else set())
    fields = {key: value for key, value in config.items() if key not in left_out}
    return known[kind].from_peft(fields)


def read_bottleneck(config: dict[str, Any], hidden_size: int) -> Bottleneck:
    """Return the method of an AdapterHub config.

    Raises:
        AdapterError: It is not a plain bottleneck.
    """
    inner = config["config"]
    for field in UNSUPPORTED:
        if inner.get(field):
            raise AdapterError(
                f"This AdapterHub adapter uses {field}={inner[field]!r}; only plain bottlenecks "
                "can be loaded."
            )
    factor = inner.get("reduction_factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor <= 0:
        raise AdapterError(f"reduction_factor must be one number, not {str(factor)[:60]}.")
    activation = str(inner.get("non_linearity", ""))
    if activation == "gelu" and not config.get("version"):
        activation = "gelu_new"  # files from before versions meant the approximation
    return Bottleneck.from_peft({
        "placement": _placement(inner), "bottleneck_dim": max(1, int(hidden_size // factor)),
        "non_linearity": activation, "scaling": inner.get("scaling", 1.0),
        "adapter_dropout": inner.get("dropout", 0.0),
    })  # fmt: skip


def _placement(inner: dict[str, Any]) -> str:
    both, before = (bool(inner.get(name)) for name in ("mh_adapter", "original_ln_before"))
    if inner.get("is_parallel"):
        return "parallel"
    if inner.get("output_adapter") and both != before:
        return "houlsby" if both else "pfeiffer"
    raise AdapterError(
        "Unsupported placement of an AdapterHub adapter: expected after both sub-layers, after "
        "the MLP on the residual, or beside the MLP."
    )

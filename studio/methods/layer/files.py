"""Adapters on disk, in PEFT's two files: `adapter_config.json` and `adapter_model.safetensors`.

Reading is strict, because an adapter is somebody else's file: safetensors only, a config of bounded
size whose every field is understood, no regular expression from it is run, no code it names is
imported, and the tensors must be exactly those the method has on this model. So no file can touch
the base weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from studio.errors import AdapterError, nearest
from studio.methods import methods
from studio.methods.bottleneck import Bottleneck
from studio.methods.layer import adapterhub
from studio.methods.layer.sites import Anatomy, Site
from studio.methods.method import Method, Params

if TYPE_CHECKING:
    from studio.methods.layer.adapter import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1_000_000
NOT_MATHS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode",
    "peft_version", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "auto_mapping",
}  # fmt: skip


def read(folder: Path, anatomy: Anatomy) -> tuple[Method, list[Site], list[Params]]:
    """Read an adapter for this model.

    Raises:
        AdapterError: Says what is wrong with which file, or why it does not fit this base.
    """
    config = read_config(folder)
    if adapterhub.is_adapterhub(config):
        return adapterhub.read(config, read_tensors(folder, adapterhub.WEIGHTS), anatomy)
    method = read_method(config)
    tensors = _without_copies(read_tensors(folder, WEIGHTS), anatomy)
    sites, params = method.from_tensors(tensors, anatomy)
    return method, sites, params


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json` as plain values."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} is not an adapter: it has no {CONFIG}.")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise AdapterError(f"{path} is larger than any adapter's config; it was not read.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise AdapterError(f"{path} is not valid JSON.") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} must hold a JSON object.")
    return config


def read_method(config: dict[str, Any]) -> Method:
    """Find the method of a config and read its fields."""
    mapping = config.get("auto_mapping")
    if mapping:
        library = mapping.get("parent_library") if isinstance(mapping, dict) else str(mapping)
        if not str(library).startswith("transformers."):
            raise AdapterError(
                f"adapter_config.json asks to import code from {str(library)[:80]!r} "
                "(auto_mapping); this studio never runs code named by a file."
            )
    known = {method.peft_type: method for method in methods().values() if method.peft_type}
    kind = str(config.get("peft_type", ""))
    if kind not in known:
        raise AdapterError(
            f"adapter_config.json has peft_type {kind[:40]!r}, which this studio cannot load."
            f"{nearest(kind, known)}"
        )
    fields = {key: value for key, value in config.items() if key not in NOT_MATHS}
    return known[kind].from_peft(fields)


def write_adapterhub(adapter: Adapter, folder: Path, anatomy: Anatomy, *, name: str) -> None:
    """Write a bottleneck adapter in AdapterHub's format into an existing folder.

    Raises:
        AdapterError: The adapter is no bottleneck.
    """
    if not isinstance(adapter.method, Bottleneck):
        raise AdapterError(
            f"{adapter.method.title} has no place in AdapterHub's format; export it as PEFT."
        )
    config = adapterhub.write_config(adapter.method, name, anatomy)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = adapterhub.write_tensors(adapter.sites, adapter.params, name)
    save_file(tensors, folder / adapterhub.WEIGHTS, metadata={"format": "pt"})


def write(adapter: Adapter, folder: Path, anatomy: Anatomy, *, base: str) -> None:
    """Write PEFT's two files into an existing folder."""
    method = adapter.method
    config = {
        "peft_type": method.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": anatomy.shorten(adapter.sites),
        **method.to_peft(adapter.sites),
    }
    if config["target_modules"] is None:
        del config["target_modules"]
    tensors = {
        key: tensor.detach().cpu().contiguous()
        for key, tensor in method.to_tensors(adapter.sites, adapter.params).items()
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _without_copies(tensors: Params, anatomy: Anatomy) -> Params:
    """Drop copies of the base's own tensors, which PEFT adds when it adapts the output head."""
    kept = {}
    for key, tensor in tensors.items():
        own_key = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        own = anatomy.parameter(own_key)
        if own is None or own.shape != tensor.shape or not own.detach().cpu().equal(tensor):
            kept[key] = tensor
    return kept


def read_tensors(folder: Path, name: str) -> Params:
    """Read a safetensors file of an adapter folder.

    Raises:
        AdapterError: It is missing, a pickle, or broken.
    """
    path = folder / name
    if not path.is_file():
        pickles = [p.name for p in folder.glob("*.bin")]
        if pickles:
            raise AdapterError(
                f"{folder} stores its weights as a pickle ({pickles[0]}), which can run code "
                "when opened. Convert it where you trust it: load it with its own library and "
                "save it as safetensors (PEFT: save_pretrained(folder, safe_serialization=True))."
            )
        raise AdapterError(f"{folder} has no {name}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is broken or cut short ({error}).") from None

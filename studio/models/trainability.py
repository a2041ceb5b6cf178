"""Decide from a configuration if a model can be trained here; no torch, no weights."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import ModelError, nearest
from studio.models.quantized_checkpoints import why_unreadable

TABLES = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration in a model folder.

    Raises:
        ModelError: It is missing, an adapter's, or cannot be read.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (path / "adapter_config.json").is_file():
            raise ModelError(f"{path} is an adapter, not a model: choose its base model.") from None
        raise ModelError(f"{path} is not a model folder: it has no config.json.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / 'config.json'} cannot be read: {error}.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'} must hold a JSON object.")
    return config


def checked_architecture(path: Path | str, config: dict[str, Any]) -> str:
    """Return the class of transformers that a configuration names; `path` is for the sentence.

    Raises:
        ModelError: A model with its own code, an unknown architecture, an encoder-decoder, or
            weights stored in a way that needs another library.
    """
    if config.get("auto_map"):
        raise ModelError(
            f"{path} brings its own Python code (auto_map), which is never run: "
            "use a version of the model that transformers supports."
        )
    quantization = stored_quantization(config)
    if quantization and (why := why_unreadable(quantization)):
        raise ModelError(
            f"{path} is stored in {why}, which cannot be read here: use the original model, with "
            "model.quantization=nf4 for 4 bit."
        )
    named = config.get("architectures") or []
    architectures = named if isinstance(named, list) else [named]
    known, kind = language_architectures(), str(config.get("model_type", ""))
    if config.get("is_encoder_decoder") is True:
        raise ModelError(
            f"{path} is an encoder-decoder ({kind}), which cannot be trained here: choose a model "
            "with a decoder only."
        )
    for name in architectures:
        if not known or any(name in names for names in known.values()):
            return str(name)
    if known.get(kind) and not architectures:
        return known[kind][0]
    got = ", ".join(map(str, architectures)) or config.get("model_type") or "none named"
    raise ModelError(
        f"{path} has an architecture that cannot be trained here ({got}): it must be a causal "
        f"language model that transformers knows."
        f"{nearest(str(got), sorted({name for names in known.values() for name in names}))}"
    )


def stored_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """Return how a checkpoint is quantised (`quantization_config`); empty if it is not."""
    for part in (config, config.get("text_config")):
        quantized = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(quantized, dict) and quantized:
            return quantized
    return {}


@cache
def language_architectures() -> dict[str, tuple[str, ...]]:
    """Return transformers' classes with a decoder of text, by model type.

    Causal language models come first, then those that also read images or sound. Read from its
    source, since importing the tables would import torch; empty when they moved, and then loading
    decides.
    """
    from importlib.util import find_spec

    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    table = Path(spec.submodule_search_locations[0], "models", "auto", "modeling_auto.py")
    try:
        text = table.read_text(encoding="utf-8")
    except OSError:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for name in TABLES:
        block = re.search(rf"^MODEL_FOR_{name}_MAPPING_NAMES = (.*?)^\)", text, re.M | re.S)
        for kind, cls in re.findall(r'\("([\w.-]+)", "(\w+)"\)', block[1] if block else ""):
            found[kind] = (*found.get(kind, ()), cls)
    return found

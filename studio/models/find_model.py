"""Find base models and read facts about them: sizes, context, fingerprint, linear layers.

A model is the embedded starter, a folder, or a hub id. Facts come from `config.json` and the
safetensors headers, so the form and the queue can check a model without torch and without its
weights. Pickled weights and remote code are never opened.

Names of layers are dotted module paths, as in adapters. Some checkpoints omit the outermost part
(`h.0` for `transformer.h.0`); targets match a path or its end, so both are valid.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio import atomic
from studio.errors import ModelError
from studio.models.download_model import fetch
from studio.models.hub_models import TOKENIZER_FILES, cached, look_up
from studio.models.model_files import (
    Header,
    TensorInfo,
    checked_architecture,
    read_config,
    read_headers,
    stored_quantization,
)
from studio.models.quantization import whole_weights
from studio.names import Location, locate
from studio.spec import ModelSource
from studio.starter import MODEL as STARTER
from studio.starter import MODEL_DIR

FILE_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MAX_FACTOR = 1024  # of YaRN; no model is extended further
LAST_LAYER_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families (`model_type`) whose last layer can run its feed-forward at some positions only: two
norms, attention and a feed-forward, added in the plain order."""

LENGTH_ROPE_TYPES = ("dynamic", "longrope", "su")
"""Rope types whose factors depend on a row's length; `su` is the earlier name of `longrope`."""


_IN_LAYER = re.compile(r"^.*?\b(?:layers|h|blocks|layer)\.(?P<layer>\d+)\.(?P<name>.+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """Facts about a model from its files.

    `fingerprint` is `<shape>-<content>`: the first half is equal for all models that an adapter
    fits, the second only for the same weights. `stored` is the checkpoint's `quantization_config`.
    """

    path: Path
    architecture: str
    model_type: str
    parameters: int
    hidden_size: int
    num_layers: int
    context_length: int
    vocab_size: int
    has_chat_template: bool
    size_bytes: int
    weights_dtype: str
    fingerprint: str
    stored: dict[str, Any] = field(default_factory=dict)


def resolve(source: ModelSource) -> Path:
    """Return the model's folder, downloading a hub id on first use.

    Raises:
        ModelError: There is no such folder or hub id, or it cannot be reached.
    """
    kind, place = origin_of(source.path, source.revision)
    if kind == "hub":
        return fetch(look_up(source.path, source.revision))
    if kind == "file":
        raise ModelError(f"{place} is a file: give the model's folder, the one with config.json.")
    if kind == "missing":
        raise ModelError(
            f"There is no model folder {place}. Give a folder with config.json and "
            'safetensors weights, a hub id, or "starter".'
        )
    return place.absolute()


def origin_of(path: str, revision: str = "") -> Location:
    """Return what the path of a model stands for: the starter, a folder, or a hub id.

    A hub id whose model is downloaded stands for its folder in the hub's cache.
    """
    if path == STARTER:
        return Location("embedded", MODEL_DIR)
    found = locate(path)
    here = cached(path, revision) if found.kind == "hub" else None
    return Location("folder", here) if here else found


def facts(source: ModelSource) -> ModelFacts:
    """Return the facts of a model from its configuration and weight headers.

    Raises:
        ModelError: No config, no tokenizer, an unknown architecture, pickled or truncated weights,
            or a model with its own code.
    """
    path = resolve(source)
    config = read_config(path)
    checked_architecture(path, config)
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{path} has no tokenizer: copy tokenizer.json and tokenizer_config.json "
            "from the original model into it."
        )
    headers = read_headers(path)
    tensors = [tensor for header in headers for tensor in header.tensors]
    dtypes = [tensor.dtype for tensor in tensors]
    return facts_of_config(
        config, path,
        parameters=sum(t.numel for t in whole_weights(tensors, stored_quantization(config))),
        weights_dtype=max(set(dtypes), key=dtypes.count) if dtypes else "",
        headers=headers,
    )  # fmt: skip


def facts_of_config(
    config: dict[str, Any], path: Path, *, parameters: int, weights_dtype: str = "BF16",
    headers: Sequence[Header] = (),
) -> ModelFacts:  # fmt: skip
    """Return the facts in a configuration, with those of the weights as far as known.

    Raises:
        ModelError: The model cannot be trained here.
    """
    architecture = checked_architecture(path, config)
    text = text_part(config)
    return ModelFacts(
        path=path,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        parameters=parameters,
        hidden_size=_number(text, "hidden_size", "n_embd", "d_model"),
        num_layers=_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        context_length=_context_length(text),
        vocab_size=_number(text, "vocab_size"),
        has_chat_template=_has_chat_template(path),
        size_bytes=sum(header.size_bytes for header in headers),
        weights_dtype=weights_dtype,
        fingerprint=_fingerprint(architecture, headers) if headers else "",
        stored=stored_quantization(config),
    )  # fmt: skip


def file_dtype(known: ModelFacts) -> str:
    """Return the precision that a model is stored in; bfloat16 if it is quantised."""
    return "bfloat16" if known.stored else FILE_TYPES.get(known.weights_dtype, "float32")


def num_biases(path: Path) -> int:
    """Return how many numbers the biases of a model's linear layers have."""
    tensors = [tensor for header in read_headers(path) for tensor in header.tensors]
    norms = re.compile(r"norm|\bln_")
    return sum(t.numel for t in tensors if t.name.endswith(".bias") and not norms.search(t.name))


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's part on the text decoder: wrappers keep it in `text_config`."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and inner else config


def _number(config: dict[str, Any], *names: str, default: int = 0) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default


def _context_length(text: dict[str, Any]) -> int:
    """Return the longest context in tokens, extended by YaRN if the configuration asks for it.

    Source: YaRN, arXiv 2309.00071; the context becomes `factor` times the original one.
    """
    length = _number(text, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len",
                     default=2048)  # fmt: skip
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    if not isinstance(rope, dict) or "yarn" not in (rope.get("rope_type"), rope.get("type")):
        return length
    original, factor = _number(rope, "original_max_position_embeddings"), rope.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor <= MAX_FACTOR:
        return length
    return max(length, int((original or length) * factor))


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    return bool(atomic.read_object(path / "tokenizer_config.json").get("chat_template"))


def _fingerprint(architecture: str, headers: Sequence[Header]) -> str:
    shape, content = hashlib.sha256(architecture.encode()), hashlib.sha256()
    named = sorted((t.name, t.shape, t.dtype) for h in headers for t in h.tensors)
    for name, dims, dtype in named:
        shape.update(f"{name}{dims}".encode())
        content.update(f"{name}{dims}{dtype}".encode())
    for header in headers:
        content.update(header.sample())
    return f"{shape.hexdigest()[:16]}-{content.hexdigest()[:16]}"


# -- linear layers ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearModule:
    """One linear layer; `name` is its path inside its layer."""

    key: str
    layer: int
    name: str
    shape: tuple[int, int]


def linear_modules(source: ModelSource) -> list[LinearModule]:
    """Return the linear layers inside the decoder layers, in order.

    Raises:
        ModelError: The model cannot be found or read.
    """
    found, folder = [], resolve(source)
    quantization = stored_quantization(read_config(folder))
    for header in read_headers(folder):
        for tensor in whole_weights(header.tensors, quantization):
            path, _, last = tensor.name.rpartition(".")
            match = _IN_LAYER.match(path)
            shape = _shape(tensor, header) if last == "weight" and match else ()
            if match and len(shape) == 2:
                found.append(
                    LinearModule(
                        key=path, layer=int(match["layer"]), name=match["name"],
                        shape=(shape[0], shape[1]),
                    )
                )  # fmt: skip
    order = {name: place for place, name in enumerate(dict.fromkeys(m.name for m in found))}
    return sorted(found, key=lambda module: (module.layer, order[module.name]))


def _shape(tensor: TensorInfo, header: Header) -> tuple[int, ...]:
    """Return the shape of a weight; bitsandbytes stores flat ones, with the shape beside them."""
    start = f"{tensor.name}.quant_state."
    state = next((one for one in header.tensors if one.name.startswith(start)), None)
    return tuple(json.loads(header.read(state))["shape"]) if state else tensor.shape


def targets(chosen: Sequence[str], modules: Sequence[LinearModule]) -> list[str]:
    """Return the shortest `target_modules` that match exactly the chosen keys.

    A module chosen in every layer gives one name, in some layers one path for each.
    """
    wanted = set(chosen)
    if wanted == {module.key for module in modules}:
        return ["all-linear"]
    words: list[str] = []
    for name in dict.fromkeys(module.name for module in modules):
        same = [module.key for module in modules if module.name == name]
        last = name.rpartition(".")[2]
        clear = sum(other.rpartition(".")[2] == last for other in {m.name for m in modules}) == 1
        if wanted.issuperset(same):
            words.append(last if clear else name)
        else:
            words += [key for key in same if key in wanted]
    return words

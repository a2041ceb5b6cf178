"""Find base models and read facts about them: the embedded starter, a folder, or a hub id.

Facts come from `config.json` and the safetensors headers, so the form and the queue can check a
model without torch and without its weights. Pickled weights and remote code are never opened.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import (
    DiskFull,
    ModelError,
    StudioError,
    Unreached,
    is_disk_full,
    is_transient,
    nearest,
)
from studio.home import Home
from studio.locations import Location, locate
from studio.models.headers import Header, TensorInfo, read_headers
from studio.spec import ModelSource
from studio.starter import MODEL as STARTER
from studio.starter import MODEL_DIR

MAX_FACTOR = 1024  # of YaRN; no model is extended further
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
DEQUANTISED = ("mxfp4", "fp8")  # stored formats that are dequantised when loaded
DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """Facts about a model from its files.

    `fingerprint` is `<shape>-<content>`: the first half is equal for all models that an adapter
    fits, the second only for the same weights. `stored` is how the checkpoint is quantised.
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
    stored: str = ""


def resolve(source: ModelSource) -> Path:
    """Return the model's folder, downloading a hub id on first use.

    Raises:
        ModelError: There is no such folder or hub id, or it cannot be reached.
    """
    kind, place = origin_of(source.path)
    if kind == "hub":
        return _download(source)
    if kind == "file":
        raise ModelError(f"{place} is a file: give the model's folder, the one with config.json.")
    if kind == "missing":
        raise ModelError(
            f"There is no model folder {place}. Give a folder with config.json and "
            'safetensors weights, a hub id, or "starter".'
        )
    return place.absolute()


def origin_of(path: str) -> Location:
    """Return what the path of a model stands for: the starter, a folder or a hub id."""
    return Location("embedded", MODEL_DIR) if path == STARTER else locate(path)


def facts(source: ModelSource) -> ModelFacts:
    """Return the facts of a model from its configuration and weight headers.

    Raises:
        ModelError: No config, no tokenizer, an unknown architecture, pickled or truncated weights,
            or a model with its own code.
    """
    path = resolve(source)
    config = _read_config(path)
    architecture = _checked_architecture(path, config)
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{path} has no tokenizer: copy tokenizer.json and tokenizer_config.json "
            "from the original model into it."
        )
    headers = read_headers(path)
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    tensors = [tensor for header in headers for tensor in header.tensors]
    dtypes = [tensor.dtype for tensor in tensors]
    return ModelFacts(
        path=path,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        parameters=sum(_weights_of(tensor) for tensor in tensors),
        hidden_size=_number(text, "hidden_size", "n_embd", "d_model"),
        num_layers=_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        context_length=_context_length(text),
        vocab_size=_number(text, "vocab_size"),
        has_chat_template=_has_chat_template(path),
        size_bytes=sum(header.size_bytes for header in headers),
        weights_dtype=max(set(dtypes), key=dtypes.count) if dtypes else "",
        fingerprint=_fingerprint(architecture, headers),
        stored=stored_quantization(config),
    )  # fmt: skip


def stored_quantization(config: dict[str, Any]) -> str:
    """Return the method with which a checkpoint is quantised ("mxfp4", "fp8", …), or ""."""
    quantized = config.get("quantization_config")
    if not isinstance(quantized, dict) or not quantized:
        return ""
    return str(quantized.get("quant_method") or "unknown")


def _weights_of(tensor: TensorInfo) -> int:
    """Return the weights that a stored tensor stands for: MXFP4 has two per byte and scales."""
    if tensor.dtype != "U8":
        return tensor.numel
    return 2 * tensor.numel if tensor.name.endswith("_blocks") else 0


def available(home: Home) -> list[str]:
    """Return the models that need no download: starter, the home's models, the hub's cache."""
    own = [str(p) for p in sorted(home.models.iterdir()) if _is_usable(p)]
    cached = []
    for folder in sorted(_hub_cache().glob("models--*")):
        snapshots = sorted((folder / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
        if snapshots and _is_usable(snapshots[-1]):
            cached.append(folder.name.removeprefix("models--").replace("--", "/"))
    return [STARTER, *own, *cached]


def _is_usable(folder: Path) -> bool:
    if folder.name.startswith(".") or not (folder / "config.json").is_file():
        return False
    try:
        _checked_architecture(folder, _read_config(folder))
    except ModelError:
        return False
    return any(folder.glob("*.safetensors"))


def _hub_cache() -> Path:
    root = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(root) / "hub")


def _download(source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = source.path, source.revision or None
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=["*/*"]
            )
        )
    except GatedRepoError:
        why = "asks for its licence to be accepted: do that on its hub page, then log in with `hf`"
    except RevisionNotFoundError:
        why = f'has no revision "{source.revision}"'
    except (RepositoryNotFoundError, HFValidationError):
        why = "is neither a folder here nor a model on the hub: check the spelling"
    except Exception as error:  # the library raises dozens of kinds
        raise _not_downloaded(name, error) from None
    raise ModelError(f'The model "{name}" {why}.') from None


def _not_downloaded(name: str, error: Exception) -> StudioError:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if is_disk_full(error):
        return DiskFull(
            f'The disk ran full while the model "{name}" was downloaded: free some room, then try '
            "again; what has arrived is kept."
        )
    fault = getattr(error, "strerror", None) or type(error.__cause__ or error).__name__
    if not is_transient(error):
        return ModelError(f'The model "{name}" could not be downloaded ({fault}).')
    if isinstance(error, LocalEntryNotFoundError):
        return Unreached(
            f'The model "{name}" is not a folder here, is not downloaded, and the hub cannot be '
            "reached: check the spelling or the connection."
        )
    return Unreached(
        f'The model "{name}" could not be downloaded ({fault}): what has arrived is kept, try '
        "again."
    )


def _read_config(path: Path) -> dict[str, Any]:
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


def _checked_architecture(path: Path, config: dict[str, Any]) -> str:
    if config.get("auto_map"):
        raise ModelError(
            f"{path} brings its own Python code (auto_map), which is never run: "
            "use a version of the model that transformers supports."
        )
    stored = stored_quantization(config)
    if stored and stored not in DEQUANTISED:
        raise ModelError(
            f"{path} is stored in {stored}, which needs a library of its own and cannot be trained "
            "here: use the original model, with model.quantization=nf4 for 4 bit."
        )
    architectures = config.get("architectures") or []
    known, kind = language_architectures(), str(config.get("model_type", ""))
    if config.get("is_encoder_decoder") is True:
        raise ModelError(
            f"{path} is an encoder-decoder ({kind}), which cannot be trained here: choose a model "
            "with a decoder only."
        )
    for name in architectures if isinstance(architectures, list) else []:
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


TABLES = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")


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
    try:
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        return bool(settings.get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _fingerprint(architecture: str, headers: list[Header]) -> str:
    import hashlib

    shape, content = hashlib.sha256(architecture.encode()), hashlib.sha256()
    named = sorted((t.name, t.shape, t.dtype) for h in headers for t in h.tensors)
    for name, dims, dtype in named:
        shape.update(f"{name}{dims}".encode())
        content.update(f"{name}{dims}{dtype}".encode())
    for header in headers:
        content.update(header.sample())
    return f"{shape.hexdigest()[:16]}-{content.hexdigest()[:16]}"

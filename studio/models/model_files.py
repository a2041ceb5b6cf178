"""Read a model folder without torch: safetensors headers, and from `config.json` if it can train.

A header is 8 bytes (its length, little endian) and that much JSON; truncated files are found by it.
"""

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import ModelError, nearest

MAX_HEADER_BYTES = 100_000_000  # the format's own bound
SIZES = "sizes.json"  # of weight files that end after their header, see download_model.py
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
READ = ("mxfp4", "fp8", "gptq", "awq", "bitsandbytes")
"""Formats of stored weights (`quant_method`) that can be read."""
TABLES = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as listed in a header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a safetensors file."""

    path: Path
    data_start: int
    size_bytes: int
    tensors: tuple[TensorInfo, ...]

    def read(self, tensor: TensorInfo) -> bytes:
        """Return the bytes of a tensor."""
        with self.path.open("rb") as file:
            file.seek(self.data_start + tensor.start)
            return file.read(tensor.end - tensor.start)

    def sample(self, *, count: int = 16, width: int = 4096) -> bytes:
        """Return bytes from `count` tensors spread over the file, to distinguish models."""
        chosen = self.tensors[:: max(1, len(self.tensors) // count)]
        with self.path.open("rb") as file:
            parts = []
            for tensor in chosen:
                middle = (tensor.start + tensor.end) // 2
                file.seek(self.data_start + middle)
                parts.append(file.read(min(width, tensor.end - middle)))
        return b"".join(parts)


def read_headers(folder: Path) -> list[Header]:
    """Read the headers of all weight files of a model folder.

    Raises:
        ModelError: No weights, only pickled ones, a missing shard, or a damaged file.
    """
    return [read_header(file) for file in weight_files(folder)]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model, from its index if there is one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"{index} is not a readable weight index.") from None
        files = [folder / Path(str(name)).name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{folder} lacks the weight file {missing[0]}: download it again.")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise ModelError(
            f"{folder} holds only pickled weights, which can run code and are never opened. "
            "Convert them where you trust them: `AutoModelForCausalLM.from_pretrained(dir)"
            ".save_pretrained(dir)` in transformers writes safetensors."
        )
    raise ModelError(f"{folder} holds no weights: model.safetensors is missing.")


def read_header(file: Path) -> Header:
    """Return a file's header, after checking that the file is complete.

    Raises:
        ModelError: The file is truncated or not a safetensors file.
    """
    try:
        size = _size(file)
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, max(size - 8, 0)):
                raise ValueError("no header")
            table = json.loads(handle.read(length))
        tensors = tuple(
            TensorInfo(name, str(entry["dtype"]), tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in table.items()
            if name != "__metadata__"
        )
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{file} is truncated or not a safetensors file ({_size(file)} bytes): "
            "download it again."
        ) from None
    expected = 8 + length + max((t.end for t in tensors), default=0)
    if size < expected:
        raise ModelError(f"{file} is truncated: {size:,} of {expected:,} bytes. Download it again.")
    return Header(file, 8 + length, size, tensors)


def _size(file: Path) -> int:
    sizes = file.with_name(SIZES)
    if sizes.is_file():
        return int(json.loads(sizes.read_text(encoding="utf-8")).get(file.name, 0))
    return file.stat().st_size


# -- config.json -----------------------------------------------------------------------------------


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


def why_unreadable(quantization: dict[str, Any]) -> str:
    """Return why a checkpoint of this `quantization_config` cannot be read; empty if it can."""
    kind = str(quantization.get("quant_method") or "unknown")
    if kind not in READ:
        return kind
    if kind in ("gptq", "awq") and stored_bits(quantization) not in (2, 4, 8):
        return f"{kind} with {stored_bits(quantization)} bits"
    layout = str(quantization.get("version", "gemm")).lower()
    return f"{kind} in the layout {layout}" if kind == "awq" and layout != "gemm" else ""


def stored_bits(quantization: dict[str, Any]) -> int:
    """Return the bits of a stored weight."""
    return int(quantization.get("bits") or quantization.get("w_bit") or 4)


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

"""Read safetensors headers: names, shapes and types of tensors, and truncated files.

A header is 8 bytes (its length, little endian) and that much JSON.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from studio.errors import ModelError

MAX_HEADER_BYTES = 100_000_000  # the format's own bound
SIZES = "sizes.json"  # of weight files that end after their header, see remote_facts.py
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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

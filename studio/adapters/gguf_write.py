"""Write a model folder or a LoRA as one GGUF file, and read its tensors back.

The `gguf` package writes and quantises. Vectors, convolutions and routers stay in 32 bit, rows that
a block does not divide in 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.adapters.gguf_families import family_of, numbers_of, rope_factors, write_numbers
from studio.adapters.gguf_tensors import Place, Places, placed
from studio.adapters.gguf_tokenizer import add_tokenizer
from studio.errors import AdapterError, InputError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Precision = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"]
PRECISION_LABELS: dict[str, str] = {
    "f16": "F16: half the size, nearly exact",
    "q8_0": "Q8_0: a quarter of the size, for most machines",
    "q5_1": "Q5_1: a fifth of the size, a little less exact",
    "q4_0": "Q4_0: a seventh of the size, for small machines",
    "bf16": "BF16",
    "f32": "F32: exact",
}
BLOCKS = ("q8_0", "q5_1", "q4_0")  # quantised in blocks of 32 numbers
BLOCK = 32
EXACT = ("conv", "ffn_gate_inp", "ssm_", "altup_", "_norm", "rope_")  # never quantised


def package() -> Any:
    """Import `gguf`.

    Raises:
        InputError: It is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(
            'The GGUF export needs the gguf package: pip install "adapter-studio[gguf]".'
        ) from None
    return gguf


def write(folder: Path, target: Path, *, precision: Precision, name: str) -> list[str]:
    """Write `folder` (config, safetensors, tokenizer) to `target`; return notes for the user.

    Raises:
        ModelError: The format does not support the architecture or the tokenizer.
        InputError: The `gguf` package is not installed.
    """
    gguf = package()
    numbers = numbers_of(folder)
    family = family_of(numbers["architecture"])
    writer = gguf.GGUFWriter(target, family.arch)
    writer.add_name(name)
    most = "ALL" if precision == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{most}_{precision.upper()}"])
    write_numbers(writer, numbers, family)
    notes = add_tokenizer(writer, folder, numbers["vocab_size"], family.arch)
    in_16_bit: set[str] = set()
    for key, tensor in stored(folder):
        data, kind = packed(key, tensor, precision)
        if precision in BLOCKS and kind == gguf.GGMLQuantizationType.F16:
            in_16_bit.add(key.split(".")[-2])
        writer.add_tensor(key, data, raw_dtype=kind)
    _close(writer)
    if in_16_bit:
        rest = ", ".join(sorted(in_16_bit))
        notes.append(f"In 16 bit, because their row length is not a multiple of {BLOCK}: {rest}.")
    if numbers["architecture"].endswith("ForConditionalGeneration"):
        notes.append("The file holds the text model; its vision tower needs an mmproj file.")
    return notes


def stored(folder: Path) -> Iterator[tuple[str, Array]]:
    """Yield every tensor of the file by GGUF's name, in float32.

    Raises:
        ModelError: The architecture has no entry, or a tensor no name.
    """
    import numpy as np

    numbers = numbers_of(folder)
    family = family_of(numbers["architecture"])
    for key, factors in rope_factors(numbers).items():
        yield f"{key}.weight", np.array(factors, dtype=np.float32)
    yield from placed(folder, Places(numbers, family))


def packed(key: str, tensor: Array, precision: Precision) -> tuple[Array, Any]:
    """Return a tensor's bytes and type."""
    gguf = package()
    kinds = gguf.GGMLQuantizationType
    small = tensor.ndim < 2 or key.endswith(".bias") or any(part in key for part in EXACT)
    kind = kinds.F32 if small else kinds[precision.upper()]
    if kind in {kinds[name.upper()] for name in BLOCKS} and tensor.shape[-1] % BLOCK:
        kind = kinds.F16
    return gguf.quants.quantize(tensor, kind), kind


def read_tensors(file: Path) -> dict[str, Array]:
    """Return every tensor of a GGUF file in float32."""
    gguf = package()
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(file).tensors
    }


def verify_tensors(file: Path, folder: Path, precision: Precision) -> None:
    """Compare every tensor of the file with the folder's, rounded alike.

    Raises:
        AdapterError: One is missing, too many, or differs.
    """
    import numpy as np

    gguf = package()
    there = read_tensors(file)
    for key, tensor in stored(folder):
        data, kind = packed(key, tensor, precision)
        wanted = gguf.quants.dequantize(data, kind)
        found = there.pop(key, None)
        if found is None or not np.array_equal(found.reshape(wanted.shape), wanted):
            raise AdapterError(f"{key} of the written file differs from the model's: not kept.")
    if there:
        raise AdapterError(f"The written file holds {min(there)}, which the model has not.")


def write_adapter(
    folder: Path, target: Path, halves: Mapping[str, tuple[Array, Array]], *, alpha: float,
    name: str,
) -> None:  # fmt: skip
    """Write a LoRA for a base folder as llama.cpp's `--lora` and Ollama's `ADAPTER` read it.

    Args:
        folder: The base.
        target: The file.
        halves: `A` `(…, r, inputs)` and `B` `(…, outputs, r)` by the base tensor's key.
        alpha: The change is `alpha / r · B A`.
        name: The adapter's name.

    Raises:
        ModelError: The architecture has no entry, or a tensor no name.
    """
    gguf = package()
    numbers = numbers_of(folder)
    family = family_of(numbers["architecture"])
    writer = gguf.GGUFWriter(target, family.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_name(name)
    for key, (down, up) in placed_halves(folder, halves).items():
        writer.add_tensor(f"{key}.lora_a", down)
        writer.add_tensor(f"{key}.lora_b", up)
    _close(writer)


def placed_halves(
    folder: Path, halves: Mapping[str, tuple[Array, Array]]
) -> dict[str, tuple[Array, Array]]:
    """Return the halves of a LoRA by GGUF's name, in GGUF's order."""
    import numpy as np

    numbers = numbers_of(folder)
    places = Places(numbers, family_of(numbers["architecture"]))
    found: dict[str, tuple[Array, Array]] = {}
    waiting: dict[str, dict[int, tuple[Array, Array]]] = {}
    for key, (down, up) in halves.items():
        shape = (*up.shape[:-1], down.shape[-1])
        for place in places.of(key, shape):
            pair = _ordered(place, down, up)
            if place.stack is None:
                found[place.name] = pair
            else:
                waiting.setdefault(place.name, {})[place.stack] = pair
    for key, stack in waiting.items():
        pairs = [stack[i] for i in sorted(stack)]
        found[key] = np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])
    return found


def _ordered(place: Place, down: Array, up: Array) -> tuple[Array, Array]:
    import numpy as np

    if place.values is not None:
        raise ModelError(f"GGUF adapters cannot change {place.name}: merge the adapter instead.")
    if place.turned:
        down, up = up.swapaxes(-1, -2), down.swapaxes(-1, -2)
    if place.rows is not None:
        up = up.take(place.rows, axis=-2)
    if place.columns is not None:
        down = down.take(place.columns, axis=-1)
    return np.ascontiguousarray(down), np.ascontiguousarray(up)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""A model's architecture from its weight headers: linear layers, and families with rules.

Names are dotted module paths, as in adapters. Some checkpoints omit the outermost part (`h.0` for
`transformer.h.0`); targets match a path or its end, so both are valid.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from studio.models.find_model import resolve
from studio.models.quantized_checkpoints import whole_weights
from studio.models.safetensors_headers import Header, TensorInfo, read_headers
from studio.models.trainability import read_config, stored_quantization
from studio.spec import ModelSource

LAST_LAYER_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families (`model_type`) whose last layer can run its feed-forward at some positions only: two
norms, attention and a feed-forward, added in the plain order."""

LENGTH_ROPE_TYPES = ("dynamic", "longrope", "su")
"""Rope types whose factors depend on a row's length; `su` is the earlier name of `longrope`."""


_IN_LAYER = re.compile(r"^.*?\b(?:layers|h|blocks|layer)\.(?P<layer>\d+)\.(?P<name>.+)$")


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

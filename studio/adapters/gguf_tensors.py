"""Place each tensor of a model folder in a GGUF file: its name, and the order of rows and columns.

The `gguf` package knows names; orders are what it cannot know. Where rotary embeddings turn pairs
of rows, the rows of q and k are reordered from halves to pairs; fused matrices are taken apart;
experts are stacked; the value heads of a delta rule are dealt out over its key heads. Orders are
arrays of indices, so that the same places serve weights and the two halves of a LoRA: rows order
`B`, columns order `A`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.adapters.gguf_families import Numbers, family_of
from studio.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

EXPERT = re.compile(
    r"(?P<block>.*layers\.(?P<layer>\d+)\.).*experts\.(?:(?P<expert>\d+)\.)?"
    r"(?P<part>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)(?:\.weight|(?P<bias>_bias))?$"
)
PARALLEL = re.compile(
    r".*layers\.(?P<layer>\d+)\.(?P<block>block_sparse_moe|shared_mlp)\."
    r"(?P<part>input_linear|output_linear)(?:\.weight)?$"
)
STREAM = re.compile(r"model\.(?P<name>altup(?:_unembed)?_projections)\.(?P<place>\d+)\.weight$")
PARTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "up_proj": "up",
         "down_proj": "down"}  # fmt: skip
# Parameters beside weights and biases: what the package looks up, and GGUF's ending.
BARE = {
    "A_log": ("A_log", ""), "D": ("D", ""), "dt_bias": ("dt_proj", ".bias"),
    "sinks": ("sinks", ".weight"), "layer_scalar": ("layer_scalar", ".weight"),
    "correct_output_scale": ("correct_output_scale", ".weight"),
    "e_score_correction_bias": ("e_score_correction", ".bias"),
    "expert_bias": ("expert_bias", ".bias"),
}  # fmt: skip
GEMMA4_SCALES = {"router.scale": "ffn_gate_inp.scale", "per_expert_scale": "ffn_down_exps.scale"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Destination of a tensor, or of a part of it.

    Attributes:
        name: GGUF's name.
        rows: Its outputs, in this order; None for all as they are.
        columns: Its inputs, in this order.
        turned: transformers stores `(inputs, outputs)`.
        stack: Position in a stack of matrices that are one tensor in GGUF.
        values: What is stored instead of the values.
    """

    name: str
    rows: Array | None = None
    columns: Array | None = None
    turned: bool = False
    stack: int | None = None
    values: Callable[[Array], Array] | None = None

    def take(self, tensor: Array) -> Array:
        """Return the part of a tensor that goes here, as GGUF stores it."""
        vector = tensor.ndim == 1 or self.name.endswith(".bias")
        if self.turned and not vector:
            tensor = tensor.swapaxes(-1, -2)
        if self.rows is not None:
            axis = -1 if vector else 0 if tensor.ndim == 2 or self.values else -2
            tensor = tensor.take(self.rows, axis=axis)
        if self.columns is not None:
            tensor = tensor.take(self.columns, axis=-1)
        return self.values(tensor) if self.values else tensor


class Places:
    """The places of a model's tensors."""

    def __init__(self, numbers: Numbers) -> None:
        import gguf

        self.numbers, self.family = numbers, family_of(numbers["architecture"])
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.family.arch)
        self._names = gguf.get_tensor_name_map(arch, numbers["num_hidden_layers"])
        self._wrapped = numbers["architecture"].endswith("ForConditionalGeneration")

    def of(self, key: str, shape: tuple[int, ...]) -> list[Place]:
        """Return the places of a tensor; none for a tensor of another tower or a tied head.

        Raises:
            ModelError: The tensor has no name in GGUF.
        """
        if self._wrapped and "language_model." not in key and not key.startswith("lm_head"):
            return []
        name = key.replace("language_model.", "")
        if name == "lm_head.weight" and self.numbers["tie_word_embeddings"]:
            return []
        for found in (self._expert(name, shape), self._parallel(name, shape), self._stream(name)):
            if found:
                return found
        return [self._plain(name, shape)]

    # -- kinds of tensors ----------------------------------------------------------------------

    def _plain(self, name: str, shape: tuple[int, ...]) -> Place:
        rows, columns = self._order(name, shape)
        return Place(
            name=self._name(name), rows=rows, columns=columns, values=self._values(name, shape)
        )

    def _name(self, name: str) -> str:
        stem, _, ending = name.rpartition(".")
        for last, own in GEMMA4_SCALES.items():
            if name.endswith(last):
                return f"blk.{name.split('layers.')[1].split('.')[0]}.{own}"
        looked_up, ending = BARE.get(ending, ("", f".{ending}"))
        stem = f"{stem}.{looked_up}" if looked_up else stem
        found = self._names.get_name(stem)
        if found is None:
            raise ModelError(
                f"{name} has no name in GGUF: this is not a plain {self.numbers['architecture']}. "
                "Export the merged folder (safetensors) instead."
            )
        return f"{found}{ending}"

    def _order(self, name: str, shape: tuple[int, ...]) -> tuple[Array | None, Array | None]:
        """Return the order of rows and columns."""
        import numpy as np

        numbers = self.numbers
        if self.family.pairs and ".self_attn." in name:
            heads = {"q_proj": numbers["num_attention_heads"],
                     "k_proj": numbers.get("num_key_value_heads")}  # fmt: skip
            module = name.split(".")[-2]
            if module in heads:
                count = heads[module] or numbers["num_attention_heads"]
                return interleave(np.arange(shape[0]), count), None
        if ".linear_attn." in name and numbers.get("linear_num_value_heads"):
            return self._delta_order(name.split(".linear_attn.")[1].split(".")[0])
        return None, None

    def _delta_order(self, part: str) -> tuple[Array | None, Array | None]:
        """Deal the value heads, grouped by key head, out over all key heads."""
        import numpy as np

        numbers = self.numbers
        keys, values = numbers["linear_num_key_heads"], numbers["linear_num_value_heads"]
        if keys == values:
            return None, None

        def dealt(size: int) -> Array:
            grouped = np.arange(values * size).reshape(keys, values // keys, size)
            return grouped.swapaxes(0, 1).reshape(-1)

        size = numbers["linear_value_head_dim"]
        before = 2 * keys * numbers["linear_key_head_dim"]
        if part in ("in_proj_qkv", "conv1d"):
            return np.concatenate([np.arange(before), before + dealt(size)]), None
        if part == "in_proj_z":
            return dealt(size), None
        if part in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
            return dealt(1), None
        return (None, dealt(size)) if part == "out_proj" else (None, None)

    def _values(self, name: str, shape: tuple[int, ...]) -> Callable[[Array], Array] | None:
        """Return what is stored instead of a tensor's values or shape."""
        import numpy as np

        numbers = self.numbers
        hybrid = self.family.arch == "granitehybrid"
        if name.endswith("norm.weight") and self.family.shifted:
            return None if ".linear_attn.norm" in name else lambda tensor: tensor + 1
        if name.endswith(".A_log"):
            return lambda t: -np.exp(t)[:, None] if hybrid else -np.exp(t)
        if hybrid and name.endswith(".mamba.D"):
            return lambda tensor: tensor[:, None]
        if hybrid and name.endswith(".mamba.norm.weight"):
            return lambda tensor: tensor.reshape(numbers["mamba_n_groups"], -1)
        if len(shape) == 3 and shape[1] == 1 and "conv" in name:
            return lambda tensor: tensor[:, 0]
        return None

    def _expert(self, name: str, shape: tuple[int, ...]) -> list[Place]:
        match = EXPERT.match(name)
        if match is None or "shared_expert" in name:
            return []
        layer, ending = match["layer"], ".bias" if match["bias"] else ".weight"
        stack = int(match["expert"]) if match["expert"] else None
        turned = self.family.arch == "gpt-oss"

        def place(part: str, rows: Array | None = None) -> Place:
            where = f"blk.{layer}.ffn_{part}_exps{ending}"
            return Place(name=where, rows=rows, stack=stack, turned=turned)

        if match["part"] != "gate_up_proj":
            return [place(PARTS[match["part"]])]
        if self.family.arch == "gemma4":
            return [place("gate_up")]
        wide = shape[-1] if turned or match["bias"] else shape[-2]
        gate, up = _halves(wide, alternating=turned)
        return [place("gate", gate), place("up", up)]

    def _parallel(self, name: str, shape: tuple[int, ...]) -> list[Place]:
        """Return the places of Granite's parallel experts and its shared expert."""
        match = PARALLEL.match(name)
        if match is None:
            return []
        ending = "exps" if match["block"] == "block_sparse_moe" else "shexp"
        if ending == "shexp" and not self.numbers.get("num_local_experts"):
            ending = ""
        where = f"blk.{match['layer']}.ffn_{{}}{'_' * bool(ending)}{ending}.weight"
        if match["part"] == "output_linear":
            return [Place(name=where.format("down"))]
        gate, up = _halves(shape[-2])
        return [Place(name=where.format("gate"), rows=gate),
                Place(name=where.format("up"), rows=up)]  # fmt: skip

    def _stream(self, name: str) -> list[Place]:
        """Return the place of a projection between Gemma 3n's residual streams."""
        match = STREAM.match(name)
        if match is None:
            return []
        known = self._names.get_name(f"model.{match['name']}")
        return [Place(name=f"{known}.weight", stack=int(match["place"]))]


def interleave(tensor: Array, heads: int) -> Array:
    """Reorder the rows of rotate-half (all first, then all second halves) into pairs."""
    half = tensor.shape[0] // heads // 2
    shaped = tensor.reshape(heads, 2, half, *tensor.shape[1:])
    return shaped.swapaxes(1, 2).reshape(tensor.shape)


def placed(folder: Path, places: Places) -> Iterator[tuple[str, Array]]:
    """Yield every tensor of the file in float32; matrices of a stack wait for each other.

    Raises:
        ModelError: A tensor has no name, or a stack is not complete.
    """
    import numpy as np

    waiting: dict[str, dict[int, Array]] = {}
    counts = Counter(
        place.name for key, shape in shapes(folder).items() for place in places.of(key, shape)
        if place.stack is not None
    )  # fmt: skip
    for key, tensor in tensors(folder):
        for place in places.of(key, tensor.shape):
            part = place.take(tensor)
            if place.stack is None:
                yield place.name, np.ascontiguousarray(part)
                continue
            own = waiting.setdefault(place.name, {})
            own[place.stack] = part
            if len(own) == counts[place.name]:
                yield place.name, np.stack([own[i] for i in sorted(own)])
                del waiting[place.name]


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model folder."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                found[key] = tuple(opened.get_slice(key).get_shape())
    return found


def tensors(folder: Path) -> Iterator[tuple[str, Array]]:
    """Yield every tensor of the folder in float32."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                yield key, opened.get_tensor(key).to(torch.float32).numpy()


def _halves(width: int, *, alternating: bool = False) -> tuple[Array, Array]:
    """Return the rows of the first and second part of a fused matrix."""
    import numpy as np

    rows = np.arange(width)
    return (rows[::2], rows[1::2]) if alternating else (rows[: width // 2], rows[width // 2 :])

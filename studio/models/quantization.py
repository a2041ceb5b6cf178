"""Quantised weights: checkpoints stored in 4 or 8 bit, and quantising plain ones while loading.

The loader of transformers takes a mapping of tensors instead of files. A stored tensor is
dequantised when it is asked for, so that a checkpoint in one format can be loaded in 16 or 32 bit
or quantised in another way, and only the parameter at hand is whole. No library of a format's own
is needed.

Plain weights become NF4 or 8 bit, blockwise, by bitsandbytes. Its loader replaces linear layers, so
the 3-D parameters of a mixture, most of its weights, would stay in 16 bit. The quantizer here
stores each parameter as it arrives from the file, experts too; `backbone/dense_weights.py`
dequantises them per use. In 8 bit only the weights are quantised, not the activations as in
LLM.int8: an adapter trains beside the same products that it later answers with, whatever else is in
the batch.

Shapes: `O out_features, I in_features, G groups of inputs, P numbers per stored integer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import ModelError
from studio.models.model_files import TensorInfo, stored_bits, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SCALES = ("_scale_inv", "_scale", ".scale", ".qscale_weight")
STATE = (
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4",
)  # fmt: skip
BESIDE = (*SCALES, ".SCB", ".weight_format", ".activation_scale", ".input_scale")
PACKED = ("_scales", ".scales", ".qzeros", ".g_idx", *STATE)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)  # place of each column among eight in an integer
QUANTIZER = "studio"
BLOCK = 128  # weights in 8 bit that share a scale
BITS = {"nf4": 4, "int8": 8}
QUANTISED_BYTES = {"nf4": 0.56, "int8": 1.03}  # per parameter, with its scales


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is read, and dequantised, when it is indexed."""

    read: Callable[[], Tensor]

    def __getitem__(self, _: Any) -> Tensor:
        return self.read()


def whole_weights(
    tensors: Iterable[TensorInfo], quantization: dict[str, Any]
) -> Iterator[TensorInfo]:
    """Yield the weights that stored tensors stand for, with their names and shapes in full."""
    if not quantization:
        yield from tensors
        return
    listed = list(tensors)
    names, per_integer = {tensor.name for tensor in listed}, 32 // stored_bits(quantization)
    for tensor in listed:
        name, shape = tensor.name, tensor.shape
        if name.endswith("_blocks"):
            experts, outputs, groups, size = shape
            name, shape = name.removesuffix("_blocks"), (experts, 2 * groups * size, outputs)
        elif name.endswith(".qweight"):
            name, (first, last) = f"{name.removesuffix('.qweight')}.weight", shape
            by_row = quantization.get("quant_method") == "awq"
            shape = (last * per_integer, first) if by_row else (last, first * per_integer)
        elif tensor.dtype == "U8" and name.endswith(".weight"):
            shape = (2 * math.prod(shape),)
        elif _is_companion(name, names):
            continue
        yield replace(tensor, name=name, shape=shape)


def open_stored(folder: Path, quantization: dict[str, Any]) -> dict[str, Stored]:
    """Return every weight of a folder by its name in the model."""
    from safetensors import safe_open

    files: dict[str, Any] = {}
    for file in weight_files(folder):
        opened = safe_open(file, framework="pt")
        files |= dict.fromkeys(opened.keys(), opened)

    def get(key: str) -> Tensor:
        found: Tensor = files[key].get_tensor(key)
        return found

    def mxfp4(key: str) -> Tensor:
        return _mxfp4(get(f"{key}_blocks"), get(f"{key}_scales"))

    def integers(path: str) -> Tensor:
        names = ("qweight", "qzeros", "scales", "g_idx")
        parts = {name: get(f"{path}.{name}") for name in names if f"{path}.{name}" in files}
        read = _awq if quantization.get("quant_method") == "awq" else _gptq
        return read(parts, quantization)

    def plain(key: str) -> Tensor:
        return _plain(key, files, get, quantization)

    found = {}
    for key in files:
        path = key.rpartition(".")[0]
        if key.endswith("_blocks"):
            name = key.removesuffix("_blocks")
            found[name] = Stored(partial(mxfp4, name))
        elif key.endswith(".qweight"):
            found[f"{path}.weight"] = Stored(partial(integers, path))
        elif not _is_companion(key, files):
            found[key] = Stored(partial(plain, key))
    return found


def _is_companion(name: str, names: Container[str]) -> bool:
    """Return True for scales and other numbers that belong to another tensor's weights.

    Some models have parameters of their own with such a name.
    """
    bases = [name.removesuffix(end) for end in BESIDE if name.endswith(end)]
    beside = any(base in names or f"{base}.weight" in names for base in bases)
    return beside or name.endswith(PACKED)


def _plain(
    key: str, files: dict[str, Any], get: Callable[[str], Tensor], quantization: dict[str, Any]
) -> Tensor:
    """Return a tensor that may have scales beside it, or a state of bitsandbytes."""
    import torch

    weight, stem = get(key), key.removesuffix(".weight")
    if f"{key}.absmax" in files:
        names = [f"{key}{end}" for end in STATE if f"{key}{end}" in files]
        return _bitsandbytes(weight, {name: get(name) for name in names})
    if f"{stem}.SCB" in files:
        return _scaled(weight, get(f"{stem}.SCB") / 127, None)
    for name in (f"{base}{end}" for base in (key, stem) for end in SCALES):
        if name in files:
            packed = weight.view(torch.uint8) if weight.dtype == torch.int8 else weight
            return _scaled(packed, get(name), quantization.get("weight_block_size"))
    return weight


# -- formats ---------------------------------------------------------------------------------------


def _scaled(weight: Tensor, scale: Tensor, blocks: list[int] | None) -> Tensor:
    """Return `weight × scale`, with one scale per tensor, per row, or per block of the matrix.

    Args:
        weight: `(…, O, I)` in 8 bit, or 4-bit floats, two per byte.
        scale: In float, or as exponents of two in a byte.
        blocks: Rows and columns of a block, where the configuration has them.
    """
    import torch

    values = _e2m1(weight) if weight.dtype == torch.uint8 else weight.float()
    scale = (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()
    if scale.numel() == 1:
        return values * scale
    scale = scale[:, None] if scale.dim() == 1 else scale
    for axis, block in zip((-2, -1), blocks or (0, 0), strict=True):
        size, count = values.shape[axis], scale.shape[axis]
        if count not in (1, size):
            width = block if block and -(-size // block) == count else -(-size // count)
            scale = scale.repeat_interleave(width, axis).narrow(axis, 0, size)
    return values * scale


def _e2m1(packed: Tensor) -> Tensor:
    """Return the numbers of a tensor of 4-bit floats, the low half of each byte first."""
    import torch

    table = torch.tensor(E2M1)
    low, high = table[(packed & 15).int()], table[(packed >> 4).int()]
    return torch.stack([low, high], -1).flatten(-2)


def _mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return experts `(E, I, O)`, as gpt-oss has them, of blocks `(E, O, G, 16)` in bfloat16.

    The product of a 4-bit float and a power of two has no rounding there.
    """
    import torch

    factors = (scales.float() - 127).exp2()[..., None]
    experts = [
        (_e2m1(own) * factor).flatten(-2).to(torch.bfloat16)
        for own, factor in zip(blocks, factors, strict=True)
    ]
    return torch.stack(experts).mT


def _integers(packed: Tensor, bits: int) -> Tensor:
    """Return the integers in each 32 bits as a last axis `P`."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (packed[..., None] >> shifts) & (2**bits - 1)


def _gptq(parts: dict[str, Tensor], quantization: dict[str, Any]) -> Tensor:
    """Return `(O, I)`: `(q − z) s` of each input's group; the first layout stores `z − 1`."""
    import torch

    bits = stored_bits(quantization)
    q_IO = _integers(parts["qweight"].T, bits).flatten(-2).T
    zeros_GO = _integers(parts["qzeros"], bits).flatten(-2)
    if quantization.get("checkpoint_format", "gptq") == "gptq":
        zeros_GO = (zeros_GO + 1) & (2**bits - 1)
    scales_GO, inputs = parts["scales"].float(), len(q_IO)
    groups_I = parts.get("g_idx", torch.arange(inputs) // -(-inputs // len(scales_GO))).long()
    return ((q_IO - zeros_GO[groups_I]) * scales_GO[groups_I]).T


def _awq(parts: dict[str, Tensor], quantization: dict[str, Any]) -> Tensor:
    """Return `(O, I)`: `(q − z) s` of each input's group, columns unshuffled."""
    bits = stored_bits(quantization)
    order = AWQ_COLUMNS if bits == 4 else range(32 // bits)
    q_IO, zeros_GO = (
        _integers(parts[part], bits)[..., [*order]].flatten(-2) for part in ("qweight", "qzeros")
    )
    scales_GO = parts["scales"].float()
    width = len(q_IO) // len(scales_GO)
    zeros_IO, scales_IO = (t.repeat_interleave(width, 0) for t in (zeros_GO, scales_GO))
    return ((q_IO - zeros_IO) * scales_IO).T


def _bitsandbytes(packed: Any, state: dict[str, Tensor]) -> Tensor:
    """Return a weight that bitsandbytes stored in 4 bit."""
    import torch
    from bitsandbytes.functional import QuantState

    from studio.backbone.dense_weights import dequantised

    packed.quant_state = QuantState.from_dict(state, torch.device("cpu"))
    return dequantised(packed)


# -- quantising while loading ----------------------------------------------------------------------


def can_quantise() -> bool:
    """Return True if the package that quantises plain weights is installed."""
    return find_spec("bitsandbytes") is not None


def quantising_options(kind: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load weights in `nf4` or `int8`.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if not can_quantise():
        raise ModelError(
            f"model.quantization is {kind}, which needs bitsandbytes: `pip install bitsandbytes`, "
            "or choose none."
        )
    config = _registered()(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    config.quant_method, config.bits = QUANTIZER, BITS[kind]
    return {"quantization_config": config, "device_map": {"": str(device)}}


def is_expert_weight(module: nn.Module, name: str) -> bool:
    """Return True for a 3-D parameter of routed experts."""
    from studio.backbone.sites import expert_layout

    layout = expert_layout(module)
    return layout is not None and name in (layout.first, layout.last)


@cache
def _registered() -> Any:
    """Register the quantizer with transformers, once; return the class of its configuration."""
    from transformers import BitsAndBytesConfig
    from transformers.core_model_loading import ConversionOps
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizers_utils import get_module_from_name

    class Quantize(ConversionOps):
        """Quantise one parameter; linear layers in 4 bit are bitsandbytes' own."""

        def __init__(self, quantizer: Any) -> None:
            self._quantizer = quantizer

        def convert(self, input_dict: dict[str, Any], *, model: Any, **kwargs: Any) -> Any:
            own, rest, bits = {}, {}, self._quantizer.quantization_config.bits
            for name, value in input_dict.items():
                module, last = get_module_from_name(model, name)
                if bits == 8 or is_expert_weight(module, last):
                    whole = value[0] if isinstance(value, list) else value
                    turned = issubclass(getattr(module, "source_cls", object), Conv1D)
                    own[name] = quantised(whole.T if turned else whole, bits)
                else:
                    rest[name] = value
            inner = Bnb4BitHfQuantizer.get_quantize_ops(self._quantizer)
            return own | (inner.convert(rest, model=model, **kwargs) if rest else {})

    @register_quantizer(QUANTIZER)
    class Quantizer(Bnb4BitHfQuantizer):
        """bitsandbytes' quantizer with experts, and with linear layers in 8 bit."""

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            module, name = get_module_from_name(model, param_name)
            return is_expert_weight(module, name) or super().param_needs_quantization(
                model, param_name, **kwargs
            )

        def get_quantize_ops(self) -> Any:
            return Quantize(self)

        @staticmethod
        def get_modules_to_not_convert(*args: Any, **kwargs: Any) -> list[str]:
            found: list[str] = Bnb4BitHfQuantizer.get_modules_to_not_convert(*args, **kwargs)
            return [*found, "dt_proj"]  # Mamba multiplies by its weight directly

    @register_quantization_config(QUANTIZER)
    class Config(BitsAndBytesConfig):
        """bitsandbytes' configuration under the quantizer's own name."""

    return Config


def quantised(value: Tensor, bits: int) -> Any:
    """Return a parameter in NF4 with double quantisation, as QLoRA stores it, or in 8 bit."""
    from bitsandbytes.functional import create_linear_map, quantize_blockwise
    from bitsandbytes.nn import Params4bit
    from torch.nn import Parameter

    if bits == 4:
        return Params4bit(
            value, requires_grad=False, quant_type="nf4", compress_statistics=True,
            bnb_quantized=False,
        ).to(value.device)  # fmt: skip
    code = create_linear_map().to(value.device)  # even steps: a third of the error of the default
    packed, state = quantize_blockwise(value.contiguous(), code=code, blocksize=BLOCK)
    state.shape = value.shape
    found: Any = Parameter(packed, requires_grad=False)
    found.quant_state = state
    return found

"""Load weights in 4 bit, and checkpoints that are stored in 4 or 8 bit.

bitsandbytes replaces linear layers, so the 3-D parameters of a mixture, most of its weights, would
stay in 16 bit. The quantizer here stores each in the same blockwise NF4 as it arrives from the
file: at most one parameter is whole at a time. `backbone/experts.py` dequantises them per use.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from studio.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NAME = "studio_nf4"


def nf4_options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load weights in NF4.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "model.quantization is nf4, which needs bitsandbytes: `pip install bitsandbytes`, "
            "or choose none."
        )
    config = _registered()(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    config.quant_method = NAME
    return {"quantization_config": config, "device_map": {"": str(device)}}


def dequantising_options(stored: str, quantization: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load a checkpoint in MXFP4 or FP8 in 16 or 32 bit.

    Raises:
        ModelError: It shall be quantised in another way at the same time.
    """
    from transformers import FineGrainedFP8Config, Mxfp4Config

    if quantization != "none":
        raise ModelError(
            f"The checkpoint is stored in {stored}, from which model.quantization={quantization} "
            "cannot be made: set it to none, or use a copy of the model in bfloat16."
        )
    kinds = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    return {"quantization_config": kinds[stored](dequantize=True)}


def is_expert_weight(module: nn.Module, name: str) -> bool:
    """Return True for a 3-D parameter of routed experts."""
    return hasattr(module, "_apply_gate") and name in ("gate_up_proj", "up_proj", "down_proj")


@cache
def _registered() -> Any:
    """Register the quantizer with transformers, once; return the class of its configuration."""
    from transformers import BitsAndBytesConfig
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizers_utils import get_module_from_name

    class QuantizeExperts(ConversionOps):
        """Quantise one parameter of experts, or hand a linear layer to bitsandbytes."""

        def __init__(self, quantizer: Any) -> None:
            self._quantizer = quantizer

        def convert(self, input_dict: dict[str, Any], *, model: Any, **kwargs: Any) -> Any:
            own, rest = {}, {}
            for name, value in input_dict.items():
                module, last = get_module_from_name(model, name)
                if is_expert_weight(module, last):
                    own[name] = _quantised(value[0] if isinstance(value, list) else value)
                else:
                    rest[name] = value
            inner = Bnb4BitHfQuantizer.get_quantize_ops(self._quantizer)
            return own | (inner.convert(rest, model=model, **kwargs) if rest else {})

    @register_quantizer(NAME)
    class Quantizer(Bnb4BitHfQuantizer):
        """bitsandbytes' quantizer with experts."""

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            module, name = get_module_from_name(model, param_name)
            return is_expert_weight(module, name) or super().param_needs_quantization(
                model, param_name, **kwargs
            )

        def get_quantize_ops(self) -> Any:
            return QuantizeExperts(self)

        @staticmethod
        def get_modules_to_not_convert(*args: Any, **kwargs: Any) -> list[str]:
            found: list[str] = Bnb4BitHfQuantizer.get_modules_to_not_convert(*args, **kwargs)
            return [*found, "dt_proj"]  # Mamba multiplies by its weight directly

    @register_quantization_config(NAME)
    class Config(BitsAndBytesConfig):
        """bitsandbytes' configuration under the quantizer's own name."""

    return Config


def _quantised(value: Tensor) -> Any:
    """Return a parameter in NF4 with double quantisation, as QLoRA stores it."""
    from bitsandbytes.nn import Params4bit

    return Params4bit(
        value, requires_grad=False, quant_type="nf4", compress_statistics=True, bnb_quantized=False
    ).to(value.device)

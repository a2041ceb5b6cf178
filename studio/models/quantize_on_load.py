"""Quantise weights while they are loaded: NF4 or 8 bit, blockwise, by bitsandbytes.

Its loader replaces linear layers, so the 3-D parameters of a mixture, most of its weights, would
stay in 16 bit. The quantizer here stores each parameter as it arrives from the file, experts too:
at most one is whole at a time. `backbone/dense_weights.py` dequantises them per use.

In 8 bit only the weights are quantised, not the activations as in LLM.int8: an adapter trains
beside the same products that it later answers with, whatever else is in the batch.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from studio.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NAME = "studio"
BLOCK = 128  # weights in 8 bit that share a scale
BITS = {"nf4": 4, "int8": 8}
QUANTISED_BYTES = {"nf4": 0.56, "int8": 1.03}  # per parameter, with its scales


def quantising_options(kind: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what `from_pretrained` needs to load weights in `nf4` or `int8`.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
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
    config.quant_method, config.bits = NAME, BITS[kind]
    return {"quantization_config": config, "device_map": {"": str(device)}}


def is_expert_weight(module: nn.Module, name: str) -> bool:
    """Return True for a 3-D parameter of routed experts."""
    from studio.backbone.expert_layout import expert_layout

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

    @register_quantizer(NAME)
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

    @register_quantization_config(NAME)
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

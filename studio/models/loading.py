"""Load a base model, frozen and in eval mode, with its tokenizer.

Dtype and device are decided here. A model's own code is never run and pickles are never opened.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from studio import hardware
from studio.errors import ModelError, WeightsTooLarge, first_line
from studio.models.find_model import ModelFacts, facts
from studio.models.quantization import open_stored, quantising_options
from studio.spec import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Loaded:
    """A loaded base model, with tokenizer, device, dtype and facts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    facts: ModelFacts


def default_device() -> str:
    """Return the best device torch can use here."""
    if torch.cuda.is_available():
        return "cuda:0"
    if torch.xpu.is_available():
        return "xpu:0"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def load(source: ModelSource, device: str = "auto", *, on_host: bool = False) -> Loaded:
    """Load model and tokenizer, with every parameter frozen and dropout off.

    Args:
        source: The base.
        device: Device to compute on.
        on_host: Leave the weights in main memory (mapped from their file at equal precision).

    Raises:
        ModelError: As in `facts`, or the weights do not fit the configuration.
        WeightsTooLarge: The device is too small for the weights.
    """
    known = facts(source)
    target = torch_device(device)
    dtype = dtype_for(source.dtype, target)
    try:
        place = torch.device("cpu") if on_host else target
        model = _load_model(source, known, place, dtype)
        tokenizer = tokenizer_at(known.path)
    except torch.OutOfMemoryError:
        raise WeightsTooLarge(
            f"The weights of {known.path.name} do not fit on {target}: use a smaller model, "
            "bfloat16, int8, or nf4."
        ) from None
    model.requires_grad_(False)
    model.eval()
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        logger.warning("The tokenizer has %d tokens, the model %d.", len(tokenizer), embeddings)
    return Loaded(model=model, tokenizer=tokenizer, device=target, dtype=dtype, facts=known)


def tokenizer_at(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder.

    Raises:
        ModelError: It is missing or cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"The tokenizer in {path} cannot be read ({_reason(error)}): copy "
            "tokenizer.json and tokenizer_config.json from the original model."
        ) from error


def _reason(error: Exception) -> str:
    return (first_line(error) or type(error).__name__).rstrip(".")


def torch_device(name: str) -> torch.device:
    """Return the device on which a model is loaded, by name; `auto` is the best one.

    Raises:
        ModelError: It does not exist.
    """
    if name == "auto":
        return torch.device(default_device())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f'Invalid device "{name}": use auto, cpu or cuda:0.') from None
    if (of := hardware.torch_module(device)) is not None:
        count = of.device_count() if of.is_available() else 0
        if (device.index or 0) >= count:
            kind = device.type.upper()
            raise ModelError(
                f'Device "{name}" does not exist: torch sees {count} {kind} devices. Use auto.'
            )
    return device


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of `model.dtype` on a device.

    `auto` is bfloat16 on a GPU that multiplies it in hardware (compute capability 8 and later, all
    AMD cards that ROCm supports, Intel's, Apple's from M2 on), float16 on an older one, float32
    elsewhere.
    """
    if name == "auto":
        if device.type != "cuda":
            half = device.type == "xpu" or (device.type == "mps" and hardware.apple_has_bfloat16())
            return torch.bfloat16 if half else torch.float32
        if torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8:
            return torch.bfloat16
        return torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _load_model(
    source: ModelSource, known: ModelFacts, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import GenerationConfig, __version__
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    cls = model_class(known.architecture)
    options: dict[str, Any] = {
        "dtype": dtype, "local_files_only": True, "trust_remote_code": False,
        "use_safetensors": True, "attn_implementation": attention_of(cls),
        "ignore_mismatched_sizes": True,  # told below
    }  # fmt: skip
    if source.quantization != "none":
        options |= quantising_options(source.quantization, dtype, device)
    place: Path | None = known.path
    try:
        if known.stored:  # the loader gets dequantised tensors in place of the files
            place, options["config"] = None, plain_config(known.path)
            options["state_dict"] = open_stored(known.path, known.stored)
        model, info = cls.from_pretrained(place, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ModelError(f"{known.path} cannot be loaded: {_reason(error)}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        logger.warning("%s cannot be loaded", known.path, exc_info=error)
        missing = re.search(r"requires the (\w+) library", str(error))
        if isinstance(error, ImportError) and missing:
            raise ModelError(
                f"{known.architecture} needs the package {missing[1]}: `pip install {missing[1]}`."
            ) from error
        raise ModelError(
            f"{known.path} cannot be loaded as {known.architecture}: transformers {__version__} "
            "refuses its config.json or weights. The log has its reason."
        ) from error
    if known.stored and (known.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(known.path)
    if info["missing_keys"] or info["mismatched_keys"]:
        first = min(info["missing_keys"] or [key for key, *_ in info["mismatched_keys"]])
        raise ModelError(
            f"The weights in {known.path} do not fit its config.json: {first} is missing or has "
            "another shape."
        )
    if source.quantization != "none":
        _compute_quantised(model, device)
        return model
    return model.to(device)


def plain_config(path: Path) -> PreTrainedConfig:
    """Return a model's configuration without how its checkpoint is quantised."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    for part in (config, config.get_text_config(decoder=True)):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def model_class(architecture: str) -> type[PreTrainedModel]:
    """Return transformers' class of an architecture.

    Raises:
        ModelError: This version of transformers does not have it.
    """
    import transformers

    try:
        found: type[PreTrainedModel] = getattr(transformers, architecture)
    except (AttributeError, ImportError) as error:
        logger.warning("No class %s", architecture, exc_info=error)
        raise ModelError(
            f"transformers {transformers.__version__} has no usable {architecture}: install a "
            "version that has it, or choose another model."
        ) from error
    return found


def attention_of(cls: type[PreTrainedModel]) -> str:
    """Return the attention that a class is loaded with: ours where it takes the interface."""
    from studio.backbone.attention import NAME

    return NAME if cls._can_set_attn_implementation() else "eager"


def _compute_quantised(model: PreTrainedModel, device: torch.device) -> None:
    """Give linear layers a forward of ours where bitsandbytes has none that is right.

    It has none for 8 bit blockwise, and on CPUs a wrong one for rows that are not whole blocks.
    There bitsandbytes 0.50 also repacks 4-bit weights at the first eval forward (AVX512-BF16); the
    repacked kernel has no autograd, so later training steps silently get wrong gradients.
    """
    import bitsandbytes

    from studio.backbone.dense_weights import QuantisedLinear, is_whole

    for module in model.modules():
        if not isinstance(module, bitsandbytes.nn.Linear4bit):
            continue
        in_4_bit = isinstance(module.weight, bitsandbytes.nn.Params4bit)
        if device.type == "cpu":
            module.support_avx512bf16_for_cpu = False
        if not in_4_bit or (device.type == "cpu" and not is_whole(module.weight)):
            module.__class__ = QuantisedLinear

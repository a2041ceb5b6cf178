"""Write a plain transformers folder of the Llama, Mistral, Qwen or Gemma family as one GGUF file.

The tensors' names come from the `gguf` package; what it cannot know is here: the order of rotary
rows and which numbers of the config go where (`gguf_tokenizer.py` writes the tokenizer down). Llama
and Mistral rotate pairs of rows in GGUF and halves in transformers, so the rows of q and k change
places; Qwen and Gemma rotate halves in both. Gemma multiplies by `1 + w` where it normalises, and
GGUF keeps that sum.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.adapters.gguf_tokenizer import add_tokenizer
from studio.errors import InputError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Precision = Literal["f32", "f16", "bf16", "q8_0"]
PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "bf16", "q8_0")
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}
"""Architectures in transformers, and what GGUF calls them."""
BLOCK = 32  # Q8_0 packs so many numbers; a row that is no multiple stays in 16 bit


def write(folder: Path, target: Path, *, precision: Precision, name: str) -> list[str]:
    """Write `folder` (config, safetensors, tokenizer) to `target`; returns what to know about it.

    Raises:
        ModelError: The architecture or the tokenizer has no place in this format.
        InputError: The `gguf` package is not there.
    """
    gguf = package()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    if architecture not in FAMILIES:
        raise ModelError(
            f"{architecture or 'This model'} cannot be written as GGUF here; "
            f"{', '.join(FAMILIES)} can."
        )
    family = FAMILIES[architecture]
    writer = gguf.GGUFWriter(target, family)
    writer.add_name(name)
    _add_config(writer, config, precision, gguf)
    notes = add_tokenizer(writer, folder, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
    kept: set[str] = set()
    for key, tensor in tensors(folder):
        stem, _, ending = key.rpartition(".")
        known = names.get_name(stem)
        if known is None:
            raise ModelError(f"{key} has no name in GGUF: this is no plain {architecture}.")
        if key == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if family == "llama" and (heads := _rotary_heads(stem, config)):
            tensor = interleave(tensor, heads)
        if family.startswith("gemma") and stem.endswith("norm"):
            tensor = tensor + 1
        data, kind = _packed(tensor, precision, gguf)
        if precision == "q8_0" and tensor.ndim == 2 and kind != gguf.GGMLQuantizationType.Q8_0:
            kept.add(stem.rpartition(".")[2])
        writer.add_tensor(f"{known}.{ending}", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if kept:
        rest = ", ".join(sorted(kept))
        notes.append(f"Kept in 16 bit, because their rows are no multiple of {BLOCK}: {rest}.")
    return notes


def package() -> Any:
    """Import `gguf`.

    Raises:
        InputError: It is not installed; says how to get it.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(
            'The GGUF export needs the gguf package: pip install "adapter-studio[gguf]".'
        ) from None
    return gguf


def tensors(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every tensor of the folder in float32."""
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                yield key, opened.get_tensor(key).to(torch.float32).numpy()


def interleave(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Put the rows of rotate-half (all first, then all second parts) into pairs."""
    half = tensor.shape[0] // heads // 2
    shaped = tensor.reshape(heads, 2, half, *tensor.shape[1:])
    return shaped.swapaxes(1, 2).reshape(tensor.shape)


def _rotary_heads(stem: str, config: dict[str, Any]) -> int:
    if stem.endswith("self_attn.q_proj"):
        return int(config["num_attention_heads"])
    if stem.endswith("self_attn.k_proj"):
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return 0


def _packed(tensor: NDArray[Any], precision: Precision, gguf: Any) -> tuple[NDArray[Any], Any]:
    """Return a tensor's bytes and their type; vectors always stay in 32 bit."""
    kinds = gguf.GGMLQuantizationType
    kind = kinds.F32 if tensor.ndim < 2 else kinds[precision.upper()]
    if kind == kinds.Q8_0 and tensor.shape[-1] % BLOCK:
        kind = kinds.F16
    return gguf.quants.quantize(tensor, kind), kind


def _add_config(writer: Any, config: dict[str, Any], precision: Precision, gguf: Any) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope)  # Gemma 3 has another rotation for its windows
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"Rotary scaling of the kind {rope['rope_type']} is not written to GGUF yet: export "
            "the merged folder instead."
        )
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window") and config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[names[precision]])

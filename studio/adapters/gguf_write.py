"""Write a plain transformers folder of the Llama family as one GGUF file.

The tensors' names come from the `gguf` package; what it cannot know is here: the order of rotary
rows, which numbers of the config go where, and how a tokenizer is written down. Llama and Mistral
rotate pairs of rows in GGUF and halves in transformers, so the rows of q and k change places; Qwen
rotates halves in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.errors import InputError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Precision = Literal["f32", "f16", "bf16", "q8_0"]
PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "bf16", "q8_0")
# architecture in transformers: (in GGUF, whether the rotary rows are interleaved)
FAMILIES = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
}
BLOCK = 32  # Q8_0 packs so many numbers; a row that is no multiple stays in 16 bit
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


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
    family, interleaved = FAMILIES[architecture]
    writer = gguf.GGUFWriter(target, family)
    writer.add_name(name)
    _add_config(writer, config, precision, gguf)
    notes = _add_tokenizer(writer, folder, config, gguf)
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
         "qwen3": gguf.MODEL_ARCH.QWEN3}[family],
        config["num_hidden_layers"],
    )  # fmt: skip
    kept: set[str] = set()
    for key, tensor in tensors(folder):
        stem, _, ending = key.rpartition(".")
        known = names.get_name(stem)
        if known is None:
            raise ModelError(f"{key} has no name in GGUF: this is no plain {architecture}.")
        if key == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if interleaved and (heads := _rotary_heads(stem, config)):
            tensor = interleave(tensor, heads)
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
    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[names[precision]])


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any], gguf: Any) -> list[str]:
    """Write vocabulary, merges, special tokens and the chat template."""
    from transformers import AutoTokenizer

    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = raw["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"A {model.get('type')} tokenizer cannot be written as GGUF here.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    bytewise = not model.get("byte_fallback")
    special = {t["id"]: t for t in raw.get("added_tokens", [])}
    words = {index: word for word, index in model["vocab"].items()}
    words |= {index: token["content"] for index, token in special.items()}
    count = config["vocab_size"]
    tokens = [words.get(i, f"[UNUSED{i}]") for i in range(count)]
    unknown = model.get("unk_token")

    def kind(index: int) -> int:
        if index not in words:
            return NORMAL + 4  # unused
        if index in special:
            control = special[index].get("special")
            return UNKNOWN if tokens[index] == unknown else CONTROL if control else USER
        return BYTE if not bytewise and tokens[index].startswith("<0x") else NORMAL

    writer.add_tokenizer_model("gpt2" if bytewise else "llama")
    writer.add_token_list(tokens)
    writer.add_token_types([kind(i) for i in range(count)])
    writer.add_token_merges(merges)
    if bytewise:
        writer.add_tokenizer_pre("qwen2" if "qwen" in config["model_type"] else "gpt-2")
    else:
        # In sentencepiece's order the earlier merge has the higher score.
        rank = {merge.replace(" ", ""): -float(i) for i, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([rank.get(token, -1e6) for token in tokens])
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id", None)
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(bool(begins and tokenizer.bos_token_id is not None))
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)
        return []
    return ["The model has no chat template: programs will use one of their own."]

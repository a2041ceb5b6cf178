"""Families of models that GGUF has names for, and the numbers of their configurations.

Tensor names come from the `gguf` package; `gguf_tensors.py` knows how each family orders rows and
columns. What a family's file needs beyond the numbers that all share is one function here. A
family without an entry cannot be written as GGUF.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import ModelError

Numbers = dict[str, Any]
Writer = Any  # gguf.GGUFWriter; the package is optional
ATTENTION = ("full_attention", "sliding_attention", "attention")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Rules by which a class of transformers is written as GGUF.

    Attributes:
        arch: GGUF's name of the architecture.
        pairs: Rotary embeddings rotate pairs of rows there and halves in transformers.
        shifted: Norms multiply by `1 + w` in transformers, and the file holds the sum.
        numbers: Write the numbers that only this family has.
    """

    arch: str
    pairs: bool = False
    shifted: bool = False
    numbers: Callable[[Writer, Numbers], None] = lambda writer, numbers: None


def family_of(architecture: str) -> Family:
    """Return how a class is written.

    Raises:
        ModelError: GGUF has no names for it here.
    """
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    raise ModelError(
        f"{architecture or 'This model'} has no entry in the GGUF export: export the merged folder "
        "(safetensors) instead."
    )


def numbers_of(folder: Path) -> Numbers:
    """Return the text configuration of a model folder, with the defaults of its class."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config(decoder=True)
    tied = any(getattr(c, "tie_word_embeddings", False) for c in (config, text))
    return {
        **text.to_dict(),
        "tie_word_embeddings": tied and not _has_head(folder),
        "architecture": (config.architectures or [""])[0],
    }


def _has_head(folder: Path) -> bool:
    """Return True if a folder stores an output head other than its embeddings.

    The configurations of a wrapper and its text part may disagree on that.
    """
    from safetensors import safe_open

    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                if key.endswith(("lm_head.weight", "embed_tokens.weight")):
                    found[key.split(".")[-2]] = opened.get_tensor(key)
    return "lm_head" in found and not found["lm_head"].equal(found["embed_tokens"])


def rope_of(numbers: Numbers) -> Numbers:
    """Return the rotary parameters of the layers that see the whole context."""
    rope = numbers.get("rope_parameters") or {}
    for kind in ("full_attention", "hybrid"):
        rope = rope.get(kind) or rope
    return {"rope_theta": numbers.get("rope_theta") or 10000.0, **rope}


def head_dim_of(numbers: Numbers) -> int:
    """Return the size of an attention head."""
    return numbers.get("head_dim") or numbers["hidden_size"] // numbers["num_attention_heads"]


def write_numbers(writer: Writer, numbers: Numbers, family: Family) -> None:
    """Write the configuration: the numbers that all families share, then the family's own.

    Raises:
        ModelError: The rotary scaling has no form in GGUF.
    """
    head_dim, heads = head_dim_of(numbers), numbers["num_attention_heads"]
    writer.add_context_length(numbers["max_position_embeddings"])
    writer.add_embedding_length(numbers["hidden_size"])
    writer.add_block_count(numbers["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_vocab_size(numbers["vocab_size"])
    writer.add_layer_norm_rms_eps(numbers.get("rms_norm_eps") or numbers.get("norm_eps") or 1e-5)
    writer.add_rope_freq_base(float(rope_of(numbers)["rope_theta"]))
    values = {
        "feed_forward_length": numbers.get("intermediate_size"),
        "head_count_kv": numbers.get("num_key_value_heads") or heads,
        "key_length": head_dim,
        "value_length": head_dim,
        "rope_dimension_count": int(head_dim * rope_of(numbers).get("partial_rotary_factor", 1.0)),
        "attn_logit_softcapping": numbers.get("attn_logit_softcapping") or None,
        "final_logit_softcapping": numbers.get("final_logit_softcapping") or None,
    }
    values |= _given(family, numbers)
    for name, value in values.items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    _write_rope(writer, rope_of(numbers), numbers)
    family.numbers(writer, numbers)


def rope_factors(numbers: Numbers) -> dict[str, list[float]]:
    """Return the tensors that hold one factor per rotary frequency, by GGUF's name."""
    rope, head_dim = rope_of(numbers), head_dim_of(numbers)
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        base, dim = rope["rope_theta"], head_dim
        frequencies = [base ** (-2 * i / dim) for i in range(dim // 2)]
        return {"rope_freqs": [_llama3_factor(f, rope, numbers) for f in frequencies]}
    if kind == "longrope":
        return {"rope_factors_long": rope["long_factor"],
                "rope_factors_short": rope["short_factor"]}  # fmt: skip
    if kind == "proportional":  # Gemma 4: only the first frequencies of a global head rotate
        size = global_head_dim(numbers)
        turning = int(size * rope.get("partial_rotary_factor", 1.0) / 2)
        return {"rope_freqs": [1.0] * turning + [1e30] * (size // 2 - turning)}
    return {}


def global_head_dim(numbers: Numbers) -> int:
    """Return the head size of Gemma 4's global layers."""
    own = numbers.get("per_layer_config") or {}
    sizes = [layer["head_dim"] for layer in own.values() if "head_dim" in layer]
    return int(sizes[0] if sizes else numbers.get("global_head_dim") or numbers["head_dim"])


def _llama3_factor(frequency: float, rope: Numbers, numbers: Numbers) -> float:
    """Return the divisor of one frequency, smooth between the two wavelengths.

    Source: arXiv:2407.21783.
    """
    context = rope.get("original_max_position_embeddings") or 8192
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return float(factor)
    smooth = (context / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def _write_rope(writer: Writer, rope: Numbers, numbers: Numbers) -> None:
    import gguf

    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3", "proportional"):
        return
    original = rope.get("original_max_position_embeddings")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(original or numbers["max_position_embeddings"])
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name) is not None:
                getattr(writer, f"add_rope_scaling_yarn_{name}")(float(rope[name]))
    elif kind == "longrope":
        original = original or numbers["original_max_position_embeddings"]
        scale = numbers["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        )
    else:
        raise ModelError(
            f"Rotary scaling {kind} is not supported in GGUF here: export the merged folder "
            "(safetensors) instead."
        )


def _given(family: Family, numbers: Numbers) -> Numbers:
    """Return the shared numbers that a family writes in another way."""
    types = numbers.get("layer_types") or []
    mixed = any(kind not in ATTENTION for kind in types)
    if family.arch in ("lfm2", "lfm2moe", "granitehybrid") and mixed:
        heads = numbers["num_key_value_heads"]
        return {"head_count_kv": [heads if kind in ATTENTION else 0 for kind in types]}
    if family.arch == "gemma4":
        return _gemma4_sizes(numbers)
    if family.arch in ("granite", "granitemoe", "phi3"):
        size = numbers["hidden_size"] // numbers["num_attention_heads"]
        share = rope_of(numbers).get("partial_rotary_factor", 1.0)
        return {"rope_dimension_count": int(size * share)}
    return {}


def _gemma4_sizes(numbers: Numbers) -> Numbers:
    sliding = [kind == "sliding_attention" for kind in numbers["layer_types"]]
    own = {int(k): v for k, v in (numbers.get("per_layer_config") or {}).items()}
    heads = [own.get(i, {}).get("num_key_value_heads", numbers["num_key_value_heads"])
             for i in range(len(sliding))]  # fmt: skip
    size, wide = global_head_dim(numbers), numbers["intermediate_size"]
    shared = len(sliding) - numbers["num_kv_shared_layers"]
    lengths = [2 * wide if numbers["use_double_wide_mlp"] and i >= shared else wide
               for i in range(len(sliding))]  # fmt: skip
    return {
        "feed_forward_length": lengths if len(set(lengths)) > 1 else wide,
        "head_count_kv": heads if len(set(heads)) > 1 else heads[0],
        "key_length": size, "value_length": size, "rope_dimension_count": size,
    }  # fmt: skip


def _window(writer: Writer, numbers: Numbers) -> None:
    """Write a sliding window, and which layers have it where they do not all."""
    if not numbers.get("sliding_window"):
        return
    writer.add_sliding_window(numbers["sliding_window"])
    if numbers.get("layer_types"):
        writer.add_sliding_window_pattern(
            [kind == "sliding_attention" for kind in numbers["layer_types"]]
        )


def _gemma2(writer: Writer, numbers: Numbers) -> None:
    usual = {head_dim_of(numbers), numbers["hidden_size"] // numbers["num_attention_heads"]}
    if numbers["query_pre_attn_scalar"] not in usual:
        raise ModelError(
            f"GGUF knows this family only with queries scaled by {max(usual)}, not "
            f"{numbers['query_pre_attn_scalar']}: export the merged folder (safetensors) instead."
        )
    if numbers.get("sliding_window"):
        writer.add_sliding_window(numbers["sliding_window"])


def _gemma3n(writer: Writer, numbers: Numbers) -> None:
    from statistics import NormalDist

    _window(writer, numbers)
    writer.add_altup_active_idx(numbers["altup_active_idx"])
    writer.add_altup_num_inputs(numbers["altup_num_inputs"])
    writer.add_embedding_length_per_layer_input(numbers["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(numbers["num_kv_shared_layers"])
    shares = numbers["activation_sparsity_pattern"]
    writer.add_activation_sparsity_scale(
        [NormalDist().inv_cdf(share) if share else -math.inf for share in shares]
    )


def _gemma4(writer: Writer, numbers: Numbers) -> None:
    _window(writer, numbers)
    writer.add_shared_kv_layers(numbers["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(numbers.get("hidden_size_per_layer_input") or 0)
    writer.add_key_length_swa(numbers["head_dim"])
    writer.add_value_length_swa(numbers["head_dim"])
    rope = (numbers.get("rope_parameters") or {}).get("sliding_attention", {})
    share = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count_swa(int(numbers["head_dim"] * share))
    writer.add_rope_freq_base_swa(float(rope.get("rope_theta", 10000.0)))
    if numbers.get("enable_moe_block"):
        _experts(writer, {**numbers, "num_experts_per_tok": numbers["top_k_experts"]})


def _experts(writer: Writer, numbers: Numbers) -> None:
    """Write how many experts there are and how wide."""
    count = next(
        numbers[key] for key in ("num_experts", "n_routed_experts", "num_local_experts")
        if numbers.get(key)
    )  # fmt: skip
    writer.add_expert_count(count)
    writer.add_expert_used_count(numbers["num_experts_per_tok"])
    if numbers.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(numbers["moe_intermediate_size"])
    shared = numbers.get("shared_expert_intermediate_size")
    if shared or numbers.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(shared or numbers["shared_intermediate_size"])


def _gpt_oss(writer: Writer, numbers: Numbers) -> None:
    writer.add_sliding_window(numbers["sliding_window"])
    _experts(writer, {**numbers, "moe_intermediate_size": numbers["intermediate_size"]})


def _glm4_moe(writer: Writer, numbers: Numbers) -> None:
    import gguf

    _experts(writer, numbers)
    writer.add_expert_shared_count(numbers["n_shared_experts"])
    writer.add_leading_dense_block_count(numbers["first_k_dense_replace"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(numbers["routed_scaling_factor"])
    writer.add_expert_weights_norm(numbers["norm_topk_prob"])


def _qwen35(writer: Writer, numbers: Numbers) -> None:
    """Write the sizes of the delta rule; attention must come at a fixed interval."""
    types = numbers["layer_types"]
    every = types.index("full_attention") + 1
    wanted = ["linear_attention" if (i + 1) % every else "full_attention"
              for i in range(len(types))]  # fmt: skip
    if types != wanted:
        raise ModelError(
            "GGUF knows this family only with attention at a fixed interval: export the merged "
            "folder (safetensors) instead."
        )
    writer.add_full_attention_interval(every)
    writer.add_ssm_conv_kernel(numbers["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(numbers["linear_key_head_dim"])
    writer.add_ssm_group_count(numbers["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(numbers["linear_num_value_heads"])
    inner = numbers["linear_value_head_dim"] * numbers["linear_num_value_heads"]
    writer.add_ssm_inner_size(inner)
    sections = rope_of(numbers).get("mrope_section") or [11, 11, 10]
    writer.add_rope_dimension_sections([*sections, 0][:4])
    if numbers.get("num_experts"):
        _experts(writer, numbers)


def _qwen3_vl(writer: Writer, numbers: Numbers) -> None:
    sections = rope_of(numbers).get("mrope_section") or [24, 20, 20]
    writer.add_rope_dimension_sections([*sections, 0][:4])
    writer.add_num_deepstack_layers(0)  # the vision tower is a file of its own


def _ministral3(writer: Writer, numbers: Numbers) -> None:
    rope = rope_of(numbers)
    if rope.get("mscale_all_dim") is not None:
        writer.add_rope_scaling_yarn_log_mul(float(rope["mscale_all_dim"]))
    if rope.get("llama_4_scaling_beta") is not None:
        writer.add_attn_temperature_scale(float(rope["llama_4_scaling_beta"]))


def _phi3(writer: Writer, numbers: Numbers) -> None:
    writer.add_sliding_window(numbers.get("sliding_window") or 0)


def _granite(writer: Writer, numbers: Numbers) -> None:
    writer.add_attention_scale(numbers["attention_multiplier"])
    writer.add_embedding_scale(numbers["embedding_multiplier"])
    writer.add_residual_scale(numbers["residual_multiplier"])
    writer.add_logit_scale(numbers["logits_scaling"])
    if numbers.get("num_local_experts"):
        _experts(writer, numbers)


def _granite_hybrid(writer: Writer, numbers: Numbers) -> None:
    _granite(writer, numbers)
    writer.add_ssm_conv_kernel(numbers["mamba_d_conv"])
    writer.add_ssm_state_size(numbers["mamba_d_state"])
    writer.add_ssm_group_count(numbers["mamba_n_groups"])
    writer.add_ssm_inner_size(numbers["mamba_expand"] * numbers["hidden_size"])
    writer.add_ssm_time_step_rank(numbers["mamba_n_heads"])
    writer.add_rope_scaling_finetuned(numbers.get("position_embedding_type") == "rope")


def _lfm2(writer: Writer, numbers: Numbers) -> None:
    import gguf

    writer.add_shortconv_l_cache(numbers["conv_L_cache"])
    if numbers.get("num_experts"):
        _experts(writer, numbers)
        writer.add_leading_dense_block_count(numbers["num_dense_layers"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _smollm3(writer: Writer, numbers: Numbers) -> None:
    layers = numbers["no_rope_layers"]
    if any(bool(turns) != bool((i + 1) % 4) for i, turns in enumerate(layers)):
        raise ModelError(
            "GGUF knows this family only with every fourth layer free of rotary embeddings: export "
            "the merged folder (safetensors) instead."
        )


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(arch="llama", pairs=True),
    "MistralForCausalLM": Family(arch="llama", pairs=True),
    "MixtralForCausalLM": Family(arch="llama", pairs=True, numbers=_experts),
    "Ministral3ForCausalLM": Family(arch="mistral3", pairs=True, numbers=_ministral3),
    "Mistral3ForConditionalGeneration": Family(arch="mistral3", pairs=True, numbers=_ministral3),
    "Qwen2ForCausalLM": Family(arch="qwen2"),
    "Qwen3ForCausalLM": Family(arch="qwen3"),
    "Qwen3MoeForCausalLM": Family(arch="qwen3moe", numbers=_experts),
    "Qwen3VLForConditionalGeneration": Family(arch="qwen3vl", numbers=_qwen3_vl),
    "Qwen3_5ForCausalLM": Family(arch="qwen35", shifted=True, numbers=_qwen35),
    "Qwen3_5ForConditionalGeneration": Family(arch="qwen35", shifted=True, numbers=_qwen35),
    "Qwen3_5MoeForCausalLM": Family(arch="qwen35moe", shifted=True, numbers=_qwen35),
    "Qwen3_5MoeForConditionalGeneration": Family(
        arch="qwen35moe", shifted=True, numbers=_qwen35
    ),
    "GemmaForCausalLM": Family(arch="gemma", shifted=True),
    "Gemma2ForCausalLM": Family(arch="gemma2", shifted=True, numbers=_gemma2),
    "Gemma3ForCausalLM": Family(arch="gemma3", shifted=True, numbers=_gemma2),
    "Gemma3ForConditionalGeneration": Family(arch="gemma3", shifted=True, numbers=_gemma2),
    "Gemma3nForCausalLM": Family(arch="gemma3n", numbers=_gemma3n),
    "Gemma3nForConditionalGeneration": Family(arch="gemma3n", numbers=_gemma3n),
    "Gemma4ForCausalLM": Family(arch="gemma4", numbers=_gemma4),
    "Gemma4ForConditionalGeneration": Family(arch="gemma4", numbers=_gemma4),
    "GptOssForCausalLM": Family(arch="gpt-oss", numbers=_gpt_oss),
    "Phi3ForCausalLM": Family(arch="phi3", numbers=_phi3),
    "GraniteForCausalLM": Family(arch="granite", pairs=True, numbers=_granite),
    "GraniteMoeForCausalLM": Family(arch="granitemoe", pairs=True, numbers=_granite),
    "GraniteMoeSharedForCausalLM": Family(arch="granitemoe", pairs=True, numbers=_granite),
    "GraniteMoeHybridForCausalLM": Family(
        arch="granitehybrid", pairs=True, numbers=_granite_hybrid
    ),
    "Lfm2ForCausalLM": Family(arch="lfm2", numbers=_lfm2),
    "Lfm2VlForConditionalGeneration": Family(arch="lfm2", numbers=_lfm2),
    "Lfm2MoeForCausalLM": Family(arch="lfm2moe", numbers=_lfm2),
    "Glm4ForCausalLM": Family(arch="glm4"),
    "Glm4MoeForCausalLM": Family(arch="glm4moe", numbers=_glm4_moe),
    "SmolLM3ForCausalLM": Family(arch="smollm3", pairs=True, numbers=_smollm3),
    "Olmo2ForCausalLM": Family(arch="olmo2", numbers=_window),
    "Olmo3ForCausalLM": Family(arch="olmo2", numbers=_window),
    "OlmoeForCausalLM": Family(arch="olmoe", numbers=_experts),
    "SeedOssForCausalLM": Family(arch="seed_oss"),
}  # fmt: skip

"""Tiny random models, one per family of language models that transformers can load.

Each configuration keeps the traps of its family (shared keys, sinks, layers that differ, shared
experts, wrappers with equal layer counts, biases, tied heads) at sizes that run in milliseconds.
`tiny_config` shrinks any configuration class, so that families without an entry can be built too.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCABULARY, HIDDEN, LAYERS, CONTEXT = 300, 32, 4, 128

# Sizes by field name; a configuration takes those of the fields that its class has.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY - 8, "hidden_size": HIDDEN, "d_model": HIDDEN,
    "n_embd": HIDDEN, "embedding_size": HIDDEN, "hidden_dim": HIDDEN, "embed_dim": HIDDEN,
    "emb_dim": HIDDEN, "dim_model": HIDDEN, "word_embed_proj_dim": HIDDEN, "embedding_dim": HIDDEN,
    "intermediate_size": 48, "intermediate_size_mlp": 48, "ffn_dim": 48, "n_inner": 48,
    "ffn_hidden_size": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dim_ff": 48, "dff": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "shared_intermediate_size": 24,
    "expert_ffn_hidden_size": 16,
    "num_hidden_layers": LAYERS, "num_layers": LAYERS, "n_layer": 3, "n_layers": 3,
    "decoder_layers": 3, "encoder_layers": 2, "num_decoder_layers": 3,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "n_ctx": CONTEXT,
    "max_seq_len": CONTEXT, "context_length": CONTEXT, "original_max_position_embeddings": CONTEXT,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1,
    "n_groups": 1, "num_dense_layers": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "o_lora_rank": 8, "o_groups": 2, "index_topk": 4, "index_head_dim": 16,
    "index_n_heads": 8,  # fewer choose among equal scores
     "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    "sliding_window": 6, "sliding_window_size": 6, "attention_window": 6,
    "attention_window_size": 6, "attention_chunk_size": 8,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "lru_width": HIDDEN, "time_step_rank": 4, "mamba_dt_rank": 4,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "mamba_headdim": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64,
    "mamba_chunk_size": 8, "n_mamba_heads": 1, "ssm_state_size": 8, "state_size": 8,
    "chunk_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "bos_id": 1,
    "decoder_start_token_id": 1,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "dropout": 0.0, "attn_pdrop": 0.0,
    "embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
IMAGES: dict[str, Any] = {
    **{key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")},
    "num_heads": 4, "num_hidden_layers": LAYERS, "depth": LAYERS, "head_dim": 8,
    "num_key_value_heads": 4, "patch_size": 4, "image_size": 16, "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16, "text_hidden_size": HIDDEN, "output_proj_dims": HIDDEN,
    "vision_output_dim": HIDDEN, "projector_input_dim": HIDDEN, "projector_output_dim": HIDDEN,
    "num_patches": 16, "position_embedding_size": 16, "deepstack_visual_indexes": [0],
    "mm_embed_dim": HIDDEN, "mm_posemb_size": 16, "max_position_embeddings": 16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family: its type in transformers and what its tiny configuration must contain.

    Attributes:
        kind: The configuration's `model_type`.
        text: Fields of the text configuration that differ from `SIZES`.
        wrapper: Fields of the wrapper around a text and a vision tower of as many layers; None for
            a text model.
        trap: What an adapter must get right here, in a few words.
        area: Group of families in the support matrix.
    """

    kind: str
    text: dict[str, Any] = field(default_factory=dict)
    wrapper: dict[str, Any] | None = None
    trap: str = ""
    area: str = "dense"


def _hybrid(every: int, other: str, attention: str = "full_attention") -> list[str]:
    return [attention if (i + 1) % every == 0 else other for i in range(LAYERS)]


SLIDING = ["sliding_attention", "full_attention"] * 2
NORMED = {"head_dim": 16}
LATENT = {"num_key_value_heads": 4}
DENSE = {
    "llama": Family(kind="llama", trap="the plain case"),
    "llama-tied": Family(kind="llama", text={
        "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
    }, trap="tied head, biases everywhere"),
    "qwen2": Family(kind="qwen2", trap="biases on queries, keys and values"),
    "qwen3": Family(kind="qwen3", trap="normed queries and keys"),
    "mistral": Family(kind="mistral", trap="sliding window"),
    "ministral3": Family(kind="ministral3", trap="query scaling by position"),
    "phi3": Family(kind="phi3", text={"sliding_window": None},
                   trap="fused qkv_proj and gate_up_proj"),
    "gemma": Family(kind="gemma", text={"num_key_value_heads": 1}, trap="norms of 1 + w, tied"),
    "gemma2": Family(kind="gemma2", text={"query_pre_attn_scalar": 8, "layer_types": SLIDING},
                     trap="soft-capped attention and logits"),
    "gemma3": Family(kind="gemma3_text", text={
        "query_pre_attn_scalar": 16, "layer_types": SLIDING,
    }, trap="two rotary bases"),
    "gemma3n": Family(kind="gemma3n_text", text={
        "layer_types": SLIDING, "num_kv_shared_layers": 2, "intermediate_size": [48, 40, 48, 56],
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "altup_num_inputs": 2,
    }, trap="keys shared by the last layers, widths per layer, several streams"),
    "gemma4": Family(kind="gemma4_text", text={
        "layer_types": SLIDING, "num_kv_shared_layers": 2, "global_head_dim": 32,
        "use_double_wide_mlp": True, "final_logit_softcapping": 30.0,
    }, trap="shared keys, head sizes per layer, per-layer embeddings"),
    "gemma4-k-eq-v": Family(kind="gemma4_text", text={
        "layer_types": SLIDING, "attention_k_eq_v": True, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
    }, trap="global layers without v_proj"),
    "vaultgemma": Family(kind="vaultgemma", text={
        "query_pre_attn_scalar": 8, "layer_types": SLIDING,
    }, trap="soft-capping"),
    "smollm3": Family(kind="smollm3", text={"no_rope_layer_interval": 4, "sliding_window": None},
                      trap="layers without rotary embeddings"),
    "olmo2": Family(kind="olmo2", trap="norms after the sub-layers"),
    "olmo3": Family(kind="olmo3", text={"layer_types": SLIDING}, trap="sliding windows"),
    "granite": Family(kind="granite", text={
        "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
        "attention_multiplier": 0.2,
    }, trap="multipliers"),
    "granite-swa": Family(kind="granite_swa", text={"layer_types": SLIDING},
                          trap="sliding windows with sinks"),
    "glm4": Family(kind="glm4", text={"attention_bias": True}, trap="interleaved rotary, sandwich"),
    "apertus": Family(kind="apertus", trap="an activation with parameters, no gate"),
    "nanochat": Family(kind="nanochat", trap="norms without weights"),
    "minicpm3": Family(kind="minicpm3", text={**LATENT, "head_dim": None}, trap="latent attention"),
    "youtu": Family(kind="youtu", text=LATENT, trap="latent attention"),
    "cohere2": Family(kind="cohere2", text={"layer_types": SLIDING}, trap="parallel sub-layers"),
    "jais2": Family(kind="jais2", trap="biases, no gate"),
    "dory": Family(kind="dory", text={
        "n_input_layers": 1, "n_output_layers": 1, "n_recurrent_loops": 2, "layer_types": SLIDING,
    }, trap="looped layers"),
    "hrm": Family(kind="hrm_text", trap="two looped stacks, prefix LM"),
    "falcon": Family(kind="falcon", text={"alibi": False, "num_kv_heads": 1},
                     trap="fused query_key_value, parallel sub-layers"),
    "bloom": Family(kind="bloom", trap="ALiBi"),
    "gpt2": Family(kind="gpt2", trap="transposed weights"),
    "gpt-neox": Family(kind="gpt_neox", trap="fused query_key_value"),
    "opt": Family(kind="opt", trap="learned positions, no mlp module"),
    "bert": Family(kind="bert", text={"is_decoder": True}, trap="a BERT-like decoder"),
    "bart": Family(kind="bart", text={"is_decoder": True}, trap="a decoder without its encoder"),
}  # fmt: skip
EXPERTS = {
    "mixtral": Family(kind="mixtral", area="experts", trap="routed experts"),
    "qwen3-moe": Family(kind="qwen3_moe", area="experts", trap="routed experts in every layer"),
    "qwen3-moe-mixed": Family(kind="qwen3_moe", area="experts", text={"mlp_only_layers": [0]},
                              trap="a dense layer among mixtures"),
    "olmoe": Family(kind="olmoe", area="experts", trap="normed queries and keys"),
    "gpt-oss": Family(kind="gpt_oss", area="experts", text={"layer_types": SLIDING},
                      trap="sinks; transposed experts with biases; clipped SwiGLU"),
    "glm4-moe": Family(kind="glm4_moe", area="experts", text={"use_qk_norm": True},
                       trap="shared expert, router bias"),
    "glm4-flash": Family(kind="glm4_moe_lite", area="experts", text={
        **LATENT, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    }, trap="latent attention and experts"),
    "deepseek-v3": Family(kind="deepseek_v3", area="experts", text=LATENT,
                          trap="latent attention, grouped routing"),
    "ernie-moe": Family(kind="ernie4_5_moe", area="experts", text={"use_bias": True},
                        trap="shared experts, biases"),
    "gemma4-moe": Family(kind="gemma4_text", area="experts", text={
        "layer_types": SLIDING, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True, "num_global_key_value_heads": 1,
    }, trap="a mixture beside the dense MLP, global layers without v_proj"),
    "granite-moe": Family(kind="granitemoeshared", area="experts", trap="parallel experts"),
    "phimoe": Family(kind="phimoe", area="experts", trap="biases everywhere"),
    "llama4": Family(kind="llama4_text", area="experts", text={
        "moe_layers": [1, 3], "num_experts_per_tok": 1, "no_rope_layers": [1, 1, 1, 0],
    }, trap="a shared expert beside routed ones, attention in chunks"),
    "afmoe": Family(kind="afmoe", area="experts", text={"layer_types": SLIDING},
                    trap="gated attention, sandwich norms"),
    "laguna": Family(kind="laguna", area="experts", text={
        "layer_types": SLIDING, "num_attention_heads_per_layer": [4, 2, 4, 2],
    }, trap="numbers of heads per layer"),
    "zaya": Family(kind="zaya", area="experts", text={
        "num_experts_per_tok": 1, "router_hidden_size": 16, "sliding_window": None,
    }, trap="convolution inside attention"),
}  # fmt: skip
HYBRIDS = {
    "qwen3.5": Family(kind="qwen3_5_text", area="hybrid", trap="gated delta rule"),
    "qwen3.5-moe": Family(kind="qwen3_5_moe_text", area="hybrid",
                          trap="gated delta rule, shared expert"),
    "qwen3-next": Family(kind="qwen3_next", area="hybrid", trap="fused in_proj_qkvz"),
    "olmo-hybrid": Family(kind="olmo_hybrid", area="hybrid", text={
        "layer_types": _hybrid(2, "linear_attention"),
    }, trap="three short convolutions beside a delta rule"),
    "lara": Family(kind="lara_mini", area="hybrid", trap="delta rule and experts"),
    "kimi-linear": Family(kind="kimi_linear", area="hybrid", text={
        **LATENT, "linear_head_dim": 8, "linear_num_heads": 4,
        "layer_types": _hybrid(2, "linear_attention"),
    }, trap="delta rule beside latent attention"),
    "bailing": Family(kind="bailing_hybrid", area="hybrid", text={
        **LATENT, "head_dim": 16, "layer_types": _hybrid(2, "linear_attention"),
    }, trap="delta rule beside latent attention, experts"),
    "lfm2": Family(kind="lfm2", area="hybrid", text={
        "layer_types": _hybrid(2, "conv"), "block_auto_adjust_ff_dim": False,
    }, trap="short convolutions"),
    "lfm2-moe": Family(kind="lfm2_moe", area="hybrid", text={"layer_types": _hybrid(2, "conv")},
                       trap="short convolutions and experts"),
    "lfm3": Family(kind="lfm3", area="hybrid",
                   trap="short convolutions, gate on each attention head"),
    "granite-4-h": Family(kind="granitemoehybrid", area="hybrid", text={
        "layer_types": _hybrid(2, "linear_attention"), "embedding_multiplier": 3.0,
    }, trap="Mamba-2, parallel experts beside a shared one"),
    "granite-moe-swa": Family(kind="granitemoe_swa", area="hybrid", text={"layer_types": SLIDING},
                              trap="sinks and convolutions"),
    "nemotron-h": Family(kind="nemotron_h", area="hybrid", text={
        "layers_block_type": ["mamba", "mlp", "attention", "moe"], "num_hidden_layers": ...,
    }, trap="one mixer per block, experts without a gate"),
    "falcon-h1": Family(kind="falcon_h1", area="hybrid", text={
        "key_multiplier": 0.5, "attention_in_multiplier": 0.7, "ssm_in_multiplier": 1.3,
    }, trap="attention and Mamba side by side"),
    "bamba": Family(kind="bamba", area="hybrid", text={"attn_layer_indices": [1, 3]},
                    trap="Mamba-2"),
    "jamba": Family(kind="jamba", area="hybrid", text={
        "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
    }, trap="Mamba and experts"),
    "zamba2": Family(kind="zamba2", area="hybrid", text={
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_headdim": ...,
        "n_mamba_heads": 8, "use_mamba_kernels": False, "num_key_value_heads": 4,
        "hybrid_layer_ids": [1, 3], "num_mem_blocks": 1, "adapter_rank": 4,
    }, trap="one attention block shared by several layers"),
    "minimax": Family(kind="minimax", area="hybrid", text={
        "block_size": 4, "layer_types": _hybrid(2, "linear_attention"),
    }, trap="lightning attention"),
    "recurrent-gemma": Family(kind="recurrent_gemma", area="hybrid", text={
        "block_types": ["recurrent", "attention"],
    }, trap="gated recurrences"),
    "mamba": Family(kind="mamba", area="hybrid", trap="a state space only"),
    "mamba2": Family(kind="mamba2", area="hybrid", text={"num_heads": 8, "head_dim": 8},
                     trap="a state space only"),
    "rwkv": Family(kind="rwkv", area="hybrid", trap="a recurrence only"),
    "xlstm": Family(kind="xlstm", area="hybrid", text={
        "num_blocks": 2, "hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0,
    }, trap="a recurrence only"),
    "inkling": Family(kind="inkling_text", area="hybrid", text={
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "d_rel": 4,
        "rel_extent": 8,
    }, trap="relative position bias, short convolutions"),
    "qwen4": Family(kind="qwen4_exp_text", area="hybrid", text={
        "hc_count": 2, "hc_lowrank": 4, "ple_layer_ids": [1], "ple_embed_dim": 16,
        "heads_per_ngram": 2, "ngram_vocab_size_base": 64, "split_ngram_parts": 1,
        "make_ngram_vocab_size_divisible_by": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 4,
    }, trap="several residual streams, n-gram embeddings, an indexer"),
}  # fmt: skip
WRAPPERS = {
    "qwen3-vl": Family(kind="qwen3_vl", area="wrapper", wrapper={}, text={
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }, trap="a vision tower of as many layers"),
    "qwen3.5-vl": Family(kind="qwen3_5", area="wrapper", wrapper={}, trap="a hybrid text tower"),
    "ministral3-vl": Family(kind="mistral3", area="wrapper", wrapper={}, text={
        "model_type": "ministral3", "sliding_window": None,
    }, trap="both towers have q_proj"),
    "gemma3-vl": Family(kind="gemma3", area="wrapper", wrapper={"mm_tokens_per_image": 4}, text={
        "query_pre_attn_scalar": 16, "layer_types": SLIDING,
    }, trap="both towers have q_proj"),
    "gemma4-vl": Family(kind="gemma4", area="wrapper", wrapper={"audio_config": None}, text={
        "layer_types": SLIDING, "num_kv_shared_layers": 2, "global_head_dim": 32,
    }, trap="a vision tower with a linear class of its own"),
    "lfm2-vl": Family(kind="lfm2_vl", area="wrapper", wrapper={"projector_hidden_size": 16}, text={
        "layer_types": _hybrid(2, "conv"), "block_auto_adjust_ff_dim": False,
    }, trap="convolutions in the text tower"),
}  # fmt: skip
SMALL_TOWER = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
# What a type needs beside `SIZES` to be built, for those without a family.
TYPES: dict[str, dict[str, Any]] = {
    "blt": {
        "patching_mode": "static", "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3], "vocab_size": VOCABULARY,
        **{f"{part}_config": {**SMALL_TOWER, "vocab_size": VOCABULARY, "hidden_size_global": HIDDEN}
           for part in ("patcher", "encoder", "decoder", "global")},
    },
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"layer_types": SLIDING, "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
        for kind in SLIDING
    }},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": 16, "moe_num_experts": 4,
                       "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1, "layer_types": SLIDING},
    "dots3_note_text": {**LATENT, "shared_experts_intermediate_size": 16, **{
        f"swa_{key}": value for key, value in {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16,
            "kv_lora_rank": 16, "head_dim": 16, "qk_nope_head_dim": 8, "v_head_dim": 16,
        }.items()
    }},
    "git": {"vision_config": {**SMALL_TOWER, "image_size": 16, "patch_size": 4}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "gptj": {"rotary_dim": 8},
    "helium": {"head_dim": 8},
    "hy_v4": LATENT,
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4, "zero_expert_num": 2, "moe_topk": 2},
    "phi4_multimodal": {
        "vision_config": {**SMALL_TOWER, "image_size": 28, "crop_size": 28},
        "audio_config": {**SMALL_TOWER, "num_blocks": 1, "ext_pw_out_channel": HIDDEN,
                         "depthwise_separable_out_channel": HIDDEN, "nemo_conv_channels": HIDDEN},
        "sliding_window": None,
    },
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_embds": False,
        "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2,
        "attention_head_size": 8, "feed_forward_size": 48, "hash_seed": 0,
    },
    "roc_bert": {"is_decoder": True, "shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4,
        "use_mamba_kernels": False, "num_key_value_heads": 4, "n_mamba_heads": 2,
    },
}  # fmt: skip
WRAPPED_TYPES: dict[str, dict[str, Any]] = {
    "dots3_note": {
        "vision_config": {**SMALL_TOWER, "rope_parameters": None,
                          "mlp_layer_types": ["dense", "dense"], "adapter_in_dim": HIDDEN,
                          "adapter_out_dim": HIDDEN},
        "audio_config": {**SMALL_TOWER, "adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "emu3": {
        "vq_config": {"base_channels": 32, "hidden_size": HIDDEN},
        "vocabulary_map": {
            **{f"<|visual token {n:06d}|>": n for n in range(4)}, "<|extra_200|>": 4, "<image>": 5,
        },
    },
}  # fmt: skip
LARGEST = 5_000_000  # parameters of a model that counts as tiny
FAMILIES: dict[str, Family] = {**DENSE, **EXPERTS, **HYBRIDS, **WRAPPERS}


def known_fields(config: type[PreTrainedConfig]) -> set[str]:
    """Return the fields that a configuration class takes, under their own and mapped names."""
    own = {each.name for each in dataclasses.fields(config)}  # type: ignore[arg-type]
    return own | set(getattr(config, "attribute_map", {}))


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """Return a text configuration of a `model_type` at tiny sizes; `...` leaves a field out."""
    cls = CONFIG_MAPPING[kind]
    known = known_fields(cls)
    sizes = {key: value for key, value in SIZES.items() if key in known}
    values = {**sizes, **copy.deepcopy(changes)}
    return cls(**{key: value for key, value in values.items() if value is not ...})


def type_config(kind: str) -> PreTrainedConfig:
    """Return a tiny configuration of any `model_type`, from the names of its fields alone.

    Raises:
        ValueError: It has more parameters than a tiny model.
    """
    similar = next((f for f in FAMILIES.values() if f.kind == kind), None)
    if similar is not None and similar.wrapper is not None:
        config = wrapped_config(similar)
    elif "text_config" in getattr(CONFIG_MAPPING[kind], "sub_configs", {}):
        config = wrapped_config(Family(kind=kind, wrapper=WRAPPED_TYPES.get(kind, {})))
    else:
        config = tiny_config(kind, **_changes(kind))
    with torch.device("meta"):
        count = sum(p.numel() for p in model_class(kind)._from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count} parameters")
    return config


def _changes(kind: str) -> dict[str, Any]:
    """Return the fields that a type's configuration needs beside `SIZES`."""
    similar = (f.text for f in FAMILIES.values() if f.kind == kind and f.wrapper is None)
    return next(similar, TYPES.get(kind, {}))


def wrapped_config(family: Family) -> PreTrainedConfig:
    """Return the configuration of a text tower beside a vision tower of as many layers."""
    cls = CONFIG_MAPPING[family.kind]
    whole = cls()
    plain = {key: getattr(whole, key) or cls.sub_configs[key]() for key in cls.sub_configs}
    changes = dict(family.text)
    kind = changes.pop("model_type", plain["text_config"].model_type)
    text = tiny_config(kind, **(changes or _changes(kind)))
    others = {}
    for key, config in plain.items():
        known = known_fields(type(config))
        others[key] = config.to_dict() | {k: v for k, v in IMAGES.items() if k in known}
    tokens = {
        key: VOCABULARY - 1 - place
        for place, key in enumerate(sorted(known_fields(cls)))
        if "token" in key and key.endswith(("_id", "_index"))
    }
    given = {**others, "text_config": text.to_dict(), **tokens, **(family.wrapper or {})}
    return cls(**given)


def family_config(name: str) -> PreTrainedConfig:
    """Return a family's tiny configuration.

    Raises:
        SkipTest: The installed transformers does not have it.
    """
    family = FAMILIES[name]
    if family.kind not in CONFIG_MAPPING:
        raise SkipTest(f"transformers {transformers.__version__} has no {family.kind}.")
    if family.wrapper is not None:
        return wrapped_config(family)
    return tiny_config(family.kind, **family.text)


def model_class(kind: str) -> type[PreTrainedModel]:
    """Return the class that generates text for a `model_type`: the whole wrapper if it is one."""
    wrapper = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    return getattr(transformers, wrapper or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a float32 model whose weights are large enough to make every part matter."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = model_class(config.model_type)._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.15 if parameter.dim() > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype), alpha=size)
    return model.eval().requires_grad_(False)


@cache
def _built(name: str) -> PreTrainedModel:
    return random_model(family_config(name))


def family_model(name: str) -> PreTrainedModel:
    """Return a fresh tiny model of a family; its weights are the same in every call."""
    return copy.deepcopy(_built(name))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 300 entries: three specials, bytes, a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ġ", "the"), ("o", "n"), ("1", "2")]
    words = ["<pad>", "<s>", "</s>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def write_family(name: str, folder: Path) -> Path:
    """Write a family's tiny model and a tokenizer as a user's model folder."""
    family_model(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder

"""Sizes of a decoder from its configuration, and the numbers that training keeps of it (no torch).

Shapes: `T tokens of the largest batch, D hidden, A attention width, K key/value width, F inner`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from studio.methods import Phase
from studio.models.architecture import LAST_LAYER_FAMILIES, LENGTH_ROPE_TYPES
from studio.models.find_model import ModelFacts, text_part
from studio.spec import RunSpec
from studio.training.expert_sizes import Mixture, read_mixture, shared_inner

if TYPE_CHECKING:
    from studio.training.row_and_batch_lengths import BatchLoad

BIASED_HEADS = ("codegen", "ctrl", "gptj", "phi")
CHANGED = re.compile(r"logits?_scal(e|ing)$|final_logit_softcapping$|(lm_head|output)_multiplier$")
OTHER_MIXERS = re.compile(r"mamba|ssm|state_size|conv|lru|recurren|alibi|chunk|block_types?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a decoder, from its configuration."""

    layers: int
    hidden: int
    attention: int
    keys_values: int
    inner: int
    vocabulary: int
    gated: bool
    tied: bool
    model_type: str
    plain_head: bool = True
    """False if the head has a bias, or its logits are scaled or capped."""
    mixture: Mixture | None = None
    only_attends: bool = True
    """False if the configuration names another mixer of tokens, attention in chunks, or rotary
    factors by the length of a row."""

    @property
    def matrices(self) -> int:
        """Number of weights in the matrices of all layers, routed experts included."""
        routed = self.mixture.parameters if self.mixture else 0
        return self.layers * self.layer_parameters + routed

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of one layer, routed experts excluded."""
        hidden, inner = self.hidden, self.inner
        beside = [(hidden, self.attention), (hidden, self.keys_values), (hidden, self.keys_values)]
        up = [(hidden, inner)] * (2 if self.gated else 1)
        return [*beside, (self.attention, hidden), *up, (inner, hidden)]

    @property
    def layer_parameters(self) -> int:
        """Number of weights in the matrices of one layer, routed experts excluded."""
        return sum(inputs * outputs for inputs, outputs in self.linears)


def read_shape(known: ModelFacts) -> Shape:
    """Return a decoder's sizes from its `config.json`."""
    return shape_of(json.loads((known.path / "config.json").read_text(encoding="utf-8")), known)


def shape_of(whole: dict[str, Any], known: ModelFacts) -> Shape:
    """Return a decoder's sizes from a configuration."""
    config = text_part(whole)
    heads = _size(config.get("num_attention_heads") or config.get("n_head"), 1)
    groups = _size(config.get("num_key_value_heads"), heads)
    head = _size(config.get("head_dim"), known.hidden_size // heads)
    inner = _size(config.get("intermediate_size") or config.get("n_inner"), 4 * known.hidden_size)
    mixture = None
    if config.get("enable_moe_block") is not False:
        mixture = read_mixture(config, hidden=known.hidden_size, layers=known.num_layers)
    if mixture is not None:
        inner = shared_inner(config)
    return Shape(
        mixture=mixture,
        layers=known.num_layers, hidden=known.hidden_size, attention=heads * head,
        keys_values=groups * head, inner=inner, vocabulary=known.vocab_size,
        gated="intermediate_size" in config and known.model_type not in ("gpt_neox", "opt", "phi"),
        tied=bool(config.get("tie_word_embeddings", True)), model_type=known.model_type,
        plain_head=known.model_type not in BIASED_HEADS
        and not any(config[name] not in (None, 0, 1) for name in config if CHANGED.match(name)),
        only_attends=not any(config[name] and OTHER_MIXERS.search(name) for name in config)
        and set(config.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}
        and not _rope_types(config) & set(LENGTH_ROPE_TYPES),
    )  # fmt: skip


def _rope_types(config: dict[str, Any]) -> set[str]:
    """Return the rope types of a configuration, whose kinds of layers may have their own."""
    given = [config.get(name) for name in ("rope_parameters", "rope_scaling")]
    parts = [part for one in given if isinstance(one, dict) for part in (one, *one.values())]
    found = [part for part in parts if isinstance(part, dict)]
    return {str(part.get("rope_type") or part.get("type")) for part in found}


def _size(value: Any, default: int) -> int:
    """Return a size of a configuration; where layers differ, their mean."""
    values = value if isinstance(value, list) else [value]
    numbers = [each for each in values if isinstance(each, int) and each > 0]
    return round(sum(numbers) / len(numbers)) if numbers else default


Kernel = Literal["fused", "products", "varlen", "repeated"]
"""How attention runs: torch's fused kernel; products, which keep no output; FlashAttention-2, whose
output is the next projection's input; or the fused one with the heads of each group repeated."""


def kept_activations(spec: RunSpec, shape: Shape, load: BatchLoad, *, kernel: Kernel) -> int:
    """Return the numbers that autograd keeps of all layers between forward and backward.

    Args:
        spec: The run.
        shape: The model's sizes.
        load: The largest batch.
        kernel: How attention runs.
    """
    method, mixture = spec.method, shape.mixture
    virtual = method.num_tokens_before * spec.train.per_device_train_batch_size
    prompt = method.num_tokens_before if shape.only_attends else virtual  # once for all rows
    tokens = load.tokens + prompt * (method.phase is Phase.PROMPT)
    attention, feed_forward = layer_activations(spec, shape)
    targets = getattr(method, "target_modules", "all-linear" if method.trains_base else "")
    projects = isinstance(targets, tuple) or targets in ("all-linear", "attention")
    products = kernel == "products" or (kernel == "varlen" and projects)
    repeated = 2 * (shape.attention - shape.keys_values) * (kernel == "repeated")
    attention += repeated - shape.attention * products
    routed = mixture.activations(method) if mixture else 0
    layer = (attention + feed_forward) * tokens
    if spec.train.gradient_checkpointing:  # with offloading: the inputs of this layer and the next
        inputs = min(2, shape.layers) if spec.train.activation_offloading else shape.layers
        return inputs * shape.hidden * tokens + layer + routed * tokens
    layers = shape.layers * layer + (mixture.layers * routed * tokens if mixture else 0)
    if virtual:  # keys, values and, but for varlen, a mask of each row and layer
        length = load.tokens // spec.train.per_device_train_batch_size + method.num_tokens_before
        mask = tokens * length * (kernel != "varlen")
        layers += shape.layers * (2 * shape.keys_values * virtual + mask)
    if method.phase is Phase.TRANSFORM or targets == "mlp":  # nothing is kept below the first site
        plain = 2 * (shape.attention + shape.keys_values) - shape.attention * products + repeated
        plain += shape.hidden * (targets == "mlp" or "x" not in method.reads)
        plain += 2 * shape.inner * (method.phase is Phase.TRANSFORM and "x" in method.reads)
        layers -= plain * tokens
    if shape.model_type in LAST_LAYER_FAMILIES and shape.gated and not spec.train.fsdp:
        layers -= feed_forward * (load.tokens - load.targets)  # only at label positions
    return layers


def layer_activations(spec: RunSpec, shape: Shape) -> tuple[int, int]:
    """Return the numbers that autograd keeps per token, of a layer's attention and feed-forward.

    The norms' inputs, queries, keys, values and the attention's output, the inputs of the
    activation. Methods beside linear layers keep these layers' inputs and the low-rank products;
    the down projection's is recomputed from the gate (`backbone/fused_layers.py`). Norms that train
    keep a copy in float32.
    """
    method, hidden = spec.method, shape.hidden
    lean = shape.gated and not spec.train.fsdp  # a sharded base computes as it was written
    own = hidden * (1 + (spec.model.dtype in ("bfloat16", "float16"))) * method.trains_base
    attention = hidden + own + 2 * shape.attention + 2 * shape.keys_values
    feed_forward = hidden + own + (2 if lean else 3 if shape.gated else 5) * shape.inner
    targets = getattr(method, "target_modules", "all-linear" if method.trains_base else "")
    rank = int(getattr(method, "r", 0)) if method.has_factors else 0
    rank *= 2 if getattr(method, "init_lora_weights", "") == "pissa" else 1
    if isinstance(targets, tuple) or targets in ("all-linear", "attention"):
        attention += hidden + shape.attention + 4 * rank
        attention += method.scales_rows * (hidden + shape.attention + 2 * shape.keys_values)
    if isinstance(targets, tuple) or targets in ("all-linear", "mlp"):
        feed_forward += hidden + 3 * rank + (0 if lean else shape.inner)
        feed_forward += method.scales_rows * hidden
    if method.phase is Phase.GAIN:
        attention += 2 * shape.keys_values
    if method.phase is Phase.TRANSFORM and "h" in method.reads:
        attention += hidden if len(method.reads) == 1 else 0
        feed_forward += hidden
    return attention, feed_forward

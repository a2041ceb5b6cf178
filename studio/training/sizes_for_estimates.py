"""Sizes that estimates rest on: a model's, its experts', what training keeps, a run's batches.

From a configuration and tokenised rows, without torch. Most of a mixture's weights are its routed
experts, and each token passes through a few of them.

Shapes: `T tokens of the largest batch, D hidden, A attention width, K key/value width, F inner,
E experts, K experts per token`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from studio.errors import DataError
from studio.home import Home
from studio.methods import Phase
from studio.methods.method import Method
from studio.models.find_model import LAST_LAYER_FAMILIES, LENGTH_ROPE_TYPES, ModelFacts, text_part
from studio.spec import RunSpec
from studio.training.steps_and_learning_rate import Plan

if TYPE_CHECKING:
    from studio.data.prepare_run_data import Prepared


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")
FIRST = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Routed experts of a model: layers with them, experts, experts per token, sizes."""

    layers: int
    experts: int
    active: int
    hidden: int
    inner: int

    @property
    def parameters(self) -> int:
        """Weights of all routed experts: gate, up and down."""
        return self.layers * self.experts * 3 * self.hidden * self.inner

    @property
    def active_parameters(self) -> int:
        """Weights of routed experts that one token passes through."""
        return self.parameters * self.active // self.experts

    @property
    def largest_parameter(self) -> int:
        """Numbers of the largest 3-D parameter, which a quantised base dequantises at once."""
        return 2 * self.experts * self.hidden * self.inner

    def trained(self, method: Method) -> int:
        """Return the trained parameters of an adapter beside the experts."""
        targets = getattr(method, "target_modules", ())
        named = not isinstance(targets, str) and any("experts" in name for name in targets)
        if not method.is_low_rank or not (targets in ("all-linear", "mlp") or named):
            return 0
        if getattr(method, "use_dora", False):
            return 0  # experts are left out
        rank = getattr(method, "expert_r", 0) or max(1, getattr(method, "r", 1) // self.experts)
        return self.layers * self.experts * rank * (2 * self.hidden + 3 * self.inner)

    def activations(self, method: Method) -> int:
        """Return the numbers that autograd keeps per token and layer with experts.

        Of each of the K experts: gate, up and their product's factors (3 F), and the output that
        the router's weight multiplies (D); with an adapter also the input of the down projection.
        """
        beside = self.inner if self.trained(method) else 0
        return self.active * (3 * self.inner + self.hidden + beside)


def read_mixture(config: dict[str, Any], *, hidden: int, layers: int) -> Mixture | None:
    """Return the routed experts of a text configuration, or None of a dense model."""
    experts, active = _first(config, EXPERTS), _first(config, ACTIVE)
    inner = _first(config, ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"))
    if experts < 2 or not active or not inner:
        return None
    dense = min(layers - 1, _first(config, FIRST))
    return Mixture(
        layers=layers - dense, experts=experts, active=active, hidden=hidden, inner=inner
    )


def shared_inner(config: dict[str, Any]) -> int:
    """Return the inner size of what runs beside the routed experts: shared experts or an MLP."""
    if "enable_moe_block" in config:  # an MLP beside the mixture
        return _first(config, ("intermediate_size",))
    shared = _first(config, ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"))
    inner = _first(config, ("moe_intermediate_size", "intermediate_size"))
    return _first(config, ("shared_expert_intermediate_size",)) or shared * inner


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int:
    """Return the first size that the configuration has; where layers differ, the largest."""
    for name in names:
        value = config.get(name)
        numbers = value if isinstance(value, list) else [value]
        found = [each for each in numbers if isinstance(each, int) and each > 0]
        if found:
            return max(found)
    return 0


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
    """Return the numbers that autograd keeps of all layers between forward and backward."""
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
    the down projection's is recomputed from the gate (`backbone/activation_memory.py`). Norms that
    train keep a copy in float32.
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


MOST_STEPS = 4000
CACHE_TOKENS = 16_384  # keys and values that are held at once while answers are written (GRPO)


def shares_prompts(spec: RunSpec, shape: Shape) -> bool:
    """Return True if a prompt is computed once for all its answers, by the configuration."""
    args = spec.train
    return args.packing and not args.neftune_noise_alpha and shape.only_attends


def answer_lengths(
    spec: RunSpec, shape: Shape, known: ModelFacts, lengths: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the tokens of each prompt with its answers (GRPO), and how many more they may have.

    Answers are expected to be as long as the rows' own, or half of the maximum where these have
    none.
    """
    args = spec.train
    most = min(args.max_completion_length, known.context_length)
    own = targets[targets > 0]
    usual = min(most, math.ceil(own.mean()) + 1 if len(own) else math.ceil(most / 2))
    answers = np.full_like(targets, args.num_generations * usual)
    prompts = lengths - targets
    if not shares_prompts(spec, shape):
        prompts = args.num_generations * prompts
    return prompts + answers, answers, args.num_generations * (most - usual)


def cached_tokens(spec: RunSpec, shape: Shape, *, tokens: float, targets: float) -> float:
    """Return the tokens in the cache of answers (GRPO), each of which has its whole prompt."""
    repeats = spec.train.num_generations if shares_prompts(spec, shape) else 1
    return targets + repeats * (tokens - targets)


def longest_answer(mean: float, count: float) -> float:
    """Return the expected length of the longest of some answers, which a batch waits for.

    Lengths are taken as geometric: the longest of `n` is `ln n + 0.58` times the mean.
    """
    return mean * max(1.0, math.log(count) + 0.58)


def prepared_rows(spec: RunSpec, known: ModelFacts, home: Home | None) -> Prepared:
    """Return the tokenised rows of a run, read from its model's files without torch."""
    from studio.data.model_tokenizer import backend_for
    from studio.data.prepare_run_data import prepare

    return prepare(
        spec.data, backend_for(known.path, home), seed=spec.seed, home=home,
        context_length=max(1, known.context_length - spec.method.num_tokens_before),
        rows=spec.train.rows,
    )  # fmt: skip


def row_lengths(
    spec: RunSpec, known: ModelFacts, home: Home | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for estimates the tokens and trained tokens of every training row, in order.

    Shape `(U, 1)`, or `(U, 2)` for pairs.
    """
    from studio.data.token_arrays import Examples

    made = prepared_rows(spec, known, home)
    assert isinstance(made.train, Examples)
    tokens, order = made.train.tokens, made.train.order
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    width = made.rows_per_example
    return tokens.lengths()[order].reshape(-1, width), trained[order].reshape(-1, width)


def first_lengths(
    spec: RunSpec, known: ModelFacts, home: Home | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the trained tokens of the first rows, as `row_lengths` does.

    Raises:
        DataError: They are only known in the run.
    """
    from studio.data.prepare_run_data import first_rows

    found = first_rows(spec, home)
    if found is None:
        raise DataError(f"The rows of {spec.data.path} are only known in the run.")
    tokens, _ = found
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    width = 2 if spec.train.rows == "pairs" else 1
    return tokens.lengths().reshape(-1, width), trained.reshape(-1, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLoad:
    """Sizes of the batches: the largest of any rank, the mean step, and a rank's part of it.

    `share_tokens` is the mean over steps of the largest part, since ranks wait for it.
    """

    tokens: int
    targets: int
    step_tokens: float
    step_targets: float
    share_tokens: float
    share_targets: float


def batch_load(
    plan: Plan, lengths: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, *,
    packing: bool, processes: int = 1,
) -> BatchLoad:  # fmt: skip
    """Return the sizes of the run's batches, in the run's own row order."""
    size, loss = np.asarray(lengths), np.asarray(targets)
    steps = min(plan.total_steps, max(1, MOST_STEPS // processes))
    most = np.zeros(2, dtype=np.int64)
    total, share = np.zeros(2), np.zeros(2)
    for step in range(steps):
        largest = np.zeros(2, dtype=np.int64)
        for process in range(processes):
            own = np.zeros(2, dtype=np.int64)
            for rows in plan.micro_batches(step, process=process, processes=processes):
                taken = size[rows]
                tokens = taken.sum() if packing else taken.max() * taken.size
                batch = np.array([tokens, loss[rows].sum()])
                most, own = np.maximum(most, batch), own + batch
            largest, total = np.maximum(largest, own), total + own
        share += largest
    return BatchLoad(
        tokens=int(most[0]), targets=int(most[1]), step_tokens=float(total[0] / steps),
        step_targets=float(total[1] / steps), share_tokens=float(share[0] / steps),
        share_targets=float(share[1] / steps),
    )  # fmt: skip

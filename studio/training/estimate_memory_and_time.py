"""Estimate a run's memory by part, and its time, from files alone (no torch).

It counts what the loop holds: packed rows without padding, one chunk of logits at a time, and the
tensors that autograd keeps for frozen layers with an adapter beside them. `preflight.py` measures
the same on the machine and corrects it.

Distributed (DDP), every process holds base, adapter and optimizer and takes every n-th row of a
step; with FSDP it keeps an n-th of the frozen layers, with one layer whole at a time. GPUs have
their own memory. CPU processes share one, and a base that is mapped from its file is there once.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from studio import atomic, hardware
from studio.device_setting import CLUSTER
from studio.home import Home
from studio.methods import Phase
from studio.methods.bottleneck import Bottleneck
from studio.methods.method import LinearMethod
from studio.methods.norm_tuning import NormTuning
from studio.models.find_model import FILE_TYPES, ModelFacts, facts
from studio.models.new_tokens import new_token_ids
from studio.models.quantization import QUANTISED_BYTES
from studio.spec import RunSpec
from studio.training.allocator_and_threads import REUSED_BYTES, WIDE_NUMBERS, chunk_numbers
from studio.training.objectives import needs_reference
from studio.training.sizes_for_estimates import (
    CACHE_TOKENS,
    BatchLoad,
    Kernel,
    Shape,
    answer_lengths,
    batch_load,
    cached_tokens,
    first_lengths,
    kept_activations,
    longest_answer,
    read_shape,
    row_lengths,
    shares_prompts,
)
from studio.training.starting_point import (
    chosen_device,
    emulated_slowdown,
    loaded_dtype,
    with_stored_precision,
)
from studio.training.steps_and_learning_rate import FACTORS, Plan, plan_run, trial_steps

EFFICIENCY = 0.9
"""Fraction of linear speed-up: measured 0.905 for two CPU processes, a guess for GPUs."""
PROCESS_START_SECONDS = 5.0  # that new processes need more than a warm one
MESSAGE_BYTES = 256_000_000  # communication buffers of a GPU: a guess
LIBRARIES_BYTES = 110_000_000  # of a CPU process: library pages, shared by all processes
LAUNCHER_BYTES = 165_000_000  # of the process that started the ranks
FLOPS_PER_CORE = 2.5e10
PRODUCT_SHARE = 0.5  # of a large product's speed that a step reaches on a GPU: a guess
GPU_FLOPS = 6e13  # where no product was measured
SPEED = "speed.json"
RUNTIME_BYTES = 410_000_000  # Python, torch, transformers, and a loop that has run: Linux, x86-64
CUDA_RUNTIME_BYTES = 450_000_000
HEAP_FACTOR = 1.5  # on a CPU: fragmentation of the heap
MAPPED_FACTOR = 1.25  # if tensors are large enough to be returned when freed
STEP_SECONDS = 0.002  # of Python and dispatch, a layer and batch
START_SECONDS = 4.0
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
STATES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 1, "lion": 4, "muon": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Estimated memory and time of a run.

    Attributes:
        parts: Bytes by part of one process.
        measured: True if two real steps corrected the estimate.
        on_device: Number of the run's `processes` that share the device's memory.
        shared_bytes: Bytes of `parts` that those processes share.
        beside_bytes: Further bytes on the device, such as those of the launcher.
        share_tokens: Tokens of a process in each step, out of `tokens_per_step`.
        steps_before: Time before the first step, in steps.
        dtype: Precision of the loaded weights.
    """

    parts: dict[str, int]
    seconds: float
    total_steps: int
    tokens_per_step: int
    longest_batch_tokens: int
    device: str
    device_bytes: int
    measured: bool = False
    processes: int = 1
    on_device: int = 1
    shared_bytes: int = 0
    beside_bytes: int = 0
    share_tokens: int = 0
    steps_before: float = 0.0
    dtype: str = ""

    @property
    def process_bytes(self) -> int:
        """Peak memory of one process."""
        return sum(self.parts.values())

    @property
    def total_bytes(self) -> int:
        """Peak memory on the device, of all processes that share it."""
        others = (self.on_device - 1) * (self.process_bytes - self.shared_bytes)
        return self.process_bytes + others + self.beside_bytes

    @property
    def fits(self) -> bool:
        """True if it fits the device's free memory with 5 % to spare."""
        return self.total_bytes <= 0.95 * self.device_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `--json` and the page."""
        return {
            **asdict(self), "process_bytes": self.process_bytes, "total_bytes": self.total_bytes,
            "fits": self.fits, "efficiency": EFFICIENCY if self.processes > 1 else 1.0,
        }  # fmt: skip


def estimate(spec: RunSpec, home: Home | None, *, from_first_rows: bool = False) -> Estimate:
    """Return the memory and time of a run on its device.

    With `from_first_rows` only the first rows of the dataset are read. A batch then has their
    longest; the number of steps and the time are those of a dataset of these rows alone.

    Raises:
        StudioError: The model or the dataset cannot be used.
    """
    import numpy as np

    spec = spec.on_this_machine()
    size = spec.train.num_processes
    known = facts(spec.model)
    spec = with_stored_precision(spec, known)
    shape = read_shape(known)
    measure = first_lengths if from_first_rows else row_lengths
    lengths, targets = measure(spec, known, home)
    longer = 0  # tokens that answers may have beyond what is expected of them
    if spec.train.loss == "grpo":
        lengths, targets, longer = answer_lengths(spec, shape, known, lengths, targets)
    elif shares_prompts(spec, shape):
        lengths = lengths - (lengths - targets).min(1, keepdims=True) * np.arange(lengths.shape[1])
    plan = plan_run(spec, num_rows=len(lengths), hidden_size=shape.hidden)  # pairs: two columns
    load = batch_load(plan, lengths, targets, packing=spec.train.packing, processes=size)
    if from_first_rows:
        longest = np.sort(lengths.sum(1))[-plan.micro_batch :]
        padded = lengths.max() * plan.micro_batch * lengths.shape[1]
        tokens = longest.sum() if spec.train.packing else padded
        most = np.sort(targets.sum(1))[-plan.micro_batch :].sum()
        load = replace(load, tokens=int(tokens), targets=int(most))
    longer *= plan.micro_batch
    load = replace(load, tokens=load.tokens + longer, targets=load.targets + longer)
    device = chosen_device(spec.train.device)
    on_gpu = hardware.is_card(device.name)  # an Apple GPU loads into the system's memory
    flops = step_flops(spec, shape, tokens=load.share_tokens, targets=load.share_targets)
    step_seconds = STEP_SECONDS * shape.layers * layer_calls(spec, shape, plan, load)
    flops *= emulated_slowdown(spec, device)
    step_seconds += flops / speed(device, home) * slowdown(size, on_gpu=on_gpu)
    before = steps_before(spec, plan)
    on_device, shared, beside = _shared_memory(spec, known, on_gpu=on_gpu)
    starts = START_SECONDS + (PROCESS_START_SECONDS if size > 1 else 0)
    return Estimate(
        parts=memory(spec, shape, known, load, device),
        seconds=starts + (before + plan.total_steps) * step_seconds,
        total_steps=plan.total_steps,
        steps_before=before,
        tokens_per_step=round(load.step_tokens),
        share_tokens=round(load.share_tokens),
        longest_batch_tokens=load.tokens,
        device=spec.train.device if "," in spec.train.device else device.name,
        device_bytes=device.free_bytes,
        processes=size,
        on_device=on_device,
        shared_bytes=shared,
        beside_bytes=beside,
        dtype=loaded_dtype(spec, on_gpu=on_gpu),
    )


def layer_calls(spec: RunSpec, shape: Shape, plan: Plan, load: BatchLoad) -> float:
    """Return how often a rank passes a batch through each layer per step."""
    args, size = spec.train, spec.train.num_processes
    calls = float(plan.most_passes(size))
    if args.loss != "grpo":
        return calls
    answers = plan.rows_per_step / size * args.num_generations
    whole = cached_tokens(spec, shape, tokens=load.share_tokens, targets=load.share_targets)
    batches = math.ceil(whole / CACHE_TOKENS)  # that are written, token after token
    tokens = longest_answer(load.share_targets / answers, answers / batches)
    written = batches * min(args.max_completion_length, tokens)
    return calls * (args.num_iterations + needs_reference(spec) / 2) + written


def steps_before(spec: RunSpec, plan: Plan) -> float:
    """Return the time before the first step, in steps.

    The search of the rate takes its trials; the reference's log-probabilities take a forward pass,
    half of a step, once over the rows that the run uses.
    """
    found = 0.0
    if spec.train.find_learning_rate:
        found += len(FACTORS) * trial_steps(plan.total_steps)
    if spec.train.loss != "grpo" and needs_reference(spec):  # grpo's is part of each step
        found += 0.5 * min(plan.total_steps, plan.num_rows / plan.rows_per_step)
    return found


def memory(
    spec: RunSpec, shape: Shape, known: ModelFacts, load: BatchLoad, device: hardware.Device
) -> dict[str, int]:
    """Return bytes by part of a run on a device, whose largest batch is `load`."""
    on_gpu = hardware.is_card(device.name)
    width = WIDTH[loaded_dtype(spec, on_gpu=on_gpu)]
    size, shares_base = spec.train.num_processes, spec.train.fsdp and spec.train.num_processes > 1
    trained = trained_parameters(spec, shape, known)
    whole = spec.method.trains_base
    matrices, mixture = min(known.parameters, shape.matrices), shape.mixture
    weights = known.parameters * width
    stored = QUANTISED_BYTES.get(spec.model.quantization)
    if stored:
        weights = int(matrices * stored) + (known.parameters - matrices) * width
    gathered = 0
    if mixture is not None and stored:
        gathered = mixture.largest_parameter * width  # dequantised per use
    if shares_base:  # a gathered layer and its message
        weights -= matrices * width * (size - 1) // size
        gathered += 2 * shape.matrices // shape.layers * width
    kernel = attention_kernel(spec, on_gpu=on_gpu, flash=device.has_flash)
    layers = kept_activations(spec, shape, load, kernel=kernel) * width
    mapped = shape.hidden * load.tokens * width > REUSED_BYTES
    spread = 1.0 if on_gpu else MAPPED_FACTOR if mapped else HEAP_FACTOR
    logits = load.targets * shape.vocabulary
    chunk = min(logits, chunk_numbers(on_gpu * device.total_bytes, shape.vocabulary))
    wide = 0 if width == 4 else chunk if on_gpu else min(chunk, WIDE_NUMBERS)
    held = width * chunk + 4 * wide
    if holds_logits(spec, shape, known):
        positions = 0 if spec.train.packing else load.tokens  # padded: the logits of all, twice
        held = 12 * logits + 2 * width * positions * shape.vocabulary
    messages = MESSAGE_BYTES if size > 1 else 0
    parts = {
        "runtime": CUDA_RUNTIME_BYTES + messages if on_gpu else RUNTIME_BYTES,
        "weights": weights,
        "adapter": 0 if whole else 4 * trained,
        "gradients": (width if whole else 4) * trained,
        "optimizer": STATES[spec.train.optim] * trained,
        "activations": int(spread * layers),
        "logits": int(spread * (held + 2 * load.targets * shape.hidden * width)),
        "workspace": int(spread * 3 * max(shape.inner, shape.hidden) * load.tokens * width)
        + gathered,
    }
    if spec.train.loss == "grpo":  # before the step: the cache of the answers
        cached = cached_tokens(spec, shape, tokens=load.tokens, targets=load.targets)
        at_once = min(CACHE_TOKENS, cached * spec.train.gradient_accumulation_steps)
        cache = 2 * shape.layers * shape.keys_values * int(at_once) * width
        step = parts["activations"] + parts["logits"] + parts["workspace"]
        parts["workspace"] += max(0, cache - step)
    if whole and spec.train.find_learning_rate:  # its weights before the trials
        parts["workspace"] += weights
    if shares_base and not on_gpu:  # the base is loaded whole, then sharded
        loading = known.parameters * width + parts["runtime"]
        parts["workspace"] += max(0, loading - sum(parts.values()))
    return parts


def holds_logits(spec: RunSpec, shape: Shape, known: ModelFacts) -> bool:
    """Return True if memory must be estimated with all logits held: the head is not a product."""
    method = spec.method
    named = [getattr(method, field, ()) for field in ("modules_to_save", "target_modules")]
    modules = [name for names in named if isinstance(names, tuple) for name in names]
    if method.trains_base or not shape.plain_head or "embeddings" in named:
        return True
    if any("head" in name or (shape.tied and "emb" in name) for name in modules):
        return True
    tokens = getattr(method, "trainable_token_indices", "none")
    return bool(new_token_ids(known.path)) if tokens == "new" else tokens != "none"


def attention_kernel(spec: RunSpec, *, on_gpu: bool, flash: bool = True) -> Kernel:
    """Return how attention runs (`backbone/attention_kernels.py`)."""
    packed, dtype = spec.train.packing, loaded_dtype(spec, on_gpu=on_gpu)
    auto = spec.train.attn_implementation == "auto"
    if on_gpu:
        named = auto or spec.train.attn_implementation == "varlen"
        return "varlen" if packed and named and flash and dtype != "float32" else "repeated"
    half = dtype == "bfloat16" and hardware.has_fast_bfloat16()
    return "products" if packed and auto and half and not spec.method.num_tokens_before else "fused"


def trained_parameters(spec: RunSpec, shape: Shape, known: ModelFacts) -> int:
    """Return the approximate number of trained parameters."""
    method = spec.method
    if method.trains_base:
        return known.parameters
    if method.phase is Phase.PROMPT:
        return method.num_tokens_before * shape.hidden
    if method.phase is Phase.KEYS_VALUES:
        return method.num_tokens_before * shape.layers * 2 * shape.keys_values
    if isinstance(method, LinearMethod):
        routed = shape.mixture.trained(method) if shape.mixture and method.is_low_rank else 0
        inner = shape.layers * sum(method.num_trained(i, o) for i, o in shape.linears) + routed
        return inner + _embeddings_in_full(method, shape)
    if isinstance(method, Bottleneck):
        r, sites = method.size(shape.hidden), 1 + (method.placement == "houlsby")
        return shape.layers * sites * (2 * r * shape.hidden + r + shape.hidden)
    if method.phase is Phase.GAIN:
        return shape.layers * (2 * shape.keys_values + shape.inner)
    if isinstance(method, NormTuning):
        return (2 * shape.layers + 1) * shape.hidden
    return shape.layers * sum(outputs for _, outputs in shape.linears)


def _embeddings_in_full(method: LinearMethod, shape: Shape) -> int:
    """Return the parameters of embeddings and head that a LoRA trains in full."""
    names = getattr(method, "modules_to_save", "none")
    tables = 1 if shape.tied else 2
    if names != "embeddings":
        tables = sum("emb" in name or "head" in name for name in names) if names != "none" else 0
    return tables * shape.vocabulary * shape.hidden


def step_flops(spec: RunSpec, shape: Shape, *, tokens: float, targets: float) -> float:
    """Return the FLOPs of one step: forward, gradients of inputs, and of weights if they train."""
    passes = 3.0 if spec.method.trains_base else 2.0
    passes += 1.0 if spec.train.gradient_checkpointing else 0.0
    passes += 1.0 if spec.train.loss == "kto" else 0.0  # answers to other prompts
    heads = 1.0  # forward and gradient
    if spec.train.loss == "grpo":  # several updates, the reference, and writing the answers
        forwards = needs_reference(spec) + 1.0
        passes = passes * spec.train.num_iterations + forwards
        heads = spec.train.num_iterations + forwards / 2
    routed = shape.mixture.active_parameters if shape.mixture else 0
    body = 2 * (shape.layers * shape.layer_parameters + routed) * tokens
    return passes * body + heads * 4 * shape.hidden * shape.vocabulary * targets


def _shared_memory(spec: RunSpec, known: ModelFacts, *, on_gpu: bool) -> tuple[int, int, int]:
    """Return the processes on the device, the bytes that they share, and the bytes beside them."""
    size = spec.train.num_processes
    if on_gpu or size == 1 or spec.train.device == CLUSTER:
        return 1, 0, 0
    shared, beside = LIBRARIES_BYTES, LAUNCHER_BYTES
    dtype = loaded_dtype(spec, on_gpu=False)  # tensors in the file's precision are mapped from it
    if spec.model.quantization == "none" and FILE_TYPES.get(known.weights_dtype) == dtype:
        base = known.parameters * WIDTH[dtype]
        shared, beside = (shared, beside + base) if spec.train.fsdp else (shared + base, beside)
    return size, shared, beside


def slowdown(processes: int, *, on_gpu: bool) -> float:
    """Return the time of a row relative to that of a single process.

    CPU processes share the processor's threads.
    """
    if processes == 1:
        return 1.0
    threads = hardware.threads()
    fewer = 1.0 if on_gpu else threads / max(1, threads // processes)
    return fewer / EFFICIENCY


def speed(device: hardware.Device, home: Home | None) -> float:
    """Return FLOP/s as measured by the last preflight here, else guessed from the device."""
    known = atomic.read_object(home.state / SPEED).get(device.name) if home else None
    if isinstance(known, int | float):
        return float(known)
    if device.name == "cpu":
        return FLOPS_PER_CORE * hardware.threads()
    return device.flops * PRODUCT_SHARE or GPU_FLOPS


def save_speed(home: Home, device: str, flops_per_second: float) -> None:
    """Store the measured FLOP/s for the next estimate."""
    if not math.isfinite(flops_per_second) or flops_per_second <= 0:
        return
    with suppress(OSError):
        known = atomic.read_object(home.state / SPEED)
        atomic.write(home.state / SPEED, json.dumps({**known, device: flops_per_second}))

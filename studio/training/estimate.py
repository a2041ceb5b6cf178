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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio import hardware
from studio.devices import CLUSTER
from studio.errors import DataError, StudioError
from studio.home import Home
from studio.methods import Phase
from studio.methods.bottleneck import Bottleneck
from studio.methods.method import LinearMethod
from studio.methods.norm_tuning import NormTuning
from studio.models.quantization import QUANTISED_BYTES
from studio.models.sources import FILE_TYPES, ModelFacts, facts
from studio.spec import RunSpec
from studio.training.activations import Shape, kept_activations, read_shape
from studio.training.allocator import REUSED_BYTES, WIDE_NUMBERS, chunk_numbers
from studio.training.objectives import needs_reference
from studio.training.objectives.grpo import CACHE_TOKENS
from studio.training.schedule import Plan, plan_run

if TYPE_CHECKING:
    from studio.spec import ModelSource

EFFICIENCY = 0.9
"""Fraction of linear speed-up: measured 0.905 for two CPU processes, a guess for GPUs."""
PROCESS_START_SECONDS = 5.0  # that new processes need more than a warm one
MESSAGE_BYTES = 256_000_000  # communication buffers of a GPU: a guess
LIBRARIES_BYTES = 110_000_000  # of a CPU process: library pages, shared by all processes
LAUNCHER_BYTES = 165_000_000  # of the process that started the ranks
MOST_STEPS = 4000
FLOPS_PER_CORE = 2.5e10
PRODUCT_SHARE = 0.5  # of a large product's speed that a step reaches on a GPU: a guess
GPU_FLOPS = 6e13  # where no product was measured
SPEED = "speed.json"
RUNTIME_BYTES = 410_000_000  # Python, torch, transformers, and a loop that has run: Linux, x86-64
SMALL_MODEL = 50_000_000  # parameters
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

    Args:
        spec: The run.
        home: Where datasets are imported and tokens cached.
        from_first_rows: Read only the first rows of the dataset. A batch then has their longest;
            the number of steps and the time are those of a dataset of these rows alone.

    Raises:
        StudioError: The model or the dataset cannot be used.
    """
    spec = spec.on_this_machine()
    size = spec.train.num_processes
    known = facts(spec.model)
    spec = with_stored_precision(spec, known)
    shape = read_shape(known)
    measure = first_lengths if from_first_rows else row_lengths
    lengths, targets = measure(spec, known, home)
    longer = 0  # tokens that answers may have beyond what is expected of them
    if spec.train.loss == "grpo":
        lengths, targets, longer = answer_lengths(spec, known, lengths, targets)
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
    on_gpu = device.name.startswith("cuda")  # an Apple GPU loads float32 into the system's memory
    flops = step_flops(spec, shape, tokens=load.share_tokens, targets=load.share_targets)
    step_seconds = STEP_SECONDS * shape.layers * layer_calls(spec, plan, load)
    step_seconds += flops / speed(device, home) * slowdown(size, on_gpu=on_gpu)
    before = reference_steps(spec, plan) * step_seconds
    on_device, shared, beside = _shared_memory(spec, known, on_gpu=on_gpu)
    starts = START_SECONDS + (PROCESS_START_SECONDS if size > 1 else 0)
    return Estimate(
        parts=memory(
            spec, shape, known, load, on_gpu=on_gpu, gpu_bytes=on_gpu * device.total_bytes
        ),
        seconds=starts + before + plan.total_steps * step_seconds,
        total_steps=plan.total_steps,
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


def answer_lengths(
    spec: RunSpec, known: ModelFacts, lengths: np.ndarray, targets: np.ndarray
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
    prompts = args.num_generations * (lengths - targets)
    return prompts + answers, answers, args.num_generations * (most - usual)


def layer_calls(spec: RunSpec, plan: Plan, load: BatchLoad) -> float:
    """Return how often a rank passes a batch through each layer per step."""
    args, size = spec.train, spec.train.num_processes
    calls = float(plan.most_passes(size))
    if args.loss != "grpo":
        return calls
    answers = plan.rows_per_step / size * args.num_generations
    batches = math.ceil(load.share_tokens / CACHE_TOKENS)  # that are written, token after token
    tokens = longest_answer(load.share_targets / answers, answers / batches)
    written = batches * min(args.max_completion_length, tokens)
    return calls * (args.num_iterations + needs_reference(spec) / 2) + written


def longest_answer(mean: float, count: float) -> float:
    """Return the expected length of the longest of some answers, which a batch waits for.

    Lengths are taken as geometric: the longest of `n` is `ln n + 0.58` times the mean.
    """
    return mean * max(1.0, math.log(count) + 0.58)


def reference_steps(spec: RunSpec, plan: Plan) -> float:
    """Return how many steps the pass over the rows for the reference's log-probabilities takes.

    It is a forward pass, half of a step, once over the rows that the run uses.
    """
    if spec.train.loss == "grpo" or not needs_reference(spec):  # grpo's is part of each step
        return 0.0
    return 0.5 * min(plan.total_steps, plan.num_rows / plan.rows_per_step)


def with_stored_precision(spec: RunSpec, known: ModelFacts) -> RunSpec:
    """Return the run with `model.dtype` resolved where a CPU keeps the precision of the file.

    A model stored in bfloat16 stays so on a processor that multiplies it in hardware: half the time
    and memory of float32 at 0.4 B parameters, losses equal to 1e-3. Small models stay in float32,
    which costs them nothing and gives the same run on every machine.

    Raises:
        SpecError: This machine does not have the run's devices.
    """
    if not keeps_bfloat16(spec, known):
        return spec
    on_cpu = chosen_device(spec.on_this_machine().train.device).name == "cpu"
    return spec.with_parts(model={"dtype": "bfloat16"}) if on_cpu else spec


def keeps_bfloat16(spec: RunSpec, known: ModelFacts) -> bool:
    """Return True if a run on this CPU keeps the precision of a bfloat16 file."""
    settled = spec.model.dtype != "auto" or spec.method.trains_base
    if settled or known.parameters < SMALL_MODEL or known.weights_dtype != "BF16":
        return False
    return spec.model.quantization == "none" and hardware.has_fast_bfloat16()


def base_model(spec: RunSpec) -> ModelSource:
    """Return the model source with the precision that training loads.

    Trained base weights are float32 by default: bfloat16 rounds most of a step of 1e-5 on a weight
    of 0.02 away.
    """
    if spec.method.trains_base and spec.model.dtype == "auto":
        return spec.model.model_copy(update={"dtype": "float32"})
    return spec.model


def loaded_dtype(spec: RunSpec, *, on_gpu: bool) -> str:
    """Return the precision of the loaded base weights."""
    dtype = base_model(spec).dtype
    return dtype if dtype != "auto" else ("float32", "bfloat16")[on_gpu]


def row_lengths(
    spec: RunSpec, known: ModelFacts, home: Home | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the trained tokens of every training row, in order.

    Shape `(U, 1)`, or `(U, 2)` for pairs.
    """
    from studio.data.prepare import prepare
    from studio.data.tokenizer_files import backend_for
    from studio.data.tokens import Examples

    made = prepare(
        spec.data, backend_for(known.path, home), seed=spec.seed, home=home,
        context_length=max(1, known.context_length - spec.method.num_tokens_before),
        rows=spec.train.rows,
    )  # fmt: skip
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
    from studio.data.first_rows import first_rows

    found = first_rows(spec, home)
    if found is None:
        raise DataError(f"The rows of {spec.data.path} are only known in the run.")
    tokens, _ = found
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    width = 2 if spec.train.rows == "pairs" else 1
    return tokens.lengths().reshape(-1, width), trained.reshape(-1, width)


def chosen_device(name: str) -> hardware.Device:
    """Return the device of a run: the first for `auto`, that with least free memory of several."""
    here, names = hardware.devices(), name.split(",")
    named = [device for device in here if device.name in names]
    return min(named, key=lambda device: device.free_bytes, default=here[0])


def memory(
    spec: RunSpec, shape: Shape, known: ModelFacts, load: BatchLoad, *, on_gpu: bool,
    gpu_bytes: int = 0,
) -> dict[str, int]:  # fmt: skip
    """Return bytes by part; the whole memory of a GPU sets its chunk of logits."""
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
    layers = kept_activations(spec, shape, load, products=not on_gpu and by_products(spec)) * width
    mapped = shape.hidden * load.tokens * width > REUSED_BYTES
    spread = 1.0 if on_gpu else MAPPED_FACTOR if mapped else HEAP_FACTOR
    logits = load.targets * shape.vocabulary
    chunk = min(logits, chunk_numbers(gpu_bytes, shape.vocabulary))
    wide = 0 if width == 4 else chunk if on_gpu else min(chunk, WIDE_NUMBERS)
    held = 12 * logits if whole else width * chunk + 4 * wide  # a trained head: no chunks
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
        at_once = min(CACHE_TOKENS, load.tokens * spec.train.gradient_accumulation_steps)
        cache = 2 * shape.layers * shape.keys_values * at_once * width
        step = parts["activations"] + parts["logits"] + parts["workspace"]
        parts["workspace"] += max(0, cache - step)
    if shares_base and not on_gpu:  # the base is loaded whole, then sharded
        loading = known.parameters * width + parts["runtime"]
        parts["workspace"] += max(0, loading - sum(parts.values()))
    return parts


def by_products(spec: RunSpec) -> bool:
    """Return True if a CPU attends packed rows by products (`backbone/attention_kernels.py`)."""
    packed = spec.train.packing and spec.train.attn_implementation == "auto"
    half = loaded_dtype(spec, on_gpu=False) == "bfloat16" and hardware.has_fast_bfloat16()
    return packed and half and not spec.method.num_tokens_before


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


def _shared_memory(spec: RunSpec, known: ModelFacts, *, on_gpu: bool) -> tuple[int, int, int]:
    """Return the processes on the device, the bytes that they share, and the bytes beside them."""
    size = spec.train.num_processes
    if on_gpu or size == 1 or spec.train.device == CLUSTER:
        return 1, 0, 0
    shared, beside = LIBRARIES_BYTES, LAUNCHER_BYTES
    dtype = loaded_dtype(spec, on_gpu=False)
    if is_mapped(known.weights_dtype, dtype, spec.model.quantization, on_gpu=False):
        base = known.parameters * WIDTH[dtype]
        shared, beside = (shared, beside + base) if spec.train.fsdp else (shared + base, beside)
    return size, shared, beside


def is_mapped(file_type: str, dtype: str, quantization: str, *, on_gpu: bool) -> bool:
    """Return True if the base's tensors are memory-mapped from its file: a CPU, same precision."""
    return not on_gpu and quantization == "none" and FILE_TYPES.get(file_type) == dtype


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
    if home is not None:
        try:
            return float(json.loads((home.state / SPEED).read_text())[device.name])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    if device.name == "cpu":
        return FLOPS_PER_CORE * hardware.threads()
    return device.flops * PRODUCT_SHARE or GPU_FLOPS


def save_speed(home: Home, device: str, flops_per_second: float) -> None:
    """Store the measured FLOP/s for the next estimate."""
    if not math.isfinite(flops_per_second) or flops_per_second <= 0:
        return
    path: Path = home.state / SPEED
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**known, device: flops_per_second}))
        temporary.replace(path)
    except (OSError, ValueError, StudioError):
        return

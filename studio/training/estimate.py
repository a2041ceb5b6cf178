"""What a run will take, by part and in time, from files alone: no torch, no weights read.

Counted is what the loop really holds: packed rows without padding, logits of a chunk at a time, the
tensors that autograd keeps for frozen layers with an adapter beside them. `preflight.py` measures
the same on the machine and corrects it. What it refuses to know: how anything is computed.

Shapes: `T tokens of the largest batch, D hidden, A attention width, K key/value width, F inner`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studio import hardware
from studio.errors import StudioError
from studio.home import Home
from studio.methods import Phase
from studio.models.families import SKIPPING
from studio.models.sources import ModelFacts, facts
from studio.spec import RunSpec
from studio.training.schedule import Plan, plan_run

RUNTIME_BYTES = 410_000_000  # Python, torch, transformers, and a loop that has run: Linux, x86-64
CUDA_RUNTIME_BYTES = 450_000_000
HEAP_SHARE = 1.5  # on a CPU: the heap keeps freed blocks between the living ones
STEP_SECONDS = 0.002  # of Python and dispatch, a layer and batch
START_SECONDS = 4.0
CHUNK_NUMBERS = 16_000_000
MOST_STEPS = 4000
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
STATES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 1, "lion": 4, "muon": 4}
FLOPS_PER_CORE = 2.5e10
GPU_FLOPS = 6e13
SPEED = "speed.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Bytes by part and seconds; `measured` when two real steps corrected them."""

    parts: dict[str, int]
    seconds: float
    total_steps: int
    tokens_per_step: int
    longest_batch_tokens: int
    device: str
    device_bytes: int
    measured: bool = False

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device has that much, with a little to spare."""
        return self.total_bytes <= 0.95 * self.device_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json` and the page."""
        return {**asdict(self), "total_bytes": self.total_bytes, "fits": self.fits}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder's sizes, from its configuration."""

    layers: int
    hidden: int
    attention: int
    keys_values: int
    inner: int
    vocabulary: int
    gated: bool
    tied: bool
    model_type: str

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        mlp = (3 if self.gated else 2) * self.hidden * self.inner
        return self.hidden * (2 * self.attention + 2 * self.keys_values) + mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the batches are: the largest one, and the mean step."""

    tokens: int
    targets: int
    step_tokens: float
    step_targets: float


def estimate(spec: RunSpec, home: Home | None) -> Estimate:
    """Return what this run will take on its device.

    Raises:
        StudioError: The model or the data cannot be used.
    """
    known = facts(spec.model)
    shape = read_shape(known)
    lengths, targets = row_lengths(spec, known, home)
    plan = plan_run(spec, num_rows=len(lengths), hidden_size=shape.hidden)
    load = loads(plan, lengths, targets, packing=spec.train.packing)
    device = chosen_device(spec.train.device)
    overhead = STEP_SECONDS * shape.layers * len(plan.micro_batches(0))
    step_seconds = overhead + step_flops(spec, shape, load) / speed(device, home)
    return Estimate(
        parts=memory(spec, shape, known, load, on_gpu=device.name != "cpu"),
        seconds=START_SECONDS + plan.total_steps * step_seconds,
        total_steps=plan.total_steps,
        tokens_per_step=round(load.step_tokens),
        longest_batch_tokens=load.tokens,
        device=device.name,
        device_bytes=device.free_bytes,
    )


def memory(
    spec: RunSpec, shape: Shape, known: ModelFacts, load: Load, *, on_gpu: bool
) -> dict[str, int]:
    """Return bytes by part."""
    dtype = spec.model.dtype if spec.model.dtype != "auto" else ("float32", "bfloat16")[on_gpu]
    width = WIDTH[dtype]
    trained = trained_parameters(spec, shape, known)
    whole = spec.method.phase is Phase.WEIGHTS
    matrices = shape.layers * shape.layer_parameters
    weights = known.parameters * width
    if spec.model.quantization == "nf4":
        weights = int(matrices * 0.56) + (known.parameters - matrices) * width
    kept = layer_activations(spec, shape) * load.tokens * width
    layers = shape.layers * kept
    if shape.model_type in SKIPPING and shape.gated:  # the last feed-forward runs where it is read
        layers -= 2 * shape.inner * (load.tokens - load.targets) * width
    if spec.train.gradient_checkpointing:
        inputs = min(2, shape.layers) if spec.train.activation_offloading else shape.layers
        layers = inputs * shape.hidden * load.tokens * width + kept  # offloaded: in use, and next
    spread = 1.0 if on_gpu else HEAP_SHARE
    logits = load.targets * shape.vocabulary
    held = 3 * logits if whole else 2 * min(logits, CHUNK_NUMBERS)  # a head that trains: no chunks
    return {
        "runtime": CUDA_RUNTIME_BYTES if on_gpu else RUNTIME_BYTES,
        "weights": weights,
        "adapter": 0 if whole else 4 * trained,
        "gradients": (width if whole else 4) * trained,
        "optimizer": STATES[spec.train.optim] * trained,
        "activations": int(spread * layers),
        "logits": int(spread * (4 * held + 2 * load.targets * shape.hidden * width)),
        "workspace": int(spread * 3 * max(shape.inner, shape.hidden) * load.tokens * width),
    }


def layer_activations(spec: RunSpec, shape: Shape) -> int:
    """Numbers that autograd keeps a token and layer.

    The norms' inputs (2 D), queries, keys, values and the attention's output; of the feed-forward
    what its activation needs. Methods beside linear layers keep these layers' inputs as well; the
    down projection's is made again from the gate (`methods/layer/lean.py`).
    """
    attention = 2 * shape.attention + 2 * shape.keys_values
    inner = (2 if shape.gated else 5) * shape.inner
    inputs = 2 * shape.hidden + shape.attention + (0 if shape.gated else shape.inner)
    beside = spec.method.phase in (Phase.DELTA, Phase.WEIGHTS, Phase.GAIN)
    rank = 7 * int(getattr(spec.method, "r", 0))
    return 2 * shape.hidden + attention + inner + (inputs + rank if beside else 0)


def trained_parameters(spec: RunSpec, shape: Shape, known: ModelFacts) -> int:
    """Roughly how many numbers the method trains."""
    method = spec.method
    if method.phase is Phase.WEIGHTS:
        return known.parameters
    if method.phase is Phase.PROMPT:
        return method.num_tokens_before * shape.hidden
    if method.phase is Phase.KEYS_VALUES:
        return method.num_tokens_before * shape.layers * 2 * shape.keys_values
    sides = 2 * (shape.hidden + shape.attention) + 2 * (shape.hidden + shape.keys_values)
    sides += (3 if shape.gated else 2) * (shape.hidden + shape.inner)
    rank = int(getattr(method, "r", 0) or getattr(method, "bottleneck_dim", 0) or 1)
    if method.name == "lora":
        return shape.layers * rank * sides
    if method.phase is Phase.TRANSFORM:
        return shape.layers * 2 * rank * 2 * shape.hidden
    return shape.layers * sides


def step_flops(spec: RunSpec, shape: Shape, load: Load) -> float:
    """Products of one step: forward, gradients of the inputs, and of weights where they train."""
    passes = 3.0 if spec.method.phase is Phase.WEIGHTS else 2.0
    passes += 1.0 if spec.train.gradient_checkpointing else 0.0
    body = 2 * shape.layers * shape.layer_parameters * load.step_tokens
    return passes * body + 4 * shape.hidden * shape.vocabulary * load.step_targets


def read_shape(known: ModelFacts) -> Shape:
    """Read a decoder's sizes from its `config.json`."""
    whole = json.loads((known.path / "config.json").read_text(encoding="utf-8"))
    config = whole.get("text_config") or whole
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    groups = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or known.hidden_size // heads)
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * known.hidden_size
    return Shape(
        layers=known.num_layers, hidden=known.hidden_size, attention=heads * head,
        keys_values=groups * head, inner=int(inner), vocabulary=known.vocab_size,
        gated="intermediate_size" in config and known.model_type not in ("gpt_neox", "opt", "phi"),
        tied=bool(config.get("tie_word_embeddings", True)), model_type=known.model_type,
    )  # fmt: skip


def row_lengths(
    spec: RunSpec, known: ModelFacts, home: Home | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and trained tokens of every training row, in order."""
    from studio.data.examples import Examples
    from studio.data.prepare import prepare
    from studio.data.templates.backend import backend_from_folder

    made = prepare(
        spec.data, backend_from_folder(known.path), seed=spec.seed, home=home,
        context_length=max(1, known.context_length - spec.method.num_tokens_before),
    )  # fmt: skip
    assert isinstance(made.train, Examples)
    tokens, order = made.train.tokens, made.train.order
    trained = np.add.reduceat(tokens.trained.astype(np.int64), tokens.starts[:-1])
    return tokens.lengths()[order], trained[order]


def loads(
    plan: Plan, lengths: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, *,
    packing: bool,
) -> Load:  # fmt: skip
    """Return the largest batch of the run and its mean step, in the run's own order."""
    size, loss, steps = np.asarray(lengths), np.asarray(targets), min(plan.total_steps, MOST_STEPS)
    most = most_targets = 0
    total = total_targets = 0.0
    for step in range(steps):
        for rows in plan.micro_batches(step):
            taken = size[rows]
            tokens = int(taken.sum() if packing else taken.max() * len(rows))
            trained = int(loss[rows].sum())
            most, most_targets = max(most, tokens), max(most_targets, trained)
            total, total_targets = total + tokens, total_targets + trained
    return Load(
        tokens=most, targets=most_targets, step_tokens=total / steps,
        step_targets=total_targets / steps,
    )  # fmt: skip


def chosen_device(name: str) -> hardware.Device:
    """Return the device a run would get; `auto` is the first."""
    here = hardware.devices()
    return next((d for d in here if d.name == name), here[0])


def speed(device: hardware.Device, home: Home | None) -> float:
    """Return FLOP/s: what the last run here reached, else a guess from the kind of device."""
    if home is not None:
        try:
            return float(json.loads((home.state / SPEED).read_text())[device.name])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return GPU_FLOPS if device.name != "cpu" else FLOPS_PER_CORE * hardware.threads()


def note_speed(home: Home, device: str, flops_per_second: float) -> None:
    """Remember what a run reached, for the next estimate."""
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

"""Fit a run into memory: what fits, remedies in order, and the automatic retry.

`fits` estimates full, LoRA and QLoRA training from a configuration alone, without torch: one row a
step of each length, all of it trained, the least that such a run needs. Without a configuration the
sizes of a usual decoder with as many parameters are taken.

`studio refit`, the page, error texts, "make it fit" and the automatic retry all use this list.
Remedies that keep the result come first; the effective batch size never changes. Precision and
quantization change the result a little: they are offered, but not applied by the automatic retry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from studio import hardware
from studio.errors import InputError, OutOfMemory, SpecError, WeightsTooLarge, nearest
from studio.home import Home
from studio.methods import capabilities
from studio.models.find_model import ModelFacts, facts_of_config, text_part
from studio.names import readable
from studio.spec import RunSpec
from studio.training import distributed, objectives
from studio.training.estimate_memory_and_time import Estimate, estimate, memory
from studio.training.sizes_for_estimates import BatchLoad, Shape, shape_of
from studio.training.starting_point import keeps_bfloat16

LENGTHS = (512, 2048, 8192)
WAYS = ("full", "lora", "qlora")
EASY, MOST = 0.8, 0.95
"""Shares of a device's memory: up to the first a run fits, up to the second it is tight."""
State = Literal["fits", "tight", "no", "short"]


class Fit(NamedTuple):
    """One way at one length: the bytes that it needs, and if they are there.

    `tight` also stands for what fits only with gradient checkpointing; `short` for a length beyond
    the model's context.
    """

    tokens: int
    bytes: int
    state: State


def fits(
    config: dict[str, Any], parameters: int, device: hardware.Device, *, weights_dtype: str = "BF16"
) -> dict[str, list[Fit]]:
    """Return what each way of training needs on a device, at each of `LENGTHS`.

    Raises:
        ModelError: The configuration is of a model that cannot be trained here.
    """
    lasting = replace(device, free_bytes=device.total_bytes, utilization=None)
    return _remembered(json.dumps(config, sort_keys=True), parameters, weights_dtype, lasting)


@lru_cache(maxsize=2048)
def _remembered(
    text: str, parameters: int, weights_dtype: str, device: hardware.Device
) -> dict[str, list[Fit]]:
    """Return the fits of a configuration; a page asks for those of all its models each time."""
    config = json.loads(text)
    config = config if has_sizes(config) else usual_config(parameters) | config
    known = facts_of_config(
        config, Path("model"), parameters=parameters, weights_dtype=weights_dtype
    )
    shape = shape_of(config, known)
    return {way: _fits(way, shape, known, device) for way in WAYS}


def has_sizes(config: dict[str, Any]) -> bool:
    """Return True if a configuration holds the sizes of its layers."""
    text = text_part(config)
    return any(name in text for name in ("hidden_size", "n_embd", "d_model"))


def usual_config(parameters: int) -> dict[str, Any]:
    """Return the sizes of a usual decoder with about as many parameters.

    Layers of 12 D² weights, as many as D / 100, and a tied vocabulary of 150,000.
    """
    hidden = 128
    while 0.12 * (hidden + 128) ** 3 + 150_000 * (hidden + 128) <= parameters:
        hidden += 128
    layers = max(2, round((parameters - 150_000 * hidden) / (12 * hidden**2)))
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256), "intermediate_size": hidden * 3,
        "vocab_size": 150_000, "max_position_embeddings": 131_072, "tie_word_embeddings": True,
    }  # fmt: skip


def _fits(way: str, shape: Shape, known: ModelFacts, device: hardware.Device) -> list[Fit]:
    plain, lean = _specs(way, device.name, "auto")
    on_apple = device.name == "mps" and way != "full" and hardware.apple_has_bfloat16()
    if on_apple or (device.name == "cpu" and keeps_bfloat16(plain, known)):
        plain, lean = _specs(way, device.name, "bfloat16")
    found = []
    for length in LENGTHS:
        if known.context_length < length:
            found.append(Fit(length, 0, "short"))
            continue
        needed = _needed(plain, shape, known, device, length)
        state: State = "fits"
        if needed > EASY * device.total_bytes:
            needed = _needed(lean, shape, known, device, length)
            state = "tight" if needed <= MOST * device.total_bytes else "no"
        found.append(Fit(length, needed, state))
    return found


@cache
def _specs(way: str, device: str, dtype: str) -> tuple[RunSpec, RunSpec]:
    """Return a run without and with gradient checkpointing."""
    method = {"name": way} if way == "full" else {"name": way, "r": 16}
    model = {"dtype": dtype}
    plain, lean = (
        RunSpec.parse(
            {"method": method, "model": model,
             "train": {"device": device, "gradient_checkpointing": checkpointing}}
        )
        for checkpointing in (False, True)
    )  # fmt: skip
    return plain, lean


def _needed(
    spec: RunSpec, shape: Shape, known: ModelFacts, device: hardware.Device, length: int
) -> int:
    load = BatchLoad(tokens=length, targets=length, step_tokens=length, step_targets=length,
                     share_tokens=length, share_targets=length)  # fmt: skip
    return sum(memory(spec, shape, known, load, device).values())


Changes = dict[str, Any]
SHORTEST = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """One change of settings that saves memory.

    Attributes:
        same_result: The result stays the same.
        of_weights: The frozen weights themselves become smaller.
        lacks: Sentence about what this machine lacks for it.
    """

    name: str
    title: str
    about: str
    same_result: bool
    of_weights: bool = False
    changes: Changes = field(default_factory=dict)
    lacks: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `--json` and the page."""
        return asdict(self)


def remedies(spec: RunSpec, *, on_gpu: bool | None = None) -> list[Remedy]:
    """Return the remedies that are left for a run, each on its own.

    `on_gpu` is found from the spec and this machine by default.
    """
    on_gpu = runs_on_gpu(spec) if on_gpu is None else on_gpu
    return [*_exact(spec, on_gpu), *_inexact(spec, on_gpu)]


def pick(found: Sequence[Remedy], name: str = "") -> Remedy:
    """Return the remedy called `name`, by default the first that keeps the result.

    Raises:
        SpecError: There is no such remedy, or this machine lacks what it needs.
        OutOfMemory: No remedy that keeps the result is left; names the others.
    """
    if not name:
        for remedy in found:
            if remedy.same_result:
                return remedy
        others = ", ".join(f"{one.name} ({one.title.lower()})" for one in found)
        raise OutOfMemory(
            "No remedy that keeps the result is left. Remedies that change it: "
            f"{others or 'a smaller model'}."
        )
    known = {remedy.name: remedy for remedy in found}
    if name not in known:
        raise SpecError(
            f'Invalid remedy "{name}".{nearest(name, known)} This run has: '
            f"{', '.join(known) or 'none'}."
        )
    if known[name].lacks:
        raise SpecError(f"{known[name].title}: {known[name].lacks}")
    return known[name]


def runs_on_gpu(spec: RunSpec) -> bool:
    """Return True if the run's device is a GPU of this machine with memory of its own."""
    return hardware.is_card(_device(spec))


def _device(spec: RunSpec) -> str:
    device = spec.train.device
    return hardware.devices()[0].name if device in ("auto", "all") else device


def _exact(spec: RunSpec, on_gpu: bool) -> Iterator[Remedy]:
    args = spec.train
    size = args.per_device_train_batch_size
    if size > 1:
        rows = args.rows_per_step
        fewer = max(n for n in range(1, size // 2 + 1) if rows % n == 0)
        yield Remedy(
            name="batch", title="Smaller batches", same_result=True,
            about=f"Batch size {fewer} instead of {size}, with gradients accumulated over "
            f"{rows // fewer} batches.",
            changes={
                "train.per_device_train_batch_size": fewer,
                "train.gradient_accumulation_steps": rows // fewer,
            },
        )  # fmt: skip
    recompute = {} if args.gradient_checkpointing else {"train.gradient_checkpointing": True}
    if recompute:
        yield Remedy(
            name="checkpointing", title="Gradient checkpointing", same_result=True,
            about="Activations are recomputed in the backward pass: steps take about a third "
            "longer.",
            changes=recompute,
        )  # fmt: skip
    if on_gpu and not args.activation_offloading and not _device(spec).startswith("xpu"):
        also = "Gradient checkpointing, and the" if recompute else "The"
        yield Remedy(
            name="offloading", title="Activation offloading", same_result=True,
            about=f"{also} inputs of layers stay in main memory instead of the GPU's: slightly "
            "slower steps.",
            changes={**recompute, "train.activation_offloading": True},
        )  # fmt: skip
    if on_gpu and _can_shard(spec):
        yield Remedy(
            name="sharing", title="Shard the base", same_result=True,
            about="Each GPU keeps a shard of the frozen layers (FSDP): slower steps, above all "
            "without a fast link between the GPUs.",
            changes={"train.fsdp": True},
        )  # fmt: skip


def _can_shard(spec: RunSpec) -> bool:
    """Return True if the run uses several devices and can shard its base over them."""
    args = spec.train
    if args.fsdp or not args.may_use_several_processes:
        return False
    try:  # not `on_this_machine`: the device of a rank is one of those of the run
        shared = spec.with_parts(train={"fsdp": True, "num_processes": args.num_devices})
        distributed.check_sharding(shared)
        objectives.check(shared)
    except InputError:
        return False
    return True


def _inexact(spec: RunSpec, on_gpu: bool) -> Iterator[Remedy]:
    dtype = spec.model.dtype
    if dtype == "float32" or (dtype == "auto" and not on_gpu and hardware.has_fast_bfloat16()):
        yield Remedy(
            name="precision", title="Half precision", same_result=False,
            about="The base and its activations take half the memory in bfloat16; losses differ "
            "from about the third digit on.",
            changes={"model.dtype": "bfloat16"}, of_weights=True,
        )  # fmt: skip
    quantizable = capabilities(spec.method.name).get("quantizable", False)
    if spec.model.quantization == "none" and quantizable:
        lacking = "" if find_spec("bitsandbytes") else "Needs pip install bitsandbytes."
        yield Remedy(
            name="quantization", title="4-bit base", same_result=False,
            about="The frozen weights in nf4 (QLoRA) take about a quarter of the memory; steps are "
            "slower, losses slightly higher.",
            changes={"model.quantization": "nf4"}, lacks=lacking, of_weights=True,
        )  # fmt: skip
    if spec.data.max_length >= 2 * SHORTEST:
        shorter = spec.data.max_length // 2
        yield Remedy(
            name="length", title="Shorter rows", same_result=False,
            about=f"Rows are truncated to {shorter} tokens instead of {spec.data.max_length}.",
            changes={"data.max_length": shorter},
        )  # fmt: skip


FITTED_ON_GPU = ("precision", "quantization")  # of the remedies that change the result


def next_remedy(spec: RunSpec, *, on_gpu: bool | None = None) -> Changes | None:
    """Return the next change that saves memory and keeps the result, or None."""
    found = remedies(spec, on_gpu=on_gpu)
    return next((remedy.changes for remedy in found if remedy.same_result), None)


def retry_changes(spec: RunSpec, error: OutOfMemory) -> Changes | None:
    """Return the changes of an automatic retry; None if it is off or nothing is left to change."""
    off = not spec.train.retry_when_out_of_memory or isinstance(error, WeightsTooLarge)
    return None if off else next_remedy(spec)


def retry_text(changes: Changes) -> str:
    """Return a sentence on an automatic retry."""
    listed = ", ".join(f"{field.removeprefix('train.')} {v}" for field, v in changes.items())
    return f"Out of memory; retrying with {listed}"


def make_it_fit(
    spec: RunSpec, home: Home | None, *, device_bytes: int | None = None
) -> tuple[Changes, Estimate]:
    """Return the changes after which the run fits, and the new estimate.

    It is to fit into `device_bytes`, by default the device's free memory.

    Raises:
        OutOfMemory: It does not fit even at batch size one.
    """
    changes: Changes = {}
    while True:
        found = estimate(spec.with_values(changes), home)
        if found.total_bytes <= 0.95 * (device_bytes or found.device_bytes):
            return changes, found
        on_gpu = hardware.is_card(found.device)
        more = next_remedy(spec.with_values(changes), on_gpu=on_gpu)
        if more is None and on_gpu:
            rest = remedies(spec.with_values(changes), on_gpu=True)
            usable = [one for one in rest if one.name in FITTED_ON_GPU and not one.lacks]
            more = usable[0].changes if usable else None
        if not more:
            raise OutOfMemory(
                f"This run needs about {readable(found.total_bytes)} even at batch size 1, and "
                f"{readable(device_bytes or found.device_bytes)} are free: lower "
                f"data.max_length (the longest batch has {found.longest_batch_tokens} tokens) or "
                "choose a smaller model."
            )
        changes |= more

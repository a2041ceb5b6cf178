"""Reduce the memory of a run: remedies in order, and the errors that call for them (no torch).

`studio refit`, the page, error texts, "make it fit" and the automatic retry all use this list.
Remedies that keep the result come first; the effective batch size never changes. Precision and
quantization change the result a little: they are offered, but not applied by the automatic retry.

`explain_errors` turns the many ways in which libraries report a full disk or device into
`studio.errors`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from studio import hardware
from studio.errors import (
    DeviceLost,
    DiskFull,
    InputError,
    OutOfMemory,
    SpecError,
    StudioError,
    WeightsTooLarge,
    is_disk_full,
    is_out_of_memory,
    nearest,
)
from studio.home import Home
from studio.methods import capabilities
from studio.names import readable
from studio.spec import RunSpec
from studio.training import distributed, objectives
from studio.training.estimate_memory_and_time import Estimate, estimate

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
    if spec.train.fsdp or not spec.train.may_use_several_processes:
        return False
    shared = spec.on_this_machine().with_parts(train={"fsdp": True})
    try:
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


DEVICE_WORDS = (
    "cuda error", "cuda driver", "cublas_status", "cudnn_status", "nccl error", "hip error",
    "mps backend",
)  # fmt: skip
# Faults of an installation: a retry on the same device cannot help.
DEVICE_FAULTS = (
    (("no kernel image", "no kernel image is available"),
     "The installed torch has no kernels for this GPU. `studio doctor` names the build it needs."),
    (("driver version is insufficient", "driver on your system is too old"),
     "The GPU's driver is too old for the installed torch. `studio doctor` names what to install."),
    (("device-side assert", "assertion `t >= 0"),
     "A number outside its range reached the GPU, such as a token beyond the vocabulary. Run once "
     "with train.device=cpu: its error names the place."),
    (("mps framework doesn't support", "not currently implemented for the mps device",
      "not implemented for 'mps'"),
     "The Apple GPU lacks an operation of this model. Use train.device=cpu."),
    (("compiled without gpu support", "libbitsandbytes", "bitsandbytes library"),
     "bitsandbytes has no library for this GPU. Set model.quantization=none, or install the "
     "bitsandbytes build for this version of CUDA."),
)  # fmt: skip


@contextlib.contextmanager
def explain_errors(spec: RunSpec, where: Callable[[], str]) -> Iterator[None]:
    """Turn errors of a full or lost device or disk into `StudioError`s.

    `where` returns the moment, such as "at step 3".

    Raises:
        OutOfMemory: Names the settings that make the run fit.
        DiskFull: The disk is full; what was saved before is intact.
        DeviceLost: A device failed; what was saved before is intact.
    """
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        text = str(error).lower()
        if is_out_of_memory(error):
            raise OutOfMemory(f"Out of memory {where()}. {advice(spec)}") from error
        if is_disk_full(error):
            raise DiskFull(
                f"The disk is full {where()}. Free some space and resume; what was saved before "
                "is intact."
            ) from error
        for words, sentence in DEVICE_FAULTS:
            if any(word in text for word in words):
                raise DeviceLost(f"{sentence} It stopped {where()}.") from error
        if any(word in text for word in DEVICE_WORDS):
            raise DeviceLost(
                f"The device failed or disappeared {where()} ({text.splitlines()[0][:120]}). Check "
                "that the driver still lists it, then resume; the last checkpoint is intact."
            ) from error
        raise


def advice(spec: RunSpec) -> str:
    """Return a sentence with the remedies of a run, those that keep the result first."""
    ways = []
    for remedy in remedies(spec):
        values = (f"{name}={str(v).lower()}" for name, v in remedy.changes.items())
        ways.append(" with ".join(values) + (" (same result)" if remedy.same_result else ""))
    return f"Try {', or '.join(ways)}." if ways else "Choose a smaller model."

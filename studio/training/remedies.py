"""Reduce the memory of a run: remedies in order, and the errors that call for them (no torch).

One list for all who offer it: the card of a run that ran out of memory, `studio refit`, the error's
own sentence, "make it fit", and the retry by itself. What keeps the result comes first.

The effective batch never changes. Precision and quantization do change the result a little, so they
come last, and are offered rather than taken when memory ran out in the middle.

Libraries report a full disk or a full device in many ways; here they become the errors of
`studio.errors`. Anything else is our bug and passes through.
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
    is_disk_full,
    nearest,
)
from studio.home import Home
from studio.methods import capabilities
from studio.names import readable
from studio.spec import RunSpec
from studio.training import distributed
from studio.training.estimate import Estimate, estimate

Changes = dict[str, Any]
SHORTEST = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """One change: what it does, whether the result stays the same, and what this machine lacks.

    `of_weights`: it makes the frozen weights themselves smaller.
    """

    name: str
    title: str
    about: str
    same_result: bool
    of_weights: bool = False
    changes: Changes = field(default_factory=dict)
    lacks: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json` and the page."""
        return asdict(self)


def remedies(spec: RunSpec, *, on_gpu: bool | None = None) -> list[Remedy]:
    """Return what is left to change, each on its own.

    Args:
        spec: The run as it is.
        on_gpu: Where it runs; told from the spec and this machine when None.
    """
    on_gpu = runs_on_gpu(spec) if on_gpu is None else on_gpu
    return [*_exact(spec, on_gpu), *_inexact(spec, on_gpu)]


def pick(found: Sequence[Remedy], name: str = "") -> Remedy:
    """Return the remedy of a name; without one the first that keeps the result.

    Raises:
        SpecError: There is none of that name, or this machine lacks what it needs.
        OutOfMemory: Nothing that keeps the result is left; names what else there is.
    """
    if not name:
        for remedy in found:
            if remedy.same_result:
                return remedy
        others = ", ".join(f"{one.name} ({one.title.lower()})" for one in found)
        raise OutOfMemory(
            "Nothing that keeps the result is left to change. What changes it: "
            f"{others or 'a smaller model'}."
        )
    known = {remedy.name: remedy for remedy in found}
    if name not in known:
        raise SpecError(
            f'"{name}" is no remedy for this run.{nearest(name, known)} There are: '
            f"{', '.join(known) or 'none'}."
        )
    if known[name].lacks:
        raise SpecError(f"{known[name].title}: {known[name].lacks}")
    return known[name]


def runs_on_gpu(spec: RunSpec) -> bool:
    """Whether the device that this run asks for is a GPU of this machine."""
    wish = spec.train.device
    if wish in ("auto", "all"):
        return hardware.devices()[0].name.startswith("cuda")
    return wish.startswith("cuda")


def _exact(spec: RunSpec, on_gpu: bool) -> Iterator[Remedy]:
    args = spec.train
    size = args.per_device_train_batch_size
    if size > 1:
        rows = size * args.gradient_accumulation_steps
        fewer = max(n for n in range(1, size // 2 + 1) if rows % n == 0)
        yield Remedy(
            name="batch", title="Smaller batches", same_result=True,
            about=f"{fewer} row{'s' if fewer > 1 else ''} at once instead of {size}, summed "
            f"{rows // fewer} times before each step.",
            changes={
                "train.per_device_train_batch_size": fewer,
                "train.gradient_accumulation_steps": rows // fewer,
            },
        )  # fmt: skip
    recompute = {} if args.gradient_checkpointing else {"train.gradient_checkpointing": True}
    if recompute:
        yield Remedy(
            name="checkpointing", title="Recompute activations", same_result=True,
            about="Layers run again in the backward pass instead of being remembered: steps take "
            "about a third longer.",
            changes=recompute,
        )  # fmt: skip
    if on_gpu and not args.activation_offloading:
        also = "Activations are recomputed, and what" if recompute else "What"
        yield Remedy(
            name="offloading", title="Activations in main memory", same_result=True,
            about=f"{also} layers start from waits in main memory instead of the GPU's: a little "
            "slower.",
            changes={**recompute, "train.activation_offloading": True},
        )  # fmt: skip
    if on_gpu and _may_share(spec):
        yield Remedy(
            name="sharing", title="Share the base", same_result=True,
            about="Each GPU keeps only its part of the frozen layers and gets the others' when it "
            "computes them: slower steps, above all between cards without a fast link.",
            changes={"train.fsdp": True},
        )  # fmt: skip


def _may_share(spec: RunSpec) -> bool:
    """Whether several devices hold a base whole that they could share out."""
    if spec.train.fsdp or not spec.train.may_use_several_processes:
        return False
    shared = spec.on_this_machine().with_parts(train={"fsdp": True})
    try:
        distributed.checked(shared)
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
            "slower, losses a little higher.",
            changes={"model.quantization": "nf4"}, lacks=lacking, of_weights=True,
        )  # fmt: skip
    if spec.data.max_length >= 2 * SHORTEST:
        shorter = spec.data.max_length // 2
        yield Remedy(
            name="length", title="Shorter rows", same_result=False,
            about=f"Rows are cut after {shorter} tokens instead of {spec.data.max_length}; what is "
            "cut off is not learned.",
            changes={"data.max_length": shorter},
        )  # fmt: skip


TAKEN = ("precision", "quantization")  # of what changes the result a little, and only on a GPU


def smaller(spec: RunSpec, *, on_gpu: bool | None = None) -> Changes | None:
    """Return the next change that saves memory and keeps the result; None where none is left."""
    found = remedies(spec, on_gpu=on_gpu)
    return next((remedy.changes for remedy in found if remedy.same_result), None)


def make_it_fit(
    spec: RunSpec, home: Home | None, *, device_bytes: int | None = None
) -> tuple[Changes, Estimate]:
    """Return the changes after which the run fits into the device's free memory.

    Args:
        spec: The run as it is.
        home: Where tokens are cached.
        device_bytes: What may be used; the device's free memory when absent.

    Raises:
        OutOfMemory: It does not fit even at batch size one; says what is left to do.
    """
    changes: Changes = {}
    while True:
        found = estimate(spec.with_values(changes), home)
        if found.total_bytes <= 0.95 * (device_bytes or found.device_bytes):
            return changes, found
        on_gpu = found.device.startswith("cuda")
        more = smaller(spec.with_values(changes), on_gpu=on_gpu)
        if more is None and on_gpu:
            more = _rougher(spec.with_values(changes))
        if not more:
            raise OutOfMemory(
                f"This run needs about {readable(found.total_bytes)} even with batches of "
                f"one row, and {readable(device_bytes or found.device_bytes)} are free: lower "
                f"data.max_length (the longest batch has {found.longest_batch_tokens} tokens) or "
                "choose a smaller model."
            )
        changes |= more


def _rougher(spec: RunSpec) -> Changes | None:
    """Return the next change that saves memory on a GPU and changes the result a little."""
    usable = [one for one in remedies(spec, on_gpu=True) if one.name in TAKEN and not one.lacks]
    return usable[0].changes if usable else None


MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
DEVICE_WORDS = (
    "cuda error", "cuda driver", "cublas_status", "cudnn_status", "nccl error", "hip error",
    "mps backend",
)  # fmt: skip
DISK_WORDS = ("no space left", "os error 28", "disk quota exceeded")


@contextlib.contextmanager
def explained(spec: RunSpec, where: Callable[[], str]) -> Iterator[None]:
    """Turn a full device or disk into one sentence; `where` tells the moment, e.g. "at step 3".

    Raises:
        OutOfMemory: With the settings that make the same run fit.
        DiskFull: What was saved before is intact.
        DeviceLost: Likewise.
    """
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        text = str(error).lower()
        if is_out_of_memory(error):
            raise OutOfMemory(f"Memory ran out {where()}. {advice(spec)}") from error
        if is_disk_full(error) or any(word in text for word in DISK_WORDS):
            raise DiskFull(
                f"The disk is full {where()}. Free some room and resume; what was saved before "
                "is intact."
            ) from error
        if any(word in text for word in DEVICE_WORDS):
            raise DeviceLost(
                f"The device failed or vanished {where()} ({text.splitlines()[0][:120]}). Look "
                "whether the driver still sees it, then resume: the last checkpoint is intact."
            ) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the process or of a device ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError | OutOfMemory) or any(w in text for w in MEMORY_WORDS)


def advice(spec: RunSpec) -> str:
    """Return what makes a run smaller, the changes that keep the result first."""
    ways = []
    for remedy in remedies(spec):
        values = (f"{name}={str(v).lower()}" for name, v in remedy.changes.items())
        ways.append(" with ".join(values) + (" (same result)" if remedy.same_result else ""))
    return f"Try {', or '.join(ways)}." if ways else "Choose a smaller model."

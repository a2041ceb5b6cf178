"""Make a run fit: one remedy after the other, those that keep the result first.

The effective batch never changes. Precision and quantization do change the result a little, so they
come last, and are offered rather than taken when memory ran out in the middle.
"""

from __future__ import annotations

from studio.errors import OutOfMemory
from studio.home import Home
from studio.sizes import readable
from studio.spec import RunSpec
from studio.training.estimate import Estimate, estimate
from studio.training.remedies import Changes, remedies

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

"""Make a run fit: smaller batches first, then recomputed activations; the result stays the same.

The effective batch never changes. Precision and quantization do change the result a little, so they
come last, and are offered rather than taken when memory ran out in the middle.
"""

from __future__ import annotations

from typing import Any

from studio.errors import OutOfMemory
from studio.home import Home
from studio.spec import RunSpec
from studio.training.estimate import Estimate, estimate

Changes = dict[str, Any]


def smaller(spec: RunSpec) -> Changes | None:
    """Return the next change that saves memory and keeps the result; None where none is left."""
    args = spec.train
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    size = args.per_device_train_batch_size
    if size > 1:
        size = max(n for n in range(1, size // 2 + 1) if rows % n == 0)
        return {
            "train.per_device_train_batch_size": size,
            "train.gradient_accumulation_steps": rows // size,
        }
    if not args.gradient_checkpointing:
        return {"train.gradient_checkpointing": True}
    return None


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
        more = smaller(spec.with_values(changes))
        if more is None and spec.model.quantization == "none" and found.device != "cpu":
            more = {} if "model.quantization" in changes else {"model.quantization": "nf4"}
        if not more:
            room = (device_bytes or found.device_bytes) / 2**30
            raise OutOfMemory(
                f"This run needs about {found.total_bytes / 2**30:.1f} GiB even with batches of "
                f"one row, and {room:.1f} GiB are free: lower "
                f"data.max_length (the longest batch has {found.longest_batch_tokens} tokens) or "
                "choose a smaller model."
            )
        changes |= more


def tight(spec: RunSpec) -> Changes:
    """Return the change to offer after memory ran out.

    Raises:
        OutOfMemory: Nothing that keeps the result is left.
    """
    changes = smaller(spec)
    if changes is None:
        raise OutOfMemory(
            "Batches are of one row and activations are recomputed already: lower data.max_length, "
            "load the base with model.quantization=nf4, or choose a smaller model."
        )
    return changes

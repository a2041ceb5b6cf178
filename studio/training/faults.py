"""What can go wrong in the middle of a run, in one sentence each.

Libraries report a full disk or a full device in many ways; here they become the errors of
`studio.errors`. Anything else is our bug and passes through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from studio.errors import DeviceLost, DiskFull, OutOfMemory, StudioError, is_disk_full
from studio.spec import RunSpec
from studio.training.remedies import remedies

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

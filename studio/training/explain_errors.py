"""Turn the many ways in which libraries report a full disk or device into `studio.errors`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from studio.errors import (
    DeviceLost,
    DiskFull,
    OutOfMemory,
    StudioError,
    is_disk_full,
    is_out_of_memory,
)
from studio.spec import RunSpec
from studio.training.fit_in_memory import remedies

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

"""Parse and resolve `train.device`: one device, several GPUs, all of this machine's, or a cluster.

A spec keeps the text as written, so that it stays valid on every machine. Which devices it selects
on this one is decided when the run is admitted, estimated or started. Never imports torch.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from studio import hardware
from studio.errors import SpecError, nearest

AUTO, ALL, CPU = "auto", "all", "cpu"
CLUSTER = "ray"  # the cluster as a device, and the prefix of its slots
WORDS = (AUTO, ALL, CPU, "cuda", "xpu", "mps", CLUSTER)
GPU = re.compile(r"(cuda|xpu):\d+")
MAX_PROCESSES = 64


def parse_devices(value: Any) -> Any:
    """Return `train.device` in its stored form: a list, or names between commas, selects GPUs.

    Raises:
        SpecError: A name is repeated, or is not a GPU.
    """
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if not isinstance(value, str) or "," not in value:
        return value
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if len(names) > 1 and not GPU.fullmatch(name):
            raise _invalid(
                f'train.device is "{value}", but only GPUs can be listed, such as cuda:0,cuda:2: '
                f'use "{name}" on its own.'
            )
        if names.count(name) > 1:
            raise _invalid(f"train.device names {name} twice: name each GPU once.")
    return ",".join(names)


def num_devices(device: str, num_processes: int = 1) -> int:
    """Return how many devices are used at once, as far as that does not depend on the machine."""
    return max(num_processes, 1 + device.count(","))


def first_device(device: str) -> str:
    """Return a single device out of those that `device` selects."""
    return AUTO if device in (ALL, CLUSTER) else device.partition(",")[0]


def check_num_processes(device: str, num_processes: int) -> None:
    """Check that a device setting lists as many GPUs as there are processes, unless it is one.

    Raises:
        SpecError: It is another number.
    """
    names = 1 + device.count(",")
    if names > 1 and num_processes not in (1, names):
        raise _contradiction(f"train.device names {names} GPUs", num_processes, names)


def device_names(device: str, num_processes: int, rows_per_step: int) -> tuple[str, ...]:
    """Return the device of each process of a run on this machine; a lone `auto` stays `auto`.

    Args:
        device: `train.device`.
        num_processes: `train.num_processes`; 1 follows the devices.
        rows_per_step: Upper bound for the CPU processes of `all`: each needs a row.

    Raises:
        SpecError: A device does not exist, there are too few, the two settings contradict, or
            Windows would need several processes.
    """
    names = _names(device, num_processes, rows_per_step)
    if len(names) > 1 and device != CLUSTER and sys.platform == "win32":
        raise _invalid(
            f"The run needs {len(names)} processes, and Windows supports only one: use one device "
            "with train.num_processes=1, or WSL2.",
            field="train.num_processes",
        )
    return names


def _names(device: str, num_processes: int, rows_per_step: int) -> tuple[str, ...]:
    if device == CLUSTER or (device in (AUTO, CPU, "mps") and num_processes == 1):
        return (device,) * num_processes
    if device not in WORDS and not all(map(GPU.fullmatch, device.split(","))):
        raise _invalid(
            f'train.device is "{device}": use auto, cpu, one GPU (cuda:0), several '
            f"(cuda:0,cuda:1), all, or ray.{nearest(device, WORDS)}"
        )
    here = [found.name for found in hardware.devices()]
    gpus = [name for name in here if GPU.fullmatch(name)]
    if device == ALL:
        names = tuple(gpus)
        if not gpus:
            most = 1 if sys.platform == "win32" else MAX_PROCESSES
            count = min(hardware.physical_cores(), rows_per_step, most)
            names = ("mps",) if "mps" in here else (CPU,) * count
        what = f"train.device is all ({len(names)} {'GPUs' if gpus else 'processes'} here)"
    elif GPU.match(device):
        names = tuple(device.split(","))
        if absent := [name for name in names if name not in gpus]:
            raise _invalid(
                f"train.device names {', '.join(absent)}, but this machine has {_listed(gpus)}."
            )
        what = f"train.device names only {device}"
    elif device in ("cuda", "xpu") or (device == AUTO and gpus):
        return _first_gpus(device, num_processes, gpus)
    else:
        return _cpu_processes(num_processes)
    if num_processes not in (1, len(names)):
        raise _contradiction(what, num_processes, len(names))
    return names


def _first_gpus(device: str, count: int, gpus: list[str]) -> tuple[str, ...]:
    if not gpus or not (device == AUTO or gpus[0].startswith(device)):
        raise _invalid(f"train.device is {device}, but this machine has {_listed(gpus)}.")
    if count > len(gpus):
        raise _invalid(
            f"train.num_processes is {count}, but this machine has {_listed(gpus)}. Use at most "
            f"{len(gpus)}, or train.device=cpu.",
            field="train.num_processes",
        )
    return tuple(gpus[:count])


def _cpu_processes(count: int) -> tuple[str, ...]:
    cores = os.cpu_count() or 1
    if count > cores:
        raise _invalid(
            f"train.num_processes is {count}, but this machine has {cores} processor cores: use at "
            f"most {cores}.",
            field="train.num_processes",
        )
    return (CPU,) * count


def _contradiction(what: str, num_processes: int, names: int) -> SpecError:
    return _invalid(
        f"{what}, but train.num_processes is {num_processes}: set it to {names}, or to 1, which "
        "follows train.device.",
        field="train.num_processes",
    )


def _invalid(text: str, field: str = "train.device") -> SpecError:
    return SpecError(text, field=field)


def _listed(gpus: list[str]) -> str:
    if not gpus:
        return "no GPU"
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: {', '.join(gpus)}"

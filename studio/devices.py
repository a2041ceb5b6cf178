"""What `train.device` means: one device, a set of GPUs, all of this machine's, or the cluster.

A spec keeps the wish as it was written, so that it means the right thing on every machine; what it
means on this one is decided here, when it is admitted, estimated or started. Never imports torch.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from studio import hardware
from studio.cluster import DEVICE as CLUSTER
from studio.errors import SpecError, nearest

if TYPE_CHECKING:
    from studio.spec import RunSpec, TrainArgs

AUTO, ALL, CPU = "auto", "all", "cpu"
WORDS = (AUTO, ALL, CPU, "cuda", "mps", CLUSTER)
GPU = re.compile(r"cuda:\d+")
MOST_PROCESSES = 64


def read(value: Any) -> Any:
    """Return a wish as the spec holds it; a list, or names between commas, is a set of GPUs.

    Raises:
        SpecError: A name is there twice, or cannot be in a set.
    """
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if not isinstance(value, str) or "," not in value:
        return value
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if len(names) > 1 and not GPU.fullmatch(name):
            raise SpecError(
                f'train.device is "{value}", but a set is of GPUs only, such as cuda:0,cuda:2: '
                f'"{name}" stands alone.',
                field="train.device",
            )
        if names.count(name) > 1:
            raise SpecError(
                f"train.device names {name} twice: name each GPU once.", field="train.device"
            )
    return ",".join(names)


def width(wish: str, num_processes: int = 1) -> int:
    """Return how many devices a wish takes at once, as far as that depends on no machine."""
    return max(num_processes, 1 + wish.count(","))


def count(spec: RunSpec) -> int:
    """Return how many devices a run takes, here or elsewhere; `all` is as many as there are here.

    Raises:
        SpecError: As in `resolved`.
    """
    wish, wanted = spec.train.device, spec.train.num_processes
    return len(meant(spec)) if wish == ALL else width(wish, wanted)


def one_of(wish: str) -> str:
    """Return a wish for one device alone, of those that a wish names."""
    return AUTO if wish in (ALL, CLUSTER) else wish.partition(",")[0]


def check_agreement(wish: str, num_processes: int) -> None:
    """Make sure that a set and a number of processes say the same; 1 follows the set.

    Raises:
        SpecError: They do not.
    """
    names = 1 + wish.count(",")
    if names > 1 and num_processes not in (1, names):
        raise _contradiction(f"train.device names {names} GPUs", num_processes, names)


def is_spread(train: TrainArgs) -> bool:
    """Whether a run takes several processes, or may where it lands."""
    return width(train.device, train.num_processes) > 1 or train.device == ALL


def resolved(spec: RunSpec) -> RunSpec:
    """Return the spec with the devices of this machine that it means, and their number.

    Raises:
        SpecError: A device is not here, there are too few, or the number says something else.
    """
    names = meant(spec)
    return spec.with_values(
        {"train.device": ",".join(dict.fromkeys(names)), "train.num_processes": len(names)}
    )


def meant(spec: RunSpec) -> tuple[str, ...]:
    """Return the device of each process of a run on this machine; `auto` stays for one alone.

    Raises:
        SpecError: As in `resolved`.
    """
    wish, wanted = spec.train.device, spec.train.num_processes
    if wish == CLUSTER or (wish in (AUTO, CPU, "mps") and wanted == 1):
        return (wish,) * wanted
    if wish not in WORDS and not all(map(GPU.fullmatch, wish.split(","))):
        raise SpecError(
            f'train.device is "{wish}": take auto, cpu, a GPU (cuda:0), several '
            f"(cuda:0,cuda:1), all, or ray.{nearest(wish, WORDS)}",
            field="train.device",
        )
    gpus = [device.name for device in hardware.devices() if GPU.fullmatch(device.name)]
    if wish == ALL:
        return _all(spec, gpus)
    if GPU.match(wish):
        return _named(wish, wanted, gpus)
    if wish == "cuda" or (wish == AUTO and gpus):
        return _any(wanted, gpus)
    return _processes(wanted)


def _all(spec: RunSpec, gpus: list[str]) -> tuple[str, ...]:
    """Every GPU; without one, a process for each core that gets rows of a step."""
    args = spec.train
    names = tuple(gpus)
    if not gpus:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        count = min(hardware.physical_cores(), rows, MOST_PROCESSES)
        apple = any(device.name == "mps" for device in hardware.devices())
        names = ("mps",) if apple else (CPU,) * count
    if args.num_processes not in (1, len(names)):
        what = f"{len(gpus)} GPUs" if gpus else f"{len(names)} processes"
        raise _contradiction(
            f"train.device is all, {what} here", args.num_processes, len(names)
        )  # fmt: skip
    return names


def _named(wish: str, wanted: int, gpus: list[str]) -> tuple[str, ...]:
    names = tuple(wish.split(","))
    absent = [name for name in names if name not in gpus]
    if absent:
        raise SpecError(
            f"train.device names {', '.join(absent)}, but this machine has {_listed(gpus)}.",
            field="train.device",
        )
    if wanted not in (1, len(names)):
        raise _contradiction(f"train.device names {wish} alone", wanted, len(names))
    return names


def _any(wanted: int, gpus: list[str]) -> tuple[str, ...]:
    if wanted > len(gpus):
        raise SpecError(
            f"train.num_processes is {wanted}, but this machine has {_listed(gpus)}. Take at most "
            f"{len(gpus)}, or train.device=cpu."
            if gpus else f"train.device is cuda, but this machine has {_listed(gpus)}.",
            field="train.num_processes" if gpus else "train.device",
        )  # fmt: skip
    return tuple(gpus[:wanted])


def _processes(wanted: int) -> tuple[str, ...]:
    cores = os.cpu_count() or 1
    if wanted > cores:
        raise SpecError(
            f"train.num_processes is {wanted}, but this machine has {cores} processor cores: more "
            "processes than cores only wait for each other.",
            field="train.num_processes",
        )
    return (CPU,) * wanted


def _contradiction(what: str, num_processes: int, names: int) -> SpecError:
    return SpecError(
        f"{what}, but train.num_processes is {num_processes}: leave it at 1, which follows the "
        f"devices, or say {names}.",
        field="train.num_processes",
    )


def _listed(gpus: list[str]) -> str:
    if not gpus:
        return "no GPU"
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: {', '.join(gpus)}"

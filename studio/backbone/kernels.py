"""One switch between plain functions of tensors and kernels that compute the same in one launch.

A plain function that has a kernel is marked `replaceable`; it stays the reference. `activate` names
the kernels of a device and precision, which are then called in its place. Without that, and on any
other device, the plain function runs. `training/kernel_check.py` decides which kernels are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
Kernels = Mapping[str, Callable[..., Any]]

PLAIN: dict[str, Callable[..., Any]] = {}
"""Functions that a kernel of the same name and arguments may replace."""
_active: dict[tuple[str, torch.device, torch.dtype], Callable[..., Any]] = {}


def replaceable(plain: Callable[P, R]) -> Callable[P, R]:
    """Let a kernel replace a function; device and precision are those of its first argument."""
    name = plain.__name__
    PLAIN[name] = plain

    @wraps(plain)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0]
        kernel = _active.get((name, x.device, x.dtype)) if _active else None
        return (kernel or plain)(*args, **kwargs)

    return call


def activate(device: torch.device, dtype: torch.dtype, kernels: Kernels) -> None:
    """Use exactly these kernels on a device and for a precision from now on."""
    device = indexed(device)
    for key in [key for key in _active if key[1:] == (device, dtype)]:
        del _active[key]
    _active.update({(name, device, dtype): kernel for name, kernel in kernels.items()})


def indexed(device: torch.device) -> torch.device:
    """Return a device as tensors on it name it: `cuda` is the current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())

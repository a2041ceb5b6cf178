"""The optimizer over an adapter's parameters, and its state as plain tensors and numbers.

Checkpoints hold no pickle, so the state is taken apart here and put together again exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from studio.spec import TrainArgs


def make_optimizer(parameters: Sequence[nn.Parameter], args: TrainArgs) -> Optimizer:
    """Return AdamW; vectors (biases, gains) are never decayed.

    The learning rate is set before every step by `set_rate`.
    """
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's state: tensors by `<parameter>/<name>`, and the plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            target = tensors if isinstance(value, Tensor) else numbers
            target[f"{index}/{name}"] = value
    return tensors, numbers


def restore(optimizer: Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put a state that `state_tensors` took apart back into a fresh optimizer."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

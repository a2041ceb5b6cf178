"""Optimizers over an adapter's parameters; their state as tensors and numbers for checkpoints.

Checkpoints hold no pickle, so the state is split here and restored exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from studio.errors import SpecError
from studio.train_args import TrainArgs

Named = Sequence[tuple[str, nn.Parameter]]
Groups = list[dict[str, Any]]
OptimizerLike: TypeAlias = "Optimizer | CombinedOptimizer"
LION_BETAS = (0.9, 0.99)
TOKENS_SHARE, MODULES_SHARE = 1.0, 0.1  # of the rate of a low-rank product


def make_optimizer(named: Named, args: TrainArgs, in_full: Collection[str] = ()) -> OptimizerLike:
    """Return the optimizer of the spec; weight decay skips vectors (biases, gains).

    `set_learning_rate` sets the rate before every step; with LoRA+ that of `B` is a multiple, and
    so is that of the modules `in_full` (keys of sites).

    Raises:
        SpecError: It needs a library or a device that is missing.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        fast = _scale(name, args, in_full)
        groups.setdefault((parameter.dim() > 1, fast), []).append(parameter)
    made: Groups = [
        {"params": members, "weight_decay": args.weight_decay if decayed else 0.0, "scale": scale}
        for (decayed, scale), members in groups.items()
    ]
    return _MAKERS[args.optim](made, named[0][1].device)


def _scale(name: str, args: TrainArgs, in_full: Collection[str]) -> float:
    """Return the multiple of the learning rate that a parameter `<site key>/<name>` takes."""
    key, _, name = name.rpartition("/")
    if key in in_full:
        return args.embedding_lr_ratio or (TOKENS_SHARE if name == "tokens" else MODULES_SHARE)
    return args.loraplus_lr_ratio if name == "lora_B" else 1.0


def set_learning_rate(optimizer: OptimizerLike, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def state_tensors(optimizer: OptimizerLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors and numbers, each by `<parameter index>/<name>`.

    bitsandbytes nests its quantised state in a dictionary: `<index>/<dictionary>/<name>`.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}

    def add(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{place}/{name}", inner)
        else:
            (tensors if isinstance(value, Tensor) else numbers)[place] = value

    for index, state in optimizer.state_dict()["state"].items():
        add(str(index), state)
    return tensors, numbers


def restore(optimizer: OptimizerLike, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Load the state that `state_tensors` returned into a new optimizer."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, *path, name = key.split("/")
        inner = state.setdefault(int(index), {})
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


class Lion(Optimizer):
    """`p ← p − η (sign(β₁ m + (1 − β₁) g) + λ p)`, then `m ← β₂ m + (1 − β₂) g`: one moment.

    Its steps all have one size, so its learning rate is three to ten times smaller than AdamW's.
    Source: arXiv:2302.06675.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "scale": 1.0})

    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: nn.Parameter, rate: float, decay: float) -> None:
        now, later = LION_BETAS
        assert parameter.grad is not None
        moment = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
        direction = moment.lerp(parameter.grad, 1 - now).sign_()
        parameter.mul_(1 - rate * decay).add_(direction, alpha=-rate)
        moment.lerp_(parameter.grad, 1 - later)


class CombinedOptimizer:
    """Several optimizers as one: Muon for matrices, AdamW for the rest."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> Groups:
        """Parameter groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Step each part."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of each part."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with parameters numbered part by part."""
        state, groups, start = {}, [], 0
        for part in self.parts:
            own = part.state_dict()
            state.update({start + index: value for index, value in own["state"].items()})
            groups += own["param_groups"]
            start += _count(part)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of each part."""
        start = 0
        for part in self.parts:
            stop = start + _count(part)
            own = {i - start: v for i, v in state_dict["state"].items() if start <= i < stop}
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
            start = stop


def _count(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _adafactor(groups: Groups, device: torch.device) -> OptimizerLike:
    """With the rate from outside, as transformers' Trainer sets it; arXiv:1804.04235."""
    from transformers.optimization import Adafactor

    made: OptimizerLike = Adafactor(groups, lr=0.0, scale_parameter=False, relative_step=False)
    return made


def _muon(groups: Groups, device: torch.device) -> OptimizerLike:
    """arXiv:2502.16982: its updates have AdamW's size, so AdamW's learning rate fits."""
    parts: list[Optimizer] = []
    if matrices := _with_members(groups, lambda parameter: parameter.dim() == 2):
        parts.append(torch.optim.Muon(matrices, lr=0.0, adjust_lr_fn="match_rms_adamw"))
    if others := _with_members(groups, lambda parameter: parameter.dim() != 2):
        parts.append(torch.optim.AdamW(others, lr=0.0))
    return CombinedOptimizer(parts)


def _with_members(groups: Groups, chosen: Callable[[nn.Parameter], bool]) -> Groups:
    """Return the groups with the chosen of their parameters, without empty ones."""
    made = [{**group, "params": [*filter(chosen, group["params"])]} for group in groups]
    return [group for group in made if group["params"]]


def _eight_bits(name: str, cls: str) -> Callable[[Groups, torch.device], OptimizerLike]:
    def make(groups: Groups, device: torch.device) -> OptimizerLike:
        if device.type != "cuda":
            raise SpecError(
                f"train.optim is {name}, which needs a CUDA GPU, but the run is on {device.type}: "
                "use adamw, or adafactor to save memory.", field="train.optim",
            )  # fmt: skip
        try:
            import bitsandbytes
        except ImportError:
            raise SpecError(
                f"train.optim is {name}, which needs bitsandbytes: `pip install bitsandbytes`, or "
                "use adamw.", field="train.optim",
            ) from None  # fmt: skip
        made: OptimizerLike = getattr(bitsandbytes.optim, cls)(groups, lr=0.0)
        return made

    return make


_MAKERS: dict[str, Callable[[Groups, torch.device], OptimizerLike]] = {
    "adamw": lambda groups, device: torch.optim.AdamW(
        groups, lr=0.0, fused=device.type in ("cpu", "cuda")
    ),
    "adamw_8bit": _eight_bits("adamw_8bit", "AdamW8bit"),
    "paged_adamw_8bit": _eight_bits("paged_adamw_8bit", "PagedAdamW8bit"),
    "adafactor": _adafactor,
    "lion": lambda groups, _: Lion(groups),
    "muon": _muon,
}

"""Checkpoints of a run as adapters to talk to: `7@100` is run 7 at step 100.

A checkpoint holds the adapter's tensors as the engine saves them and no config; what they belong to
is in the run's spec. Nothing is converted: the tensors are loaded into a fresh adapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import AdapterError, nearest
from studio.home import Home, is_whole
from studio.spec import RunSpec

if TYPE_CHECKING:
    from studio.backbone import Backbone

NAME = re.compile(r"(\d{1,9})@(\d{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    run: int
    step: int
    path: Path
    spec: RunSpec

    @property
    def name(self) -> str:
        """How a lane names it."""
        return f"{self.run}@{self.step}"


def is_checkpoint(home: Home, name: str) -> bool:
    """Whether a name means a checkpoint.

    Raises:
        AdapterError: It does, but that step was not kept.
    """
    found = NAME.fullmatch(name)
    if not found or not (home.run(int(found[1])) / "checkpoints").is_dir():
        return False
    find(home, name)
    return True


def find(home: Home, name: str) -> Checkpoint:
    """Return the checkpoint of this name.

    Raises:
        AdapterError: The run or the step is not there, or is not whole.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise AdapterError(f'"{name}" is no checkpoint: write RUN@STEP, such as 7@100.')
    run, step = int(found[1]), int(found[2])
    steps = steps_of(home, run)
    path = home.run(run) / "checkpoints" / f"step-{step:08d}"
    if step not in steps:
        known = [str(one) for one in steps]
        raise AdapterError(
            f"Run {run} has kept no checkpoint of step {step}."
            + (nearest(str(step), known) or " It has kept none." * (not steps))
        )
    if not is_whole(path):
        raise AdapterError(f"The checkpoint {name} is damaged: its files differ from its manifest.")
    return Checkpoint(run=run, step=step, path=path, spec=_spec(home, run))


def steps_of(home: Home, run: int) -> list[int]:
    """Return the steps a run has kept, the oldest first."""
    names = (folder.name for folder in (home.run(run) / "checkpoints").glob("step-*"))
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def attach(
    backbone: Backbone,
    checkpoint: Checkpoint,
    *,
    name: str = "",
    tokenize: Callable[[str], list[int]] | None = None,
) -> None:
    """Load a checkpoint beside the backbone, under its own name or another.

    Args:
        backbone: Around the run's base.
        checkpoint: A whole one.
        name: How it is called there.
        tokenize: For methods that begin with words.

    Raises:
        AdapterError: The run trained the whole model, or another shape of model.
    """
    from safetensors.torch import load_file

    method = checkpoint.spec.method
    if method.name == "full":
        raise AdapterError(
            f"Run {checkpoint.run} trained the whole model: its checkpoints are models, not "
            "adapters, and cannot be stacked."
        )
    name = name or checkpoint.name
    adapter = backbone.attach(name, method, seed=checkpoint.spec.seed, tokenize=tokenize)
    try:
        adapter.load_state(load_file(checkpoint.path / "adapter.safetensors"))
    except AdapterError:
        backbone.detach(name)
        raise AdapterError(
            f"The checkpoint {checkpoint.name} does not fit this model: run {checkpoint.run} was "
            f"trained on {checkpoint.spec.model.path}."
        ) from None


def _spec(home: Home, run: int) -> RunSpec:
    from studio.fields import read_yaml

    return RunSpec.parse(read_yaml(home.run(run) / "spec.yaml"))

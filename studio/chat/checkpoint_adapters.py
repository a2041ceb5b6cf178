"""Checkpoints of runs as adapters in a stack: `7@100` is run 7 at step 100.

A checkpoint holds the adapter's tensors without a config; the run's spec has the method. The
tensors are loaded into a new adapter, nothing is converted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.adapters import library
from studio.chat.lanes import LaneSettings
from studio.errors import AdapterError, StudioError, nearest
from studio.fields import read_yaml
from studio.home import Home, is_whole
from studio.models.quantization import BITS
from studio.spec import ModelSource, RunSpec

if TYPE_CHECKING:
    from studio.backbone import Backbone

MAX_LISTED = 200
NAME = re.compile(r"(\d{1,9})@(\d{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint on disk; loading it checks its files."""

    run: int
    step: int
    path: Path
    spec: RunSpec

    @property
    def name(self) -> str:
        """Its name in a stack."""
        return f"{self.run}@{self.step}"

    def check(self) -> None:
        """Read its files, as its adapter is about to be loaded.

        Raises:
            AdapterError: They are damaged.
        """
        if not is_whole(self.path):
            raise AdapterError(
                f"The checkpoint {self.name} is damaged: its files differ from its manifest."
            )


def find_if_named(home: Home, name: str) -> Checkpoint | None:
    """Return the checkpoint of a name such as `7@100`; None if the name means something else.

    Raises:
        AdapterError: The run has checkpoints, but not this one.
    """
    found = NAME.fullmatch(name)
    if not found or not (home.run(int(found[1])) / "checkpoints").is_dir():
        return None
    return find(home, name)


def find(home: Home, name: str) -> Checkpoint:
    """Return the checkpoint of this name.

    Raises:
        AdapterError: It does not exist.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise AdapterError(f'"{name}" is not a checkpoint: write RUN@STEP, such as 7@100.')
    run, step = int(found[1]), int(found[2])
    steps = steps_of(home, run)
    path = home.run(run) / "checkpoints" / f"step-{step:08d}"
    if step not in steps:
        hint = nearest(str(step), [str(one) for one in steps]) if steps else " It has none."
        raise AdapterError(f"Run {run} has no checkpoint of step {step}.{hint}")
    return Checkpoint(run=run, step=step, path=path, spec=_spec(home, run))


def steps_of(home: Home, run: int) -> list[int]:
    """Return the steps of a run's checkpoints, ascending."""
    names = (folder.name for folder in (home.run(run) / "checkpoints").glob("step-*"))
    return sorted(int(name[5:]) for name in names if name[5:].isdecimal())


def base_of_adapter(home: Home, name: str) -> ModelSource:
    """Return the base that an adapter or checkpoint was trained on, as far as it is known.

    A quantization that is none of ours, of an imported passport, counts as none.

    Raises:
        StudioError: There is no such adapter, or its passport is invalid.
    """
    if checkpoint := find_if_named(home, name):
        return checkpoint.spec.model
    found = library.describe(library.resolve(home, name))
    kind = str(found.section("spec", "model").get("quantization"))
    return ModelSource.parse({
        "path": found.base, "revision": found.base_revision,
        "quantization": kind if kind in BITS else "none",
    })  # fmt: skip


def base_of_lane(home: Home, lane: LaneSettings) -> ModelSource:
    """Return the base of a lane, at the revision that its adapters were trained on.

    Raises:
        StudioError: One of its adapters is missing.
    """
    trained = [base_of_adapter(home, part.name) for part in lane.stack]
    pinned = [one.revision for one in trained if one.path == lane.model and one.revision]
    return ModelSource(path=lane.model, revision=pinned[0] if pinned else "")


def same_revisions(
    bases: Mapping[int, ModelSource], lanes: Sequence[LaneSettings]
) -> dict[int, ModelSource]:
    """Return the bases of lanes by number, bare ones at the revision of the lanes beside them."""
    pinned = {base.path: base for base in bases.values() if base.revision}
    return {n: base if lanes[n].stack else pinned.get(base.path, base) for n, base in bases.items()}


def stackable(home: Home) -> list[dict[str, Any]]:
    """Return what a lane can stack: adapters, then the newest checkpoints of runs."""
    adapters = [
        {
            "name": one.name,
            "base": one.base,
            "method": one.method,
            "checkpoint": False,
            "run": one.path.parent.name if one.source == "run" else "",
        }
        for one in library.adapters(home)
        if not one.is_model
    ]
    found: list[dict[str, Any]] = []
    for run in sorted(home.runs.iterdir(), reverse=True):
        steps = steps_of(home, int(run.name)) if run.name.isdecimal() else []
        if not steps or len(found) >= MAX_LISTED:
            continue
        try:
            spec = _spec(home, int(run.name))
        except (StudioError, OSError):
            continue
        if not spec.method.trains_base:
            row = {"base": spec.model.path, "method": spec.method.name, "checkpoint": True}
            title = spec.name or f"run {run.name}"
            found += [
                {"name": f"{run.name}@{step}", **row, "label": f"{title} at step {step}"}
                for step in reversed(steps)
            ]
    return adapters + found


def attach(
    backbone: Backbone,
    checkpoint: Checkpoint,
    *,
    name: str = "",
    tokenize: Callable[[str], list[int]] | None = None,
) -> None:
    """Load a checkpoint as an adapter of the backbone.

    A run that trained an adapter further has that one's parameters, which its method alone does
    not describe: a rank per module, modules in full, what an initialisation left.

    Args:
        name: Its name in the backbone; empty for its own.
        tokenize: For methods that are initialized from a text.

    Raises:
        AdapterError: It is damaged, the run trained the whole model or another shape of model, or
            the adapter that it started from is missing.
    """
    from safetensors.torch import load_file

    method = checkpoint.spec.method
    if method.trains_base:
        raise AdapterError(
            f"Run {checkpoint.run} trained the whole model: its checkpoints are models, not "
            "adapters, and cannot be stacked."
        )
    checkpoint.check()
    name, start = name or checkpoint.name, checkpoint.spec.train
    if start.init_adapter and start.init_mode == "continue":
        adapter = backbone.load(name, Path(start.init_adapter))
    else:
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
    return RunSpec.parse(read_yaml(home.run(run) / "spec.yaml"))

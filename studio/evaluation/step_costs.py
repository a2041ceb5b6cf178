"""Measure what a training step costs each method alone: seconds, and memory above the base.

Runs of a bake-off train together as siblings, so their own memory and time are those of the group.
Here every method takes a few steps of its own run by itself on the same base, in turn and round by
round, so that a machine that slows down slows all. The steps change nothing: adapters are dropped,
and weights that full fine-tuning trained are put back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from studio import hardware
from studio.errors import StudioError, is_out_of_memory
from studio.training.allocator_and_threads import trim
from studio.training.base_of_run import base_model

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.home import Home
    from studio.models.loading import Loaded
    from studio.spec import ModelSource, RunSpec

NAME = "measured"
ROUNDS, STEPS = 2, 3  # the first step of a round warms up and is not timed
Costs = dict[int, dict[str, Any]]


def step_costs(
    specs: Mapping[int, RunSpec], source: ModelSource, loaded: Loaded, backbone: Backbone,
    home: Home, run_dir: Path,
) -> Costs:  # fmt: skip
    """Return `seconds_per_step` and `memory_bytes` of each run that can be measured here.

    Args:
        specs: Runs by number, one of each method.
        source: The base that is loaded.
        loaded: That base; another one is loaded for runs that need other weights.
        backbone: Its backbone.
        home: Where datasets are.
        run_dir: Folder for what a loss keeps of its reference.
    """
    from studio.backbone import Backbone as NewBackbone
    from studio.models.loading import load

    groups: dict[str, list[int]] = {}
    for number, spec in specs.items():
        groups.setdefault(base_model(spec).model_dump_json(), []).append(number)
    found: Costs = {}
    for numbers in groups.values():
        own = base_model(specs[numbers[0]])
        base, layers = loaded, backbone
        if own != source:
            try:
                base = load(own, str(loaded.device))
            except Exception as error:
                if not _is_unmeasurable(error):
                    raise
                continue
            layers = NewBackbone(base.model)
        train = {"device": str(base.device), "num_processes": 1, "fsdp": False, "max_steps": STEPS}
        alone = {number: specs[number].with_parts(train=train) for number in numbers}
        found |= _in_turn(alone, base, layers, home, run_dir)
    return found


def _is_unmeasurable(error: Exception) -> bool:
    """Return True if a method does not fit here, in form or in memory; its own run says why."""
    return isinstance(error, StudioError) or is_out_of_memory(error)


def _in_turn(
    specs: Mapping[int, RunSpec], loaded: Loaded, backbone: Backbone, home: Home, run_dir: Path
) -> Costs:
    from studio.training.open_session import prepare_data

    seconds: dict[int, list[float]] = {number: [] for number in specs}
    memory: dict[int, int] = {}
    rows = {}
    for _ in range(ROUNDS):
        for number in list(seconds):
            try:
                if number not in rows:
                    rows[number] = prepare_data(specs[number], loaded, home)
                peak, taken = _steps(specs[number], loaded, backbone, rows[number], run_dir)
            except Exception as error:
                if not _is_unmeasurable(error):
                    raise
                del seconds[number]
                continue
            seconds[number] += taken
            memory[number] = min(peak, memory.get(number, peak))
    return {
        number: {"seconds_per_step": median(taken), "memory_bytes": memory[number]}
        for number, taken in seconds.items()
    }


def _steps(
    spec: RunSpec, loaded: Loaded, backbone: Backbone, prepared: Any, run_dir: Path
) -> tuple[int, list[float]]:
    """Take a few steps; return the peak above what is in memory now, and the timed seconds."""
    from studio.training.open_session import open_session

    weights = backbone.model.named_parameters() if spec.method.trains_base else ()
    kept = [(weight, weight.detach().to("cpu", copy=True)) for _, weight in weights]
    before, others = _reset_peak(loaded), set(backbone.adapters)
    try:
        session = open_session(spec, loaded=loaded, prepared=prepared, backbone=backbone, name=NAME)
        if session.preference:
            for _ in session.preference.prepare_reference(run_dir):
                pass
        taken = []
        for _ in range(STEPS):
            started = time.perf_counter()
            session.step()
            taken.append(time.perf_counter() - started)
        return max(0, _peak(loaded) - before), taken[1:]
    finally:
        backbone.eval()
        for name in set(backbone.adapters) - others:
            backbone.detach(name)
        for weight, values in kept:
            weight.grad = None
            weight.data.copy_(values)


def _reset_peak(loaded: Loaded) -> int:
    """Start a new peak; return what is in use."""
    trim()
    if of := hardware.torch_module(loaded.device):
        of.reset_peak_memory_stats(loaded.device)
        return int(of.memory_allocated(loaded.device))
    hardware.reset_peak_bytes()
    return hardware.process_bytes()


def _peak(loaded: Loaded) -> int:
    if of := hardware.torch_module(loaded.device):
        return int(of.max_memory_allocated(loaded.device))
    return hardware.peak_bytes()

"""Measure memory and time of a run before it starts: two steps on its longest batch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import device_setting, hardware
from studio.data.template.template import IGNORED
from studio.home import Home
from studio.spec import RunSpec
from studio.training import kernel_check
from studio.training.estimate_memory_and_time import (
    CUDA_RUNTIME_BYTES,
    START_SECONDS,
    Estimate,
    estimate,
    save_speed,
    slowdown,
    step_flops,
)
from studio.training.explain_errors import explain_errors
from studio.training.sizes_for_estimates import MOST_STEPS, read_shape
from studio.training.starting_point import base_model, chosen_device, emulated_slowdown
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from studio.training.training_session import Session

REPORT = "preflight.json"
STEPS = 2


def preflight(spec: RunSpec, *, run_dir: Path, home: Home, device: str = "") -> Iterator[Event]:
    """Load everything, take two steps, and write the corrected estimate to `preflight.json`.

    It runs on `device`, by default the run's own. Of a distributed run one process is measured,
    with its part of the rows and the whole base; what sharding saves is estimated.

    Raises:
        StudioError: The run itself would fail with it.
    """
    from studio.models.loading import load
    from studio.training.train_run import open_session, prepare_data

    started = time.monotonic()
    with explain_errors(spec, lambda: "in the first step"):
        yield Loading(text="Estimating")
        guessed = estimate(spec, home)
        whole = estimate(spec.with_parts(train={"fsdp": False}), home)
        yield Loading(text="Loading the model and the data")
        device = device or device_setting.first_device(spec.train.device)
        alone = spec.with_parts(train={"device": device, "num_processes": 1, "fsdp": False})
        loaded = load(base_model(alone), device)
        prepared = prepare_data(alone, loaded, home)
        kernel_check.prepare(alone, loaded, home)
        session = open_session(alone, loaded=loaded, prepared=prepared)
        yield Loading(text="Two steps on the longest batch")
        peak, seconds = measured_steps(session, run_dir, processes=guessed.processes)
    batches = None
    if spec.train.loss == "grpo":  # answers may become longer than those measured
        peak = max(peak, whole.process_bytes)
        batches = max(1.0, spec.train.gradient_accumulation_steps / guessed.processes)
    found = corrected(whole, peak_bytes=peak, step_seconds=seconds, batches=batches)
    found = replace(
        guessed, seconds=found.seconds, measured=True,
        parts={name: max(0, size + guessed.parts[name] - whole.parts[name])
               for name, size in found.parts.items()},
    )  # fmt: skip
    if spec.train.loss != "grpo":  # its steps are of another kind
        rows: Any = session.prepared.train
        flops = step_flops(
            spec, read_shape(loaded.facts), tokens=guessed.longest_batch_tokens,
            targets=sum(int((row.labels != IGNORED).sum()) for row in rows),
        )  # fmt: skip
        flops *= emulated_slowdown(spec, chosen_device(device))
        save_speed(home, guessed.device.partition(",")[0], flops / max(seconds, 1e-9))
    run_dir.mkdir(parents=True, exist_ok=True)
    report = {"guessed_bytes": guessed.total_bytes, **found.as_dict()}
    (run_dir / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    note = f"Peak {peak / 2**20:.0f} MiB, {seconds:.3g} s a step."
    yield Finished(seconds=time.monotonic() - started, note=note)


def corrected(
    guess: Estimate, *, peak_bytes: int, step_seconds: float, batches: float | None = None
) -> Estimate:
    """Return the estimate with measured memory and time; `runtime` takes the difference.

    A step takes `batches` times the measured one; by default by the tokens of both.
    """
    parts = dict(guess.parts)
    rest = peak_bytes - sum(v for k, v in parts.items() if k != "runtime")
    if rest >= 0:
        parts["runtime"] = rest
    else:
        share = peak_bytes / max(1, guess.process_bytes)
        parts = {name: int(value * share) for name, value in parts.items()}
    share = guess.share_tokens / max(1, guess.longest_batch_tokens)
    share = share if batches is None else batches
    share *= slowdown(guess.processes, on_gpu=hardware.is_card(guess.device))
    steps = guess.steps_before + guess.total_steps
    seconds = START_SECONDS + steps * step_seconds * share
    return replace(guess, parts=parts, seconds=seconds, measured=True)


def measured_steps(session: Session, run_dir: Path, *, processes: int = 1) -> tuple[int, float]:
    """Take two steps on the longest micro-batch of a process; return peak bytes and seconds."""
    steps, plan = min(session.plan.total_steps, MOST_STEPS), session.plan
    rows_used = {row for step in range(steps) for row in plan.step_rows(step)}
    train, width = session.prepared.train, session.prepared.rows_per_example
    lengths = {
        row: sum(len(train[width * row + i].input_ids) for i in range(width)) for row in rows_used
    }
    longest = max(
        (
            batch
            for step in range(max(1, steps // processes))
            for process in range(processes)
            for batch in plan.micro_batches(step, process=process, processes=processes)
        ),
        key=lambda batch: sum(lengths[row] for row in batch),
    )
    session.plan = replace(
        session.plan, num_rows=len(longest), rows_per_step=len(longest), micro_batch=len(longest),
        shuffled=False, total_steps=STEPS,
    )  # fmt: skip
    rows = [train[width * row + i] for row in longest for i in range(width)]
    session.prepared = replace(session.prepared, train=rows, validation=[])
    if session.preference:
        session.preference = type(session.preference)(session)
        for _ in session.preference.prepare_reference(run_dir):
            pass
    device = session.loaded.device
    hardware.reset_peak(device)
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        session.step()
        seconds.append(time.perf_counter() - started)
    of = hardware.torch_module(device)
    return _gpu_peak_bytes(of, device) if of else hardware.peak_bytes(device), min(seconds)


def _gpu_peak_bytes(of: Any, device: Any) -> int:
    """Return what a GPU must have free: torch's reserved memory and the context of the process.

    The context is what is in use beyond torch's memory, unless other processes make that more than
    any context is.
    """
    free, total = of.mem_get_info(device)
    context = total - free - of.memory_reserved(device)
    return int(of.max_memory_reserved(device)) + min(max(0, context), CUDA_RUNTIME_BYTES)

"""Compare methods in a bake-off: answers, size, and the cost of training and serving each alone.

Losses are in the queue. This measures each adapter on one resident base: its answers to the same
prompts, and its time per generated token, live and merged, relative to the bare base. Both sides of
a ratio are measured alternately in one process, since machines are noisy. All merged models of a
base are equally fast, so they are measured once.

Runs of a bake-off train together as siblings, so their own memory and time are those of the group.
So each method then takes a few steps of its own run by itself on the same base, in turn and round
by round, so that a machine that slows down slows all. The steps change nothing: adapters are
dropped, and weights that full fine-tuning trained are put back.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from studio import atomic, hardware
from studio.adapter_stack import StackItem
from studio.adapters.adapter_lineage import frozen_below
from studio.adapters.library import describe
from studio.chat.lanes import Lane, Message, Sampling
from studio.errors import SpecError, StudioError, is_out_of_memory
from studio.fields import knob, read_yaml
from studio.home import Home
from studio.job_request import Request
from studio.models.find_model import facts
from studio.spec import ModelSource, RunSpec
from studio.training.allocator_and_threads import trim
from studio.training.starting_point import base_model, with_stored_precision
from studio.training.training_events import Event, Finished, Loading

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.models.loading import Loaded

logger = logging.getLogger(__name__)
REPORT = "bakeoff.json"
ROUNDS = 5
TOKENS = 24
MEASURED = "measured"
STEP_ROUNDS, STEPS = 2, 3  # the first step of a round warms up and is not timed
Costs = dict[int, dict[str, Any]]


class BakeoffRequest(Request):
    """Measure the adapters of several runs."""

    kind: ClassVar[str] = "bakeoff"
    model: ModelSource = ModelSource()
    runs: tuple[int, ...] = knob((), "Numbers of the runs.", title="Runs")
    prompts: tuple[str, ...] = knob((), "Prompts every adapter answers.", title="Prompts")

    def perform(self, home: Home, run_dir: Path, *_: Any) -> Iterator[Event]:
        """Measure every run that has an adapter; write `bakeoff.json`."""
        from studio.backbone import Backbone
        from studio.models.loading import load

        run_dir.mkdir(parents=True, exist_ok=True)
        yield Loading(text="Loading the base")
        started = _first_of_each_method(home, self.runs).values()
        source = next((s.model for s in started if not s.method.trains_base), self.model)
        loaded = load(source, "auto")
        backbone = Backbone(loaded.model)
        merged = cache(lambda: merged_ratio(source, loaded, backbone))
        rows = []
        for number in self.runs:
            folder = home.run(number) / "adapter"
            if not folder.is_dir():
                continue
            yield Loading(text=f"Measuring run {number}")
            try:
                row = measure(loaded, backbone, folder, self.prompts, merged)
                rows.append({"run": number, **row})
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                logger.warning("run %s cannot be measured: out of memory", number)
            self._write(rows, run_dir)
        yield Loading(text="Measuring training steps of each method alone")
        specs = _first_of_each_method(home, [row["run"] for row in rows])
        costs = step_costs(specs, source, loaded, backbone, home, run_dir)
        for row in rows:
            row |= costs.get(row["run"], {})
        self._write(rows, run_dir)
        yield Finished()

    def _write(self, rows: list[dict[str, Any]], run_dir: Path) -> None:
        text = json.dumps({"model": self.model.path, "rows": rows}, ensure_ascii=False, indent=1)
        atomic.write(run_dir / REPORT, text)


def _first_of_each_method(home: Home, runs: Sequence[int]) -> dict[int, RunSpec]:
    """Return the specs of runs as they started, one run of each method."""
    found: dict[int, RunSpec] = {}
    for number in runs:
        try:
            spec = RunSpec.parse(read_yaml(home.run(number) / "spec.yaml"))
            spec = with_stored_precision(spec, facts(spec.model))
        except SpecError:
            continue  # it never started
        if all(spec.method != other.method for other in found.values()):
            found[number] = spec
    return found


def measure(
    loaded: Loaded, backbone: Backbone, folder: Path, prompts: tuple[str, ...],
    merged: Callable[[], float | None],
) -> dict[str, Any]:  # fmt: skip
    """Return size, latency ratios to the bare base, and answers of one adapter.

    `merged` returns the ratio of any adapter that can be merged.
    """
    from studio.backbone import Backbone
    from studio.backbone.dense_weights import can_fold
    from studio.models.loading import load

    found = describe(folder)
    row: dict[str, Any] = {"method": found.method, "size_bytes": found.size_bytes}
    if found.is_model:
        whole = load(ModelSource(path=str(folder)), str(loaded.device))
        own = Backbone(whole.model)
        return row | {
            "live_ratio": ratio(decoder(backbone), decoder(own)),
            "merged_ratio": None,
            "answers": answers(whole, own, prompts),
        }
    below = [("below", one.path, 1.0) for one in frozen_below(found)]
    others = set(backbone.adapters)
    try:
        stack = backbone.load_stack([*below, ("candidate", folder, 1.0)])
        row["live_ratio"] = ratio(decoder(backbone), decoder(backbone, stack))
        backbone.use(stack)
        row["answers"] = answers(loaded, backbone, prompts)
        mergeable = all(can_fold(backbone.adapters[name]) for name, _ in stack)
        row["merged_ratio"] = merged() if mergeable else None
    finally:
        for name in set(backbone.adapters) - others:
            backbone.detach(name)
    return row


def merged_ratio(source: ModelSource, loaded: Loaded, backbone: Backbone) -> float | None:
    """Return the latency ratio of a merged model to the base; None if memory is too small for both.

    A merged model is the base in full precision with other values, which cost no time.
    """
    from studio.backbone import Backbone
    from studio.models.loading import load

    if source.quantization == "none":
        return 1.0
    dtype = str(loaded.dtype).removeprefix("torch.")
    try:
        dense = load(ModelSource(path=str(loaded.facts.path), dtype=dtype), str(loaded.device))
        return ratio(decoder(backbone), decoder(Backbone(dense.model)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("a merged model cannot be measured: out of memory")
        return None


def ratio(base: Callable[[], None], other: Callable[[], None]) -> float:
    """Return the median time of `other` relative to `base`, measured alternately."""

    def seconds(run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    base()
    other()
    pairs = [(seconds(base), seconds(other)) for _ in range(ROUNDS)]
    return median(ours / bare for bare, ours in pairs)


def decoder(backbone: Backbone, stack: tuple[tuple[str, float], ...] = ()) -> Callable[[], None]:
    """Return a function that generates `TOKENS` tokens as chat does."""
    import torch

    from studio.chat.decoding import Batch

    def run() -> None:
        backbone.use(stack)
        with torch.no_grad():
            batch = Batch(backbone.model, [[1]], backbone.model.device)
            logits_BV, _ = batch.prefill()
            for _ in range(TOKENS - 1):
                logits_BV = batch.step(logits_BV.argmax(-1).tolist())

    return run


def answers(loaded: Loaded, backbone: Backbone, prompts: tuple[str, ...]) -> list[str]:
    """Return the greedy answers of the active stack to a bake-off's prompts."""
    from studio.chat.chat_engine import ChatEngine

    stack = tuple(StackItem(name=name, weight=weight) for name, weight in backbone.active[0])
    engine = ChatEngine(loaded, backbone)
    sampling = Sampling(max_new_tokens=48, temperature=0)
    lanes = [
        Lane(stack=stack, messages=(Message(role="user", content=prompt),), sampling=sampling)
        for prompt in prompts
    ]
    texts = [""] * len(lanes)
    for delta in engine.stream(lanes):
        texts[delta.lane] += delta.text
    return texts


# -- training steps --------------------------------------------------------------------------------


def step_costs(
    specs: Mapping[int, RunSpec], source: ModelSource, loaded: Loaded, backbone: Backbone,
    home: Home, run_dir: Path,
) -> Costs:  # fmt: skip
    """Return `seconds_per_step` and `memory_bytes` of each run that can be measured here.

    Args:
        specs: Runs by number, one of each method.
        source: The base that is loaded; another one is loaded for runs that need other weights.
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
    from studio.training.train_run import prepare_data

    seconds: dict[int, list[float]] = {number: [] for number in specs}
    memory: dict[int, int] = {}
    rows = {}
    for _ in range(STEP_ROUNDS):
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
    from studio.training.train_run import open_session

    weights = backbone.model.named_parameters() if spec.method.trains_base else ()
    kept = [(weight, weight.detach().to("cpu", copy=True)) for _, weight in weights]
    trim()
    before, others = hardware.reset_peak(loaded.device), set(backbone.adapters)
    try:
        session = open_session(
            spec, loaded=loaded, prepared=prepared, backbone=backbone, name=MEASURED
        )
        if session.preference:
            for _ in session.preference.prepare_reference(run_dir):
                pass
        taken = []
        for _ in range(STEPS):
            started = time.perf_counter()
            session.step()
            taken.append(time.perf_counter() - started)
        return max(0, hardware.peak_bytes(loaded.device) - before), taken[1:]
    finally:
        backbone.eval()
        for name in set(backbone.adapters) - others:
            backbone.detach(name)
        for weight, values in kept:
            weight.grad = None
            weight.data.copy_(values)

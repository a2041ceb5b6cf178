"""Decide what a run starts from: the precision of its base, runs that share it, an adapter.

Runs of one `sibling_key` share base, device and data; method, optimizer, schedule, batch size,
seed, steps and intervals are each run's own.

`train.init_adapter` names the adapter to start from, `train.init_mode` what becomes of it. Trained
further, the run's adapter begins with its weights and replaces it. Stacked on, it stays frozen
below a fresh one, and both are needed to answer; so what is below the adapter to start from is
loaded as well. For losses with a reference, the adapter as it was is the reference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import hardware
from studio.adapters import library
from studio.adapters.adapter_lineage import base_fingerprint, below_run, frozen_below, lineage
from studio.device_setting import CLUSTER
from studio.errors import AdapterError, MethodError, SpecError
from studio.methods import Method, named
from studio.methods.method_of_config import method_in
from studio.models.find_model import ModelFacts
from studio.spec import ModelSource, RunSpec

if TYPE_CHECKING:
    from studio.backbone import Adapter, Backbone
    from studio.home import Home
    from studio.models.loading import Loaded

SMALL_MODEL = 50_000_000  # parameters
EMULATED_SLOWDOWN = 30
"""Of products in half precision on a CPU without instructions for them: 22 in float16 and 30 in
bfloat16 were measured on one with AVX2, 7 for a whole step of the starter."""
SHARED_TRAIN = (  # of the base, or of the whole process
    "device", "gradient_checkpointing", "activation_offloading", "attn_implementation", "tf32",
    "triton_kernels",
)  # fmt: skip


def with_stored_precision(spec: RunSpec, known: ModelFacts, device: str = "") -> RunSpec:
    """Return the run with `model.dtype` resolved where it is not float32 beside main memory.

    On an Apple GPU that has bfloat16 it is that; a CPU keeps the precision of the file.

    A model stored in bfloat16 stays so on a processor that multiplies it in hardware: half the time
    and memory of float32 at 0.4 B parameters, losses equal to 1e-3. Small models stay in float32,
    which costs them nothing and gives the same run on every machine.

    Resolved at submission, for each run by itself, and when one starts whose model was not here.

    `device` is the one that the run has got; by default the one that it will most likely get.

    Raises:
        SpecError: This machine does not have the run's devices.
    """
    kept, settled = keeps_bfloat16(spec, known), base_model(spec).dtype != "auto"
    on_apple = not settled and hardware.apple_has_bfloat16()
    if not (kept or on_apple):
        return spec
    name = device or chosen_device(spec.on_this_machine().train.device).name
    half = (kept and name == "cpu") or (on_apple and name == "mps")
    return spec.with_parts(model={"dtype": "bfloat16"}) if half else spec


def keeps_bfloat16(spec: RunSpec, known: ModelFacts) -> bool:
    """Return True if a run on this CPU keeps the precision of a bfloat16 file."""
    settled = spec.model.dtype != "auto" or spec.method.trains_base
    if settled or known.parameters < SMALL_MODEL or known.weights_dtype != "BF16":
        return False
    return spec.model.quantization == "none" and hardware.has_fast_bfloat16()


def base_model(spec: RunSpec) -> ModelSource:
    """Return the model source with the precision that training loads.

    Trained base weights are float32 by default: bfloat16 rounds most of a step of 1e-5 on a weight
    of 0.02 away.
    """
    if spec.method.trains_base and spec.model.dtype == "auto":
        return spec.model.model_copy(update={"dtype": "float32"})
    return spec.model


def loaded_dtype(spec: RunSpec, *, on_gpu: bool) -> str:
    """Return the precision of the loaded base weights."""
    dtype = base_model(spec).dtype
    return dtype if dtype != "auto" else ("float32", "bfloat16")[on_gpu]


def emulated_slowdown(spec: RunSpec, device: hardware.Device) -> float:
    """Return how many times as long as in float32 the products of a run take on a device."""
    half = loaded_dtype(spec, on_gpu=False) != "float32"
    emulated = half and device.name == "cpu" and not hardware.has_fast_bfloat16()
    return EMULATED_SLOWDOWN if emulated else 1.0


def emulation_warning(spec: RunSpec) -> str:
    """Return a warning if the processor of this machine emulates a run's precision; else nothing.

    Raises:
        SpecError: This machine does not have the run's devices.
    """
    device = chosen_device(spec.on_this_machine().train.device)
    if spec.train.device == CLUSTER or emulated_slowdown(spec, device) == 1:
        return ""
    return (
        f"This processor has no instructions for {spec.model.dtype}: matrix products take about "
        f"{EMULATED_SLOWDOWN} times as long as in float32. Set model.dtype=auto."
    )


def chosen_device(name: str) -> hardware.Device:
    """Return the device of a run: the first for `auto`, that with least free memory of several."""
    here, names = hardware.devices(), name.split(",")
    named = [device for device in here if device.name in names]
    return min(named, key=lambda device: device.free_bytes, default=here[0])


def sibling_key(spec: RunSpec) -> str | None:
    """Return a key that sibling runs have in common; None for a run that must be alone.

    Alone are runs that train the base itself, use several processes or a cluster, add NEFTune noise
    to the embeddings of every row, find their learning rate, or may retry when out of memory.
    """
    args = spec.train
    apart = (
        not args.together
        or spec.method.trains_base
        or args.may_use_several_processes
        or args.device == CLUSTER
        or args.fsdp
        or args.neftune_noise_alpha > 0
        or args.find_learning_rate
        or args.retry_when_out_of_memory
    )
    if apart:
        return None
    values = spec.model_dump(mode="json")
    shared = {name: values["train"][name] for name in SHARED_TRAIN}
    graphs = args.loss == "grpo"  # with which the base decodes then, a little differently
    return json.dumps([values["model"], values["data"], shared, graphs], sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """Adapters below the trained one and in its reference, and the one that the run began with."""

    frozen: tuple[tuple[str, float], ...] = ()
    reference: tuple[tuple[str, float], ...] = ()
    parent: library.StoredAdapter | None = None
    stacked: bool = False

    def passport(self, folder: Path) -> dict[str, Any]:
        """Return the line of descent as the passport of an adapter published in a folder has it."""
        if self.parent is None:
            return {"parents": []}
        line = lineage(self.parent, stacked=self.stacked, folder=folder)
        return {"parents": [self.parent.name], "lineage": line}


def resolved(spec: RunSpec, home: Home, known: ModelFacts) -> RunSpec:
    """Return the spec with the folder of the adapter to start from, and its method if it goes on.

    Raises:
        AdapterError: There is no such adapter, or it was made for another base.
        MethodError: The run trains another method.
    """
    if not spec.train.init_adapter:
        return spec
    if spec.train.device == CLUSTER:
        raise SpecError(
            "train.init_adapter is on this machine, and the run on the cluster: train it here, or "
            "merge that adapter into a base first (studio merge).", field="train.init_adapter",
        )  # fmt: skip
    if _is_to_come(Path(spec.train.init_adapter), home):
        return spec
    parent = library.describe(library.resolve(home, spec.train.init_adapter))
    spec = spec.with_parts(train={"init_adapter": str(parent.path)})
    _check(spec, parent, known)
    if spec.train.init_mode == "stack":
        return spec
    return spec.model_copy(update={"method": method_of(parent)})


def _is_to_come(folder: Path, home: Home) -> bool:
    """Return True for the adapter of a run that has not ended; it is checked when this one runs."""
    return folder.name == "adapter" and folder.parent.parent == home.runs and not folder.exists()


def method_of(adapter: library.StoredAdapter) -> Method:
    """Return an adapter's method with its settings.

    Raises:
        AdapterError: It cannot be read.
    """
    settings = adapter.section("spec").get("method")
    if isinstance(settings, dict):
        found: Method = named(str(settings.get("name"))).parse(settings)
        return found
    return method_in(adapter.path)


def num_tokens_before(spec: RunSpec) -> int:
    """Return the virtual tokens before each row, those of frozen adapters below included."""
    below = (method_of(one).num_tokens_before for one in below_run(spec))
    return spec.method.num_tokens_before + sum(below)


def attach(
    spec: RunSpec, backbone: Backbone, loaded: Loaded, name: str, example: list[int]
) -> tuple[Adapter, StartingPoint]:
    """Attach what the run trains to a base; `example` is the first row's tokens.

    Raises:
        AdapterError: The adapter to start from is missing, damaged or of another base.
        MethodError: The method does not fit this model.
    """
    args = spec.train
    start, below = StartingPoint(), f"{name}-start"
    if args.init_adapter:
        parent = library.describe(Path(args.init_adapter))
        _check(spec, parent, loaded.facts)
        keeps = args.init_mode == "stack"
        older = {f"{below}-{i}": one.path for i, one in enumerate(frozen_below(parent))}
        wanted = older | ({below: parent.path} if keeps or args.loss != "sft" else {})
        for one, folder in wanted.items():
            backbone.load(one, folder)
        start = StartingPoint(
            frozen=tuple((one, 1.0) for one in (wanted if keeps else older)),
            reference=tuple((one, 1.0) for one in wanted), parent=parent, stacked=keeps,
        )  # fmt: skip
        if not keeps:
            return backbone.load(name, parent.path), start
    tokenizer = loaded.tokenizer
    adapter = backbone.attach(
        name, spec.method, seed=spec.seed,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        example=example,
    )  # fmt: skip
    return adapter, start


def _check(spec: RunSpec, parent: library.StoredAdapter, known: ModelFacts) -> None:
    if parent.is_model:
        raise AdapterError(
            f'"{parent.name}" is a whole model, from full fine-tuning: choose {parent.path} as '
            "model.path instead of train.init_adapter."
        )
    if spec.method.trains_base:
        raise MethodError(
            "Full fine-tuning trains the base and cannot start from an adapter: merge "
            f'"{parent.name}" into the base first (studio merge), or use an adapter method.'
        )
    if base_fingerprint(parent) not in ("", known.fingerprint):
        raise AdapterError(
            f'"{parent.name}" was made for {parent.base or "another base"}, not for '
            f"{spec.model.path}: choose that base, or another train.init_adapter."
        )
    frozen_below(parent)  # raises where one is missing
    if spec.train.init_mode == "continue" and (own := method_of(parent)).name != spec.method.name:
        raise MethodError(
            f'"{parent.name}" is {own.title}, which train.init_mode=continue trains further: set '
            f"method.name={own.name}, or train.init_mode=stack for a fresh adapter on top."
        )

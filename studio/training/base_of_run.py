"""Decide on the base of a run: the precision it is loaded in, and which runs share one (no torch).

Runs of one `sibling_key` share base, device and data; method, optimizer, schedule, batch size,
seed, steps and intervals are each run's own.
"""

from __future__ import annotations

import json

from studio import hardware
from studio.device_setting import CLUSTER
from studio.models.find_model import ModelFacts
from studio.spec import ModelSource, RunSpec

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
    return json.dumps([values["model"], values["data"], shared], sort_keys=True)

"""Estimate what fits on a device: full, LoRA and QLoRA training, from a configuration alone.

One row a step of that length, all of it trained: the least that such a run needs.
Without a configuration the sizes of a usual decoder with as many parameters are taken.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from studio import hardware
from studio.models.find_model import ModelFacts, facts_of_config, text_part
from studio.spec import RunSpec
from studio.training.base_of_run import keeps_bfloat16
from studio.training.estimate_memory_and_time import memory
from studio.training.sizes_for_estimates import BatchLoad, Shape, shape_of

LENGTHS = (512, 2048, 8192)
WAYS = ("full", "lora", "qlora")
EASY, MOST = 0.8, 0.95
"""Shares of a device's memory: up to the first a run fits, up to the second it is tight."""
State = Literal["fits", "tight", "no", "short"]


class Fit(NamedTuple):
    """One way at one length: the bytes that it needs, and if they are there.

    `tight` also stands for what fits only with gradient checkpointing; `short` for a length beyond
    the model's context.
    """

    tokens: int
    bytes: int
    state: State


def fits(
    config: dict[str, Any], parameters: int, device: hardware.Device, *, weights_dtype: str = "BF16"
) -> dict[str, list[Fit]]:
    """Return what each way of training needs on a device, at each of `LENGTHS`.

    Raises:
        ModelError: The configuration is of a model that cannot be trained here.
    """
    lasting = replace(device, free_bytes=device.total_bytes, utilization=None)
    return _remembered(json.dumps(config, sort_keys=True), parameters, weights_dtype, lasting)


@lru_cache(maxsize=2048)
def _remembered(
    text: str, parameters: int, weights_dtype: str, device: hardware.Device
) -> dict[str, list[Fit]]:
    """Return the fits of a configuration; a page asks for those of all its models each time."""
    config = json.loads(text)
    config = config if has_sizes(config) else usual_config(parameters) | config
    known = facts_of_config(
        config, Path("model"), parameters=parameters, weights_dtype=weights_dtype
    )
    shape = shape_of(config, known)
    return {way: _fits(way, shape, known, device) for way in WAYS}


def has_sizes(config: dict[str, Any]) -> bool:
    """Return True if a configuration holds the sizes of its layers."""
    text = text_part(config)
    return any(name in text for name in ("hidden_size", "n_embd", "d_model"))


def usual_config(parameters: int) -> dict[str, Any]:
    """Return the sizes of a usual decoder with about as many parameters.

    Layers of 12 D² weights, as many as D / 100, and a tied vocabulary of 150,000.
    """
    hidden = 128
    while 0.12 * (hidden + 128) ** 3 + 150_000 * (hidden + 128) <= parameters:
        hidden += 128
    layers = max(2, round((parameters - 150_000 * hidden) / (12 * hidden**2)))
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256), "intermediate_size": hidden * 3,
        "vocab_size": 150_000, "max_position_embeddings": 131_072, "tie_word_embeddings": True,
    }  # fmt: skip


def _fits(way: str, shape: Shape, known: ModelFacts, device: hardware.Device) -> list[Fit]:
    plain, lean = _specs(way, device.name, "auto")
    on_apple = device.name == "mps" and way != "full" and hardware.apple_has_bfloat16()
    if on_apple or (device.name == "cpu" and keeps_bfloat16(plain, known)):
        plain, lean = _specs(way, device.name, "bfloat16")
    found = []
    for length in LENGTHS:
        if known.context_length < length:
            found.append(Fit(length, 0, "short"))
            continue
        needed = _needed(plain, shape, known, device, length)
        state: State = "fits"
        if needed > EASY * device.total_bytes:
            needed = _needed(lean, shape, known, device, length)
            state = "tight" if needed <= MOST * device.total_bytes else "no"
        found.append(Fit(length, needed, state))
    return found


@cache
def _specs(way: str, device: str, dtype: str) -> tuple[RunSpec, RunSpec]:
    """Return a run without and with gradient checkpointing."""
    method = {"name": way} if way == "full" else {"name": way, "r": 16}
    model = {"dtype": dtype}
    plain, lean = (
        RunSpec.parse(
            {"method": method, "model": model,
             "train": {"device": device, "gradient_checkpointing": checkpointing}}
        )
        for checkpointing in (False, True)
    )  # fmt: skip
    return plain, lean


def _needed(
    spec: RunSpec, shape: Shape, known: ModelFacts, device: hardware.Device, length: int
) -> int:
    load = BatchLoad(tokens=length, targets=length, step_tokens=length, step_targets=length,
                     share_tokens=length, share_targets=length)  # fmt: skip
    return sum(memory(spec, shape, known, load, device).values())

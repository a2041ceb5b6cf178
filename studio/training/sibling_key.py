"""Decide which runs may train together on one base model (no torch).

Runs of one key share base, device and data; method, optimizer, schedule, batch size, seed, steps
and intervals are each run's own.
"""

from __future__ import annotations

import json

from studio.device_setting import CLUSTER
from studio.spec import RunSpec

SHARED_TRAIN = (  # of the base, or of the whole process
    "device", "gradient_checkpointing", "activation_offloading", "attn_implementation", "tf32",
    "triton_kernels",
)  # fmt: skip


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

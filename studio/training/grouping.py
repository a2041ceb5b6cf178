"""Which runs may train together on one resident base. Pure and without torch: the queue asks.

Runs of one key share the base, its place and the data; everything else (method, rank, rate,
optimizer, schedule, batch, seed, steps, cadences) is each run's own.
"""

from __future__ import annotations

import json

from studio.cluster import DEVICE
from studio.methods import Phase
from studio.spec import RunSpec

SHARED_TRAIN = (
    "device", "gradient_checkpointing", "activation_offloading", "attn_implementation"
)  # fmt: skip


def kinship(spec: RunSpec) -> str | None:
    """Return what siblings have in common; None for a run that must be alone.

    Alone are runs that train the base itself, that are spread over processes or sent to a cluster,
    that put noise on the embeddings of every row, and that may have to start again smaller.
    """
    args = spec.train
    apart = (
        not args.together
        or spec.method.phase is Phase.WEIGHTS
        or args.may_use_several_processes
        or args.device == DEVICE
        or args.fsdp
        or args.neftune_noise_alpha > 0
        or args.retry_when_out_of_memory
    )
    if apart:
        return None
    values = spec.model_dump(mode="json")
    shared = {name: values["train"][name] for name in SHARED_TRAIN}
    return json.dumps([values["model"], values["data"], shared], sort_keys=True)

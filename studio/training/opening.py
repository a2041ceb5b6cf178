"""Open a session: a fresh adapter on a loaded base, and everything ready for the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from studio import hardware
from studio.errors import SpecError
from studio.training.checkpoint import Origin, Progress
from studio.training.memory import (
    give_back_freed_memory,
    keep_few_kernels,
    reuse_freed_memory,
)
from studio.training.noise import Noise
from studio.training.optimizer import make_optimizer
from studio.training.schedule import plan_run
from studio.training.session import NAME, Session
from studio.training.sharding import share_base

if TYPE_CHECKING:
    from studio.data.prepare import Prepared
    from studio.methods.layer import Backbone
    from studio.models.loading import Loaded
    from studio.spec import RunSpec


def open_session(
    spec: RunSpec,
    *,
    loaded: Loaded,
    prepared: Prepared,
    backbone: Backbone | None = None,
    name: str = NAME,
) -> Session:
    """Attach a fresh adapter to a loaded base and get everything ready for the first step.

    Args:
        spec: The run.
        loaded: The base.
        prepared: The rows.
        backbone: The base as siblings have it; a fresh one when the run is alone.
        name: What the adapter is called on it.

    Raises:
        MethodError: The method does not fit this model.
        SpecError: A setting is not possible on this device.
    """
    from accelerate import Accelerator

    from studio.methods.layer import Backbone as NewBackbone

    torch.set_num_threads(hardware.threads())  # a team's members have a share each
    keep_few_kernels()
    _ = give_back_freed_memory() if spec.train.fsdp else reuse_freed_memory()
    backbone = backbone or NewBackbone(loaded.model)
    if spec.train.fsdp:
        share_base(backbone, loaded.device)
    adapter = backbone.attach(
        name,
        spec.method,
        seed=spec.seed,
        tokenize=lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"],
    )
    backbone.use([(name, 1.0)])
    parameters = backbone.train(name)
    if spec.train.gradient_checkpointing:
        backbone.checkpointing(True, offload=_offloads(spec, loaded))
    backbone.attend(_attention(spec, loaded, backbone.anatomy.head_dim))
    alpha = spec.train.neftune_noise_alpha
    plan = plan_run(spec, num_rows=len(prepared.train), hidden_size=backbone.anatomy.hidden_size)
    return Session(
        spec=spec,
        plan=plan,
        loaded=loaded,
        backbone=backbone,
        adapter=adapter,
        prepared=prepared,
        optimizer=make_optimizer(adapter.named_parameters(), spec.train),
        accelerator=Accelerator(cpu=loaded.device.type == "cpu"),
        progress=Progress(),
        origin=Origin(
            data_hash=prepared.data_hash,
            base_fingerprint=loaded.facts.fingerprint,
            total_steps=plan.total_steps,
        ),
        name=name,
        parameters=parameters,
        noise=Noise(backbone, adapter, alpha) if alpha else None,
    )


def _offloads(spec: RunSpec, loaded: Loaded) -> bool:
    """Return whether layers' inputs go to main memory; on a CPU they are there."""
    asked = spec.train.activation_offloading
    if asked and loaded.device.type != "cuda":
        raise SpecError(
            "train.activation_offloading moves activations from a GPU to main memory, and this run "
            f"is on {loaded.device}: set it to false.", field="train.activation_offloading",
        )  # fmt: skip
    return asked


def _attention(spec: RunSpec, loaded: Loaded, head_dim: int) -> str:
    """Return the attention to take; one that was asked for by name must be possible."""
    from studio.methods.layer.varlen import why_not

    asked = spec.train.attn_implementation
    if asked != "varlen":
        return asked
    config = loaded.model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    why = why_not(loaded.device, loaded.dtype, head_dim, capped=capped)
    if not (why or spec.train.packing):
        why = "it attends packed rows: set train.packing=true"
    if why:
        raise SpecError(
            f"train.attn_implementation=varlen is not possible: {why}. auto takes the fastest that "
            "is.", field="train.attn_implementation",
        )  # fmt: skip
    return asked

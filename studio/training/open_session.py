"""Open a training session: attach what the run trains to a loaded base, make plan and optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from studio import hardware
from studio.backbone import Backbone
from studio.backbone.attention_kernels import varlen_unavailable
from studio.data.prepare_run_data import prepare
from studio.errors import SpecError
from studio.training.allocator_and_threads import (
    give_back_freed_memory,
    keep_few_kernels,
    reuse_freed_memory,
)
from studio.training.batching import Neftune
from studio.training.checkpoint import CheckpointOrigin, RunProgress
from studio.training.distributed import check_saved_modules, shard_base
from studio.training.grpo_rollouts import Rollouts
from studio.training.optimizer import make_optimizer
from studio.training.preference_loss import Preference
from studio.training.starting_adapter import attach, num_tokens_before
from studio.training.steps_and_learning_rate import plan_run
from studio.training.training_session import NAME, Session

if TYPE_CHECKING:
    from studio.data.prepare_run_data import Prepared
    from studio.home import Home
    from studio.models.loading import Loaded
    from studio.spec import RunSpec


def prepare_data(spec: RunSpec, loaded: Loaded, home: Home) -> Prepared:
    """Return the run's tokenised rows, cut to the context that the method leaves."""
    context_length = loaded.facts.context_length - num_tokens_before(spec)
    return prepare(
        spec.data, loaded.tokenizer, context_length=max(1, context_length), seed=spec.seed,
        home=home, rows=spec.train.rows,
    )  # fmt: skip


def open_session(
    spec: RunSpec, *, loaded: Loaded, prepared: Prepared, backbone: Backbone | None = None,
    name: str = NAME,
) -> Session:  # fmt: skip
    """Attach a fresh adapter to a loaded base and return the session before its first step.

    Args:
        spec: The run.
        loaded: The base.
        prepared: The rows.
        backbone: The base as shared with sibling runs; a new one by default.
        name: Name of the adapter on the backbone.

    Raises:
        MethodError: The method does not fit this model.
        SpecError: A setting is not possible on this device.
    """
    from accelerate import Accelerator

    torch.set_num_threads(hardware.threads())  # CPU ranks have a part of the threads each
    keep_few_kernels()
    if loaded.device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if spec.train.tf32 else "ieee"
    _ = give_back_freed_memory() if spec.train.fsdp else reuse_freed_memory()
    backbone = backbone or Backbone(loaded.model)
    if spec.train.fsdp:
        shard_base(backbone, loaded.device)
        check_saved_modules(backbone, spec.method)
    adapter, start = attach(spec, backbone, loaded, name, prepared.train[0].input_ids.tolist())
    parameters = backbone.train(name)
    if spec.train.activation_offloading and loaded.device.type != "cuda":
        raise SpecError(
            "train.activation_offloading moves activations from a GPU to main memory, and this run "
            f"is on {loaded.device}: set it to false.", field="train.activation_offloading",
        )  # fmt: skip
    if spec.train.gradient_checkpointing:
        backbone.checkpointing(True, offload=spec.train.activation_offloading)
    backbone.set_attention(_attention(spec, loaded, backbone))
    alpha = spec.train.neftune_noise_alpha
    num_rows = len(prepared.train) // prepared.rows_per_example
    plan = plan_run(
        spec, num_rows=num_rows, hidden_size=backbone.anatomy.hidden_size,
        num_held_out=len(prepared.validation) // prepared.rows_per_example,
    )  # fmt: skip
    session = Session(
        spec=spec, plan=plan, loaded=loaded, backbone=backbone, adapter=adapter, prepared=prepared,
        optimizer=make_optimizer(adapter.named_parameters(), spec.train, adapter.beside.keys()),
        accelerator=Accelerator(cpu=loaded.device.type == "cpu"), progress=RunProgress(),
        origin=CheckpointOrigin(
            data_hash=prepared.data_hash, base_fingerprint=loaded.facts.fingerprint,
            total_steps=plan.total_steps, learning_rate=plan.learning_rate,
        ),
        name=name, parameters=parameters, start=start,
        neftune=Neftune(backbone, adapter, alpha) if alpha else None,
    )  # fmt: skip
    session.activate()
    if spec.train.loss != "sft":
        session.preference = (Rollouts if spec.train.loss == "grpo" else Preference)(session)
    return session


def _attention(spec: RunSpec, loaded: Loaded, backbone: Backbone) -> str:
    """Return the attention kernel; one that is named must be possible on this device."""
    name = spec.train.attn_implementation
    if name != "varlen":
        return name
    config = loaded.model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    sizes = backbone.anatomy.head_sizes or {0}
    whys = [varlen_unavailable(loaded.device, loaded.dtype, s, capped=capped) for s in sizes]
    why = next(filter(None, whys), "")
    if not (why or spec.train.packing):
        why = "it attends packed rows: set train.packing=true"
    if why:
        raise SpecError(
            f"train.attn_implementation=varlen is not possible: {why}. auto selects the fastest "
            "kernel that is.", field="train.attn_implementation",
        )  # fmt: skip
    return name

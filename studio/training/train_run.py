"""Train a spec to an adapter on disk: load, find the rate, open a session, run the loop, retry.

`train` yields the events of a run. Errors leave as `StudioError`s. It knows no queue and no screen.
`open_session` attaches what a run trains to a loaded base, and makes its plan and optimizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from studio import atomic, hardware
from studio.backbone import Backbone
from studio.backbone.attention_kernels import varlen_unavailable
from studio.backbone.experts import not_adapted
from studio.data.prepare_run_data import prepare
from studio.errors import Diverged, InputError, OutOfMemory, SpecError
from studio.evaluation.forgetting import general_set_of
from studio.home import Home
from studio.job_request import Control
from studio.models.loading import load
from studio.spec import RunSpec
from studio.training import checkpoint, kernel_check, objectives
from studio.training.allocator_and_threads import (
    give_back_freed_memory,
    keep_few_kernels,
    reuse_freed_memory,
    trim,
)
from studio.training.base_check import check_base
from studio.training.batching import Neftune
from studio.training.checkpoint import CheckpointOrigin, RunProgress
from studio.training.distributed import (
    check_saved_modules,
    check_sharding,
    shard_base,
    train_distributed,
)
from studio.training.explain_errors import explain_errors
from studio.training.fit_in_memory import retry_changes, retry_text
from studio.training.grpo_rollouts import Rollouts
from studio.training.optimizer import make_optimizer
from studio.training.preference_loss import Preference
from studio.training.starting_point import attach, base_model, num_tokens_before
from studio.training.steps_and_learning_rate import FACTORS, learning_rate, plan_run, trial_steps
from studio.training.training_events import Event, Loading
from studio.training.training_loop import already_finished, run
from studio.training.training_session import NAME, ExpertBalance, Session, evaluated

if TYPE_CHECKING:
    from studio.data.prepare_run_data import Prepared
    from studio.models.loading import Loaded

TRIAL, TRIALS = "trial", "learning_rate_trials.json"


def train(
    spec: RunSpec, *, run_dir: Path, home: Home, control: Control = lambda: None,
    in_process_group: bool = False,
) -> Iterator[Event]:  # fmt: skip
    """Train as the spec says, resuming from the newest intact checkpoint in `run_dir`.

    Args:
        run_dir: Folder of checkpoints, adapter and report.
        control: Called after every step; "save" saves a checkpoint, "stop" saves one and ends the
            run, "sample" answers the sample prompts.
        in_process_group: This process is one of the run's ranks already.

    Raises:
        StudioError: The run failed; what it saved before is intact.
    """
    if not in_process_group and spec.train.may_use_several_processes:
        spec = spec.on_this_machine()
    failed: OutOfMemory | None = None
    while True:
        try:
            yield from _train(
                spec, run_dir=run_dir, home=home, control=control, in_process_group=in_process_group
            )
            return
        except InputError:
            if failed is not None:  # the remedy is not possible here
                raise failed from None
            raise
        except OutOfMemory as error:
            # Ranks of a group cannot retry alone: who started them all does.
            changes = None if in_process_group else retry_changes(spec, error)
            if changes is None:
                raise
            error.__cause__ = error.__context__ = None  # their frames hold the model
            spec, failed = spec.with_values(changes), error.with_traceback(None)
        trim()
        yield Loading(text=retry_text(changes))


def _train(
    spec: RunSpec, *, run_dir: Path, home: Home, control: Control, in_process_group: bool
) -> Iterator[Event]:
    with explain_errors(spec, lambda: "before the first step"):
        run_dir.mkdir(parents=True, exist_ok=True)
        if (finished := already_finished(run_dir)) is not None:
            yield finished
            return
        if spec.train.num_processes > 1 and not in_process_group:
            yield from train_distributed(spec, run_dir=run_dir, home=home, control=control)
            return
        check_sharding(spec)
        objectives.check(spec)
        objectives.check_held_out(spec, home)
        yield Loading(text="Loading the model")
        loaded = load(base_model(spec), spec.train.device, on_host=spec.train.fsdp)
        backbone = Backbone(loaded.model)
    yield from train_on_base(
        spec, loaded=loaded, backbone=backbone, run_dir=run_dir, home=home, control=control,
        in_process_group=in_process_group,
    )  # fmt: skip


def train_on_base(
    spec: RunSpec, *, loaded: Loaded, backbone: Backbone, run_dir: Path, home: Home,
    control: Control, name: str = NAME, in_process_group: bool = False,
    opened: Callable[[Session], None] = lambda session: None,
) -> Iterator[Event]:  # fmt: skip
    """Train a run on a loaded base, under a name of its own where several share it.

    `opened` gets its session before the first step.
    """
    from studio.chat import captured_decoding

    moment = "before the first step"
    with explain_errors(spec, lambda: moment):
        yield Loading(text="Reading the data")
        with rank_0_first(in_process_group):
            prepared = prepare_data(spec, loaded, home)
        if kernel_check.is_due(spec, loaded, home):
            yield Loading(text="Checking the Triton kernels")
        with rank_0_first(in_process_group):
            text = kernel_check.prepare(spec, loaded, home, lambda: control() == "stop")
        if text:
            yield Loading(text=text)
        if spec.train.find_learning_rate:
            rate = checkpoint.learning_rate(run_dir / "checkpoints") or (
                yield from find_rate(
                    spec, run_dir=run_dir, loaded=loaded, prepared=prepared, backbone=backbone
                )
            )
            spec = spec.with_parts(train={"learning_rate": rate})
        yield Loading(text=f"Attaching {spec.method.title}")
        session = open_session(spec, loaded=loaded, prepared=prepared, backbone=backbone, name=name)
        session.general = general_set_of(spec, loaded, home)
        if spec.train.loss == "grpo":
            captured_decoding.allow(backbone, device=loaded.device, dtype=loaded.dtype, home=home)
        if spec.train.self_test and not spec.train.fsdp:  # a part of a model runs alone
            yield Loading(text="Checking the model")
            with rank_0_first(in_process_group):
                session.self_test = check_base(
                    backbone, loaded, home, quantization=base_model(spec).quantization
                )
        if names := left_out(session):
            yield Loading(text=f"Not adapted (helper matrices, narrower than r): {names}")
        if getattr(loaded.model.config, "is_decoder", True) is False:
            yield Loading(
                text="The model reads in both directions (is_decoder is false in its config.json); "
                "here it is trained to write from left to right"
            )
        opened(session)
        for event in run(session, run_dir=run_dir, control=control):
            moment = f"at step {min(session.progress.step + 1, session.plan.total_steps)}"
            yield event


@contextmanager
def rank_0_first(in_process_group: bool) -> Iterator[None]:
    """Run a block of a training run on rank 0 first: the others find its result in the cache."""
    if not in_process_group:
        yield
        return
    from torch import distributed

    if distributed.get_rank() > 0:
        distributed.barrier()
    yield
    if distributed.get_rank() == 0:
        distributed.barrier()


def prepare_data(spec: RunSpec, loaded: Loaded, home: Home) -> Prepared:
    """Return the run's tokenised rows, cut to the context that the method leaves."""
    context_length = loaded.facts.context_length - num_tokens_before(spec)
    return prepare(
        spec.data, loaded.tokenizer, context_length=max(1, context_length), seed=spec.seed,
        home=home, rows=spec.train.rows,
    )  # fmt: skip


def find_rate(
    spec: RunSpec, *, run_dir: Path, loaded: Loaded, prepared: Prepared, backbone: Backbone
) -> Generator[Event, None, float]:
    """Train trials at four rates, √10 apart around the run's own, and return the best one.

    Each trial is a whole schedule over a quarter of the run's steps with a fresh adapter on the
    base, or the one that the run starts from; both are as before afterwards. A trial that diverges
    loses. The reference of a loss is kept in `run_dir`, like that of the run, and so is the loss of
    each trial: a run that was interrupted or retried repeats none, and keeps its rate.

    Raises:
        SpecError: No row is held out.
    """
    if not len(prepared.validation):
        raise objectives.no_held_out_rows()
    width = backbone.anatomy.hidden_size
    own = learning_rate(spec.train, spec.method, width)
    num_rows = len(prepared.train) // prepared.rows_per_example
    total = plan_run(spec, num_rows=num_rows, hidden_size=width).total_steps
    steps = trial_steps(total)
    weights = backbone.model.named_parameters() if spec.method.trains_base else ()
    kept = [(weight, weight.detach().clone()) for _, weight in weights]
    key, losses = [own, steps, spec.seed, prepared.data_hash], list[float | None]()
    stored = atomic.read_object(run_dir / TRIALS)
    if stored.get("key") == key:
        losses = stored["losses"]
    rates = [own * factor for factor in FACTORS]
    for number, rate in [*enumerate(rates)][len(losses) :]:
        yield Loading(text=f"Learning rate {rate:.2g}: trial {number + 1} of {len(FACTORS)}")
        changes = {
            "learning_rate": rate, "max_steps": steps, "neftune_noise_alpha": 0.0,
            "eval_steps": 1,  # evaluates all held-out rows, not a sample
        }  # fmt: skip
        trial = spec.with_parts(train=changes)
        session = open_session(
            trial, loaded=loaded, prepared=prepared, backbone=backbone, name=TRIAL
        )
        try:
            if session.preference:
                yield from session.preference.prepare_reference(run_dir)
            for _ in range(steps):
                session.step()
            found = session.evaluate()
            loss = -(found.reward or 0.0) if found.eval_loss is None else found.eval_loss
            losses.append(loss if math.isfinite(loss) else None)
        except Diverged:
            losses.append(None)
        finally:
            for name in {TRIAL, *(name for name, _ in session.start.reference)}:
                backbone.detach(name)
            for weight, values in kept:
                weight.data.copy_(values)
        atomic.write(run_dir / TRIALS, json.dumps({"key": key, "losses": losses}))
    ranked = [(math.inf if loss is None else loss, place) for place, loss in enumerate(losses)]
    best = rates[min(ranked)[1]]
    yield Loading(text=f"Learning rate {best:.2g}, the best of {len(FACTORS)}")
    return best


def open_session(
    spec: RunSpec, *, loaded: Loaded, prepared: Prepared, backbone: Backbone | None = None,
    name: str = NAME,
) -> Session:  # fmt: skip
    """Attach a fresh adapter to a loaded base and return the session before its first step.

    `backbone` is the base as shared with sibling runs, `name` that of the adapter on it.

    Raises:
        MethodError: The method does not fit this model.
        SpecError: A setting is not possible on this device.
    """
    from accelerate import Accelerator

    torch.set_num_threads(hardware.threads())  # CPU ranks have a part of the threads each
    keep_few_kernels()
    if loaded.device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if spec.train.tf32 else "ieee"
    (give_back_freed_memory if spec.train.fsdp else reuse_freed_memory)()
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
            evaluated=evaluated(plan, prepared, spec.train.loss),
        ),
        balance=ExpertBalance(backbone.experts), name=name, parameters=parameters, start=start,
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


def left_out(session: Session) -> str:
    """Return the names of linear layers and classes of experts that a group leaves out."""
    method = session.spec.method
    if getattr(method, "target_modules", None) != "all-linear":
        return ""
    anatomy, sites = session.backbone.anatomy, session.adapter.sites
    names = anatomy.left_out(getattr(method, "r", 1))
    return ", ".join([*names, *not_adapted(anatomy.modules.items(), sites)])

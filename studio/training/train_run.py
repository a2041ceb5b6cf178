"""Train a spec to an adapter on disk: load, open a session, run the loop, retry when memory is out.

`train` yields the events of a run. Errors leave as `StudioError`s. It knows no queue and no screen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studio.backbone import Backbone
from studio.backbone.experts import not_adapted
from studio.errors import InputError, OutOfMemory, WeightsTooLarge
from studio.evaluation.forgetting import general_set_of
from studio.home import Home
from studio.job_request import Control
from studio.models.loading import load
from studio.spec import RunSpec
from studio.training import checkpoint, kernel_check, objectives
from studio.training.allocator_and_threads import trim
from studio.training.base_check import check_base
from studio.training.base_of_run import base_model
from studio.training.distributed import check_sharding, train_distributed
from studio.training.learning_rate_search import find_rate
from studio.training.memory_remedies import explain_errors, next_remedy
from studio.training.open_session import open_session, prepare_data
from studio.training.training_events import Event, Loading
from studio.training.training_loop import already_finished, run
from studio.training.training_session import Session


def train(
    spec: RunSpec, *, run_dir: Path, home: Home, control: Control = lambda: None,
    in_process_group: bool = False,
) -> Iterator[Event]:  # fmt: skip
    """Train as the spec says, resuming from the newest intact checkpoint in `run_dir`.

    Args:
        spec: The run.
        run_dir: Folder of checkpoints, adapter and report.
        home: Folder of models and token caches.
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
            helps = not (in_process_group or isinstance(error, WeightsTooLarge))
            changes = next_remedy(spec) if spec.train.retry_when_out_of_memory and helps else None
            if changes is None:
                raise
            error.__cause__ = error.__context__ = None  # their frames hold the model
            spec, failed = spec.with_values(changes), error.with_traceback(None)
        trim()
        listed = ", ".join(f"{field.removeprefix('train.')} {v}" for field, v in changes.items())
        yield Loading(text=f"Out of memory; retrying with {listed}")


def _train(
    spec: RunSpec, *, run_dir: Path, home: Home, control: Control, in_process_group: bool
) -> Iterator[Event]:
    from studio.chat import captured_decoding

    moment = "before the first step"

    with explain_errors(spec, lambda: moment):
        run_dir.mkdir(parents=True, exist_ok=True)
        if (finished := already_finished(run_dir)) is not None:
            yield finished
            return
        if spec.train.num_processes > 1 and not in_process_group:
            yield from train_distributed(spec, run_dir=run_dir, home=home, control=control)
            return
        check_sharding(spec)
        objectives.check(spec)
        yield Loading(text="Loading the model")
        loaded = load(base_model(spec), spec.train.device, on_host=spec.train.fsdp)
        yield Loading(text="Reading the data")
        with rank_0_first(in_process_group):
            prepared = prepare_data(spec, loaded, home)
        if kernel_check.is_due(spec, loaded, home):
            yield Loading(text="Checking the Triton kernels")
        with rank_0_first(in_process_group):
            text = kernel_check.prepare(spec, loaded, home, lambda: control() == "stop")
        if text:
            yield Loading(text=text)
        backbone = Backbone(loaded.model)
        if spec.train.find_learning_rate:
            rate = checkpoint.learning_rate(run_dir / "checkpoints") or (
                yield from find_rate(
                    spec, run_dir=run_dir, loaded=loaded, prepared=prepared, backbone=backbone
                )
            )
            spec = spec.with_parts(train={"learning_rate": rate})
        yield Loading(text=f"Attaching {spec.method.title}")
        session = open_session(spec, loaded=loaded, prepared=prepared, backbone=backbone)
        session.general = general_set_of(spec, loaded, home)
        if spec.train.loss == "grpo":
            captured_decoding.allow(backbone, device=loaded.device, dtype=loaded.dtype, home=home)
        if spec.train.self_test and not spec.train.fsdp:  # a part of a model runs alone
            yield Loading(text="Checking the model")
            with rank_0_first(in_process_group):
                session.self_test = check_base(
                    session.backbone, loaded, home, quantization=base_model(spec).quantization
                )
        if names := left_out(session):
            yield Loading(text=f"Not adapted (helper matrices, narrower than r): {names}")
        if getattr(loaded.model.config, "is_decoder", True) is False:
            yield Loading(
                text="The model reads in both directions (is_decoder is false in its config.json); "
                "here it is trained to write from left to right"
            )
        for event in run(session, run_dir=run_dir, control=control):
            moment = f"at step {min(session.progress.step + 1, session.plan.total_steps)}"
            yield event


def left_out(session: Session) -> str:
    """Return the names of linear layers and classes of experts that a group leaves out."""
    method = session.spec.method
    if getattr(method, "target_modules", None) != "all-linear":
        return ""
    anatomy, sites = session.backbone.anatomy, session.adapter.sites
    names = anatomy.left_out(getattr(method, "r", 1))
    return ", ".join([*names, *not_adapted(anatomy.modules.items(), sites)])


@contextmanager
def rank_0_first(in_process_group: bool) -> Iterator[None]:
    """Run a block on rank 0 first, so that the other ranks find its result in the cache."""
    if not in_process_group:
        yield
        return
    from torch import distributed

    if distributed.get_rank() > 0:
        distributed.barrier()
    yield
    if distributed.get_rank() == 0:
        distributed.barrier()

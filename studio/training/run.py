"""One call from a spec to an adapter on disk: `train(spec, ...)` yields what happens.

It loads the model and the data, opens the session and hands over to the loop. Errors leave as
`StudioError`s of one sentence. It knows no queue and no screen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studio.errors import OutOfMemory, WeightsTooLarge
from studio.home import Home
from studio.spec import RunSpec
from studio.training import distributed as sharding
from studio.training.distributed import train_in_team
from studio.training.estimate import base_of
from studio.training.events import Event, Loading
from studio.training.loop import Control, Wish

__all__ = ["Control", "Wish", "train"]


def _never() -> Wish:
    return None


def train(
    spec: RunSpec,
    *,
    run_dir: Path,
    home: Home,
    control: Control = _never,
    in_team: bool = False,
) -> Iterator[Event]:
    """Train as the spec says, resuming by itself from the newest whole checkpoint in `run_dir`.

    Args:
        spec: Everything that decides the run.
        run_dir: Where checkpoints, adapter and report go.
        home: Where models and token caches live.
        control: Asked after every step; "save" makes a checkpoint, "stop" one and ends, "sample"
            answers the fixed prompts.
        in_team: This process is already one of `spec.train.num_processes`.

    Raises:
        StudioError: One sentence; what was saved before is intact.
    """
    from studio.training.remedies import smaller

    if not in_team and spec.train.may_use_several_processes:
        spec = spec.on_this_machine()
    while True:
        try:
            yield from _train(spec, run_dir=run_dir, home=home, control=control, in_team=in_team)
            return
        except OutOfMemory as error:
            alone = spec.train.num_processes == 1
            helps = alone and not isinstance(error, WeightsTooLarge)
            changes = smaller(spec) if spec.train.retry_when_out_of_memory and helps else None
            if changes is None:
                raise
            spec = spec.with_values(changes)
        _free_memory()
        told = ", ".join(f"{field.removeprefix('train.')} {v}" for field, v in changes.items())
        yield Loading(text=f"Memory ran out; going on with {told}")


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(
    spec: RunSpec, *, run_dir: Path, home: Home, control: Control, in_team: bool
) -> Iterator[Event]:
    from studio.data.prepare import prepare
    from studio.models.loading import load
    from studio.training import loop
    from studio.training.remedies import explained
    from studio.training.session import open_session

    moment = "before the first step"

    with explained(spec, lambda: moment):
        run_dir.mkdir(parents=True, exist_ok=True)
        if (finished := loop.already_finished(run_dir)) is not None:
            yield finished
            return
        if spec.train.num_processes > 1 and not in_team:
            yield from train_in_team(spec, run_dir=run_dir, home=home, control=control)
            return
        sharding.checked(spec)
        yield Loading(text="Loading the model")
        loaded = load(base_of(spec), spec.train.device, on_host=spec.train.fsdp)
        yield Loading(text="Reading the data")
        with leader_first(in_team):
            prepared = prepare(
                spec.data,
                loaded.tokenizer,
                context_length=max(1, loaded.facts.context_length - spec.method.num_tokens_before),
                seed=spec.seed,
                home=home,
            )
        yield Loading(text=f"Placing {spec.method.title}")
        session = open_session(spec, loaded=loaded, prepared=prepared)
        for event in loop.run(session, run_dir=run_dir, control=control):
            moment = f"at step {session.progress.step + 1}"
            yield event


@contextmanager
def leader_first(in_team: bool) -> Iterator[None]:
    """Let a team's first member do it alone, so that the others find it in the cache."""
    if not in_team:
        yield
        return
    from torch import distributed

    if distributed.get_rank() > 0:
        distributed.barrier()
    yield
    if distributed.get_rank() == 0:
        distributed.barrier()

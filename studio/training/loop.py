"""The loop, top to bottom: resume, step, evaluate, save, stop, finish. A generator of events.

Stopping and progress are plain consumption: whoever reads the events decides what to do with them,
and says through `control` what it wants after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from studio.training import checkpoint, outcome
from studio.training.events import Event, Finished, Saved, Saving
from studio.training.film import Film
from studio.training.session import Session

Wish = Literal["stop", "save", "sample"] | None
Control = Callable[[], Wish]


def run(session: Session, *, run_dir: Path, control: Control) -> Iterator[Event]:
    """Train to the end of the plan, or until `control` says stop."""
    plan, folder = session.plan, run_dir / "checkpoints"
    if (whole := checkpoint.newest(folder)) is not None:
        session.resume(whole)
    yield session.started()
    film = Film(session)
    if session.looks and session.progress.step == 0 and plan.eval_every <= plan.total_steps:
        yield from film.shoot()
    while session.progress.step < plan.total_steps and not session.gave_up:
        yield session.step()
        step = session.progress.step
        last, wish = step == plan.total_steps, session.agreed(control())
        due = step % plan.eval_every == 0 or (last and plan.eval_every <= plan.total_steps)
        if due and session.looks:
            if session.prepared.validation:
                yield session.evaluate()
            yield from film.shoot(read=last)
        elif wish == "sample":
            yield from film.shoot(read=True)
        if not session.leads:
            if wish == "stop" and not last:
                return
            continue
        better = session.keeps_best and session.progress.best_step == step
        if step % plan.save_every == 0 or better or (wish in ("stop", "save") and not last):
            yield Saving(step=step)
            path = session.save(folder)
            yield Saved(step=step, path=str(path), eval_loss=session.progress.eval_loss)
        if wish == "stop" and not last:
            yield _finished(session, reason="stopped", adapter=None)
            return
    if session.leads:
        yield Saving(step=session.progress.step)
        note = session.go_back_to_best(folder)
        yield _publish(session, run_dir, note)


def _publish(session: Session, run_dir: Path, note: str) -> Finished:
    path = outcome.publish_adapter(
        run_dir,
        name=session.name,
        backbone=session.backbone,
        spec=session.spec,
        base=session.loaded.facts,
        prepared=session.prepared,
        progress=session.progress,
        tokenizer=session.loaded.tokenizer,
    )
    finished = _finished(session, reason="completed", adapter=str(path), note=note)
    progress = session.progress
    outcome.write_report(
        run_dir,
        finished,
        {
            "total_steps": session.plan.total_steps,
            "learning_rate": session.plan.learning_rate,
            "tokens": progress.tokens,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
            "memory_bytes": session.memory_bytes(),
            "device": str(session.loaded.device),
            "dtype": str(session.loaded.dtype).removeprefix("torch."),
            "attention": session.backbone.attends,
            "trainable_parameters": session.adapter.num_parameters,
            "evaluations": progress.evaluations,
            "rows": session.prepared.report.model_dump(mode="json"),
            "versions": outcome.versions(),
        },
    )
    return finished


def _finished(
    session: Session,
    *,
    reason: Literal["completed", "stopped"],
    adapter: str | None,
    note: str = "",
) -> Finished:
    session.note_time()
    progress = session.progress
    return Finished(
        step=progress.step,
        reason=reason,
        adapter=adapter,
        first_loss=progress.first_loss,
        last_loss=progress.last_loss,
        eval_loss=progress.eval_loss,
        seconds=progress.seconds,
        note=note,
    )

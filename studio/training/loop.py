"""The training loop, top to bottom: resume, step, evaluate, save, stop, publish.

The report is written last and whole: a run folder with a report is a run that is over.

Stopping and progress are plain consumption: whoever reads the events decides what to do with them,
and says through `control` what it wants after each step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.home import is_whole, publishing, sweep
from studio.methods import Phase
from studio.spec import RunSpec
from studio.training import checkpoint
from studio.training.checkpoint import Progress
from studio.training.events import Event, Finished, Saved, Saving
from studio.training.samples import Film
from studio.training.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from studio.backbone import Backbone
    from studio.data.prepare import Prepared
    from studio.models.sources import ModelFacts


PASSPORT, REPORT = "passport.json", "report.json"
LIBRARIES = ("adapter-studio", "torch", "transformers", "accelerate", "safetensors")


def publish_adapter(
    run_dir: Path,
    *,
    name: str,
    backbone: Backbone,
    spec: RunSpec,
    base: ModelFacts,
    prepared: Prepared,
    progress: Progress,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """Write `run_dir/adapter` whole: PEFT's two files (after full fine-tuning a model folder with
    its tokenizer) and the passport."""
    target = run_dir / "adapter"
    passport = {
        "name": spec.name or run_dir.name,
        "spec": spec.model_dump(mode="json"),
        "base": {"path": spec.model.path, "fingerprint": base.fingerprint},
        "data": {
            "path": spec.data.path,
            "hash": prepared.data_hash,
            "template": prepared.template,
        },
        "versions": versions(),
        "seed": spec.seed,
        "ended": "completed",
        "steps": progress.step,
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "eval_loss": progress.eval_loss,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parents": [],
    }
    with publishing(target) as temporary:
        backbone.save(name, temporary, base=str(spec.model.path))
        if spec.method.phase is Phase.WEIGHTS:
            tokenizer.save_pretrained(temporary)
        (temporary / PASSPORT).write_text(json.dumps(passport, indent=1, ensure_ascii=False))
    return target


def write_report(run_dir: Path, finished: Finished, extra: dict[str, Any]) -> None:
    """Write `report.json` in one rename."""
    values = {**finished.as_dict(), **extra}
    temporary = run_dir / f".{REPORT}-{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run_dir / REPORT)


def already_finished(run_dir: Path) -> Finished | None:
    """Return how a run ended if it is over and its adapter is whole."""
    sweep(run_dir)
    adapter = run_dir / "adapter"
    try:
        report = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if report.get("reason") != "completed" or not is_whole(adapter):
        return None
    fields = ("step", "reason", "first_loss", "last_loss", "eval_loss", "seconds")
    return Finished(adapter=str(adapter), **{name: report[name] for name in fields})


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a result."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = ""
    return found


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
    path = publish_adapter(
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
    write_report(
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
            "versions": versions(),
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

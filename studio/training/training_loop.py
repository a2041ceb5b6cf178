"""The training loop, top to bottom: resume, step, evaluate, save, stop, publish.

`run` is a generator of events. Its consumer shows or stores them, and requests a checkpoint,
samples or a stop through `control`, which is called after each step. The report is written last and
in one rename: a run folder with a report belongs to a finished run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studio import atomic
from studio.adapters.library import write_passport
from studio.evaluation.forgetting import RunForgetting
from studio.gpus import installed
from studio.home import is_whole, publishing, sweep
from studio.job_request import Control
from studio.training import checkpoint
from studio.training.allocator_and_threads import threads_of
from studio.training.sample_answers import PromptSampler
from studio.training.training_events import Event, Finished, Loading, Saved, Saving
from studio.training.training_session import Session

REPORT = "report.json"
LIBRARIES = ("adapter-studio", "torch", "transformers", "accelerate", "safetensors")
"""Libraries that influence a result."""


def run(session: Session, *, run_dir: Path, control: Control) -> Iterator[Event]:
    """Train to the end of the plan, or until `control` returns "stop"."""
    plan, folder = session.plan, run_dir / "checkpoints"
    if session.preference:
        yield from session.preference.prepare_reference(run_dir)
    general = RunForgetting(session, run_dir)
    if (newest := checkpoint.newest(folder)) is not None:
        session.resume(newest)
    yield session.started()
    sampler = PromptSampler(session)
    yield sampler.asked()
    threads = threads_of(session.loaded.device, session.accelerator.num_processes)
    if session.evaluates and session.progress.step == 0 and plan.eval_every <= plan.total_steps:
        yield from sampler.sample()
        yield from general.point()
    while session.progress.step < plan.total_steps and not session.stopped_early:
        event = session.step()
        yield event
        if threads and (text := threads.after_step(event.tokens_per_second)):
            yield Loading(step=event.step, text=text)
        step = session.progress.step
        last, command = step == plan.total_steps, session.from_rank_0(control())
        due = step % plan.eval_every == 0 or (last and plan.eval_every <= plan.total_steps)
        if due and session.evaluates:
            if session.prepared.validation:
                yield session.evaluate()
            yield from sampler.sample(full_length=last)
            yield from general.point()
        elif command == "sample":
            yield from sampler.sample(full_length=True)
        if not session.is_rank_0:
            if command == "stop" and not last:
                return
            continue
        best = session.keeps_best and session.progress.best_step == step
        if step % plan.save_every == 0 or best or (command in ("stop", "save") and not last):
            yield Saving(step=step)
            path = session.save(folder)
            yield Saved(step=step, path=str(path), eval_loss=session.progress.eval_loss)
        if command == "stop" and not last:
            yield _finished(session, reason="stopped")
            return
    if session.is_rank_0:
        yield Saving(step=session.progress.step)
        unused = session.balance.warning(
            session.adapter, steps=session.progress.step,
            processes=session.accelerator.num_processes,
        )  # fmt: skip
        note = " ".join(filter(None, (session.restore_best(folder), unused)))
        if session.general:
            yield Loading(step=session.progress.step, text="Measuring forgetting")
        forgetting = general.measure()
        adapter = str(_publish_adapter(session, run_dir, forgetting))
        found = {"forgetting": forgetting, "sources": session.sources()}
        facts = {name: one for name, one in found.items() if one} or None
        finished = _finished(session, adapter=adapter, note=note, facts=facts)
        _write_report(session, run_dir, finished)
        yield finished


def _finished(session: Session, **ending: Any) -> Finished:
    session.update_seconds()
    progress = session.progress
    return Finished(
        step=progress.step, first_loss=progress.first_loss, last_loss=progress.last_loss,
        eval_loss=progress.eval_loss, seconds=progress.seconds, **ending,
    )  # fmt: skip


def _publish_adapter(session: Session, run_dir: Path, forgetting: dict[str, Any] | None) -> Path:
    """Write `run_dir/adapter` in one rename: PEFT's two files and the passport.

    After full fine-tuning it is a model folder with its tokenizer.
    """
    target = run_dir / "adapter"
    spec, progress = session.spec, session.progress
    passport = {
        "name": spec.name or run_dir.name,
        "spec": spec.model_dump(mode="json"),
        "base": {"path": spec.model.path, "fingerprint": session.loaded.facts.fingerprint},
        "data": {"path": spec.data.path, "hash": session.prepared.data_hash,
                 "template": session.prepared.template, "evaluated": session.origin.evaluated},
        "versions": {name: installed(name) for name in LIBRARIES},
        "self_test": session.self_test,
        "seed": spec.seed,
        "ended": "completed",
        "steps": progress.step,
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "eval_loss": progress.eval_loss,
        "eval_score": progress.eval_score,
        "forgetting": forgetting or {},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **session.start.passport(target),
    }  # fmt: skip
    with publishing(target) as temporary:
        session.backbone.save(session.name, temporary, base=str(spec.model.path))
        if spec.method.trains_base:
            session.loaded.tokenizer.save_pretrained(temporary)
        write_passport(temporary, passport)
    return target


def _write_report(session: Session, run_dir: Path, finished: Finished) -> None:
    """Write `report.json` in one rename."""
    progress = session.progress
    report = {
        **finished.as_dict(),
        "total_steps": session.plan.total_steps,
        "learning_rate": session.plan.learning_rate,
        "tokens": progress.tokens,
        "shared_tokens": progress.shared_tokens,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "memory_bytes": session.memory_bytes(),
        "device": str(session.loaded.device),
        "dtype": str(session.loaded.dtype).removeprefix("torch."),
        "attention": session.backbone.attention_kernel,
        "trainable_parameters": session.adapter.num_parameters,
        "expert_parameters": session.adapter.num_expert_parameters,
        "evaluations": progress.evaluations,
        "rows": session.prepared.report.model_dump(mode="json"),
        "versions": {name: installed(name) for name in LIBRARIES},
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    atomic.write(run_dir / REPORT, text, durable=True)


def already_finished(run_dir: Path) -> Finished | None:
    """Return how a run ended if it completed and its adapter is intact, else None."""
    sweep(run_dir)
    adapter = run_dir / "adapter"
    try:
        report = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if report.get("reason") != "completed" or not is_whole(adapter):
        return None
    fields = ("step", "reason", "first_loss", "last_loss", "eval_loss", "seconds", "facts")
    return Finished(adapter=str(adapter), **{name: report.get(name) for name in fields})

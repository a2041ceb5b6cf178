"""Train several runs on one base model in one process: sibling runs of a sweep.

Each run keeps its own session: spec, rows, optimizer, schedule, metrics, checkpoints, and its own
loop (`training_loop.py`), advanced one step at a time in turn. They share the base in memory, its
loading, and forward and backward: where the rows of several runs fit into one pass, they go through
the model together, each row under its own adapter. Large batches gain nothing from that and pass
one after the other, so memory stays that of one run. A run that ends, stops or diverges leaves the
others untouched.

A run's result is the same as alone: bit for bit where it passes alone, up to the order of float
sums (about 1e-6 of the loss) where rows share a pass.

Shapes: `N positions that predict a trained token, D hidden`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from studio.backbone import Backbone
from studio.errors import is_out_of_memory
from studio.home import Home
from studio.job_request import Control
from studio.methods import Phase
from studio.models.loading import Loaded, load
from studio.spec import RunSpec
from studio.training.batching import PackedBatch, PaddedBatch, total_weight
from studio.training.loss import loss_sums
from studio.training.starting_point import base_model
from studio.training.train_run import train_on_base
from studio.training.training_events import Event, Loading, Started, Step
from studio.training.training_loop import already_finished
from studio.training.training_session import Pass, Session, forward_backward

logger = logging.getLogger(__name__)

VIRTUAL = (Phase.KEYS_VALUES, Phase.PROMPT)
PASS_NUMBERS = {"cpu": 1_500_000, "cuda": 64_000_000}
"""Numbers of one residual stream (tokens × width × layers) that may share a pass. On a CPU more
only cost memory; the GPU's figure is a guess (`studio bench siblings`)."""


@dataclass(frozen=True, slots=True)
class Sibling:
    """One of several runs on one base; fields as the arguments of `train`."""

    spec: RunSpec
    run_dir: Path
    control: Control


SiblingEvent = tuple[int, Event | Exception]
"""A run's number and its event; an exception is its end."""


def train_siblings(siblings: Sequence[Sibling], *, home: Home) -> Iterator[SiblingEvent]:
    """Train runs of one `sibling_key` on one base; each resumes from its newest checkpoint.

    Yields each event with its run's number. A run that fails yields its exception and is over; the
    others continue.
    """
    live = list(range(len(siblings)))
    for number in live:
        yield number, Loading(text=f"Loading the model for {len(siblings)} runs")
    try:
        loaded = load(base_model(siblings[0].spec), siblings[0].spec.train.device)
    except Exception as error:
        yield from ((number, error) for number in live)
        return
    group = SiblingGroup(loaded)
    yield from group.interleave({n: group.train(one, home) for n, one in enumerate(siblings)})


class SiblingGroup:
    """The sessions on one base and the passes they share."""

    def __init__(self, loaded: Loaded) -> None:
        self.backbone = Backbone(loaded.model)
        self._loaded = loaded
        self._sessions: list[Session] = []
        self._ready: dict[str, Pass] = {}
        self._seconds: dict[str, float] = {}
        self._ran_out_of_memory = False

    # -- runs ----------------------------------------------------------------------------------

    def train(self, sibling: Sibling, home: Home) -> Iterator[Event]:
        """Train a run beside the others; yield its events."""
        sibling.run_dir.mkdir(parents=True, exist_ok=True)
        if (finished := already_finished(sibling.run_dir)) is not None:
            yield finished
            return
        name = f"sibling-{sibling.run_dir.name}"
        try:
            yield from train_on_base(
                sibling.spec, loaded=self._loaded, backbone=self.backbone, home=home, name=name,
                run_dir=sibling.run_dir, control=sibling.control, opened=self.join,
            )  # fmt: skip
        finally:
            joined = [one for one in self._sessions if one.name == name]
            for session in joined:
                self.leave(session)
            if not joined:  # it failed when it was opened, which freezes the others
                self._detach(name)
                self._train_all()

    def join(self, session: Session) -> None:
        """Let a session on this backbone share passes with the others."""
        session.forward_backward = self.forward_backward
        self._sessions.append(session)
        self._train_all()

    def leave(self, session: Session) -> None:
        """Detach a finished run's adapter from the base."""
        self._sessions.remove(session)
        self._ready.pop(session.name, None)
        self._seconds.pop(session.name, None)
        self._detach(session.name)

    def _train_all(self) -> None:
        """Make the adapters of all runs trainable; drops gradients."""
        self.backbone.train(*(one.name for one in self._sessions))

    def _detach(self, name: str) -> None:
        """Detach a run's adapter, and those below it and in its reference, as far as attached."""
        for one in [*self.backbone.adapters]:
            if one == name or one.startswith(f"{name}-start"):
                self.backbone.detach(one)

    def interleave(self, runs: dict[int, Iterator[Event]]) -> Iterator[SiblingEvent]:
        """Advance every run by one step in turn until all are over.

        All are opened and resume from their checkpoints before one steps: its pass may include the
        others' rows.
        """
        while runs:
            for number in list(runs):
                try:
                    for event in runs[number]:
                        yield number, event
                        if isinstance(event, Started | Step):
                            break
                    else:
                        del runs[number]
                except Exception as error:
                    del runs[number]
                    yield number, error

    # -- passes --------------------------------------------------------------------------------

    def forward_backward(self, session: Session) -> Pass:
        """Run forward and backward of the session's next step, together with its siblings'."""
        if session.name not in self._ready and self._may_share(session):
            try:
                self._shared_pass(session)
            except Exception as error:
                self._recover(error)
        if (passed := self._ready.pop(session.name, None)) is None:
            session.activate()
            passed = forward_backward(session)
            self._seconds[session.name] = passed.seconds
        seconds = sum(self._seconds.get(one.name, 0.0) for one in self._sessions)
        return replace(passed, seconds=seconds)  # a step takes as long as the turn of all runs

    def _recover(self, error: Exception) -> None:
        """After a shared pass failed, let each run pass alone and raise its own error."""
        logger.warning("a shared pass of sibling runs failed, they pass alone", exc_info=error)
        self._ran_out_of_memory |= is_out_of_memory(error)  # it would again
        for one in self._sessions:
            if one.name not in self._ready:
                one.optimizer.zero_grad(set_to_none=True)

    def _shared_pass(self, first: Session) -> None:
        """Run the next step of the session and of the siblings whose rows fit beside its own."""
        started = time.perf_counter()
        members = self._members(first)
        if len(members) == 1:
            return
        batches = {one.name: [_packed(batch) for batch in one.next_batches()] for one in members}
        targets = {name: sum(map(total_weight, own)) or 1.0 for name, own in batches.items()}
        scales = {one.name: one.gradient_scale(targets[one.name]) for one in members}
        losses: dict[str, list[Tensor]] = {one.name: [] for one in members}
        for turn in range(max(map(len, batches.values()))):
            there = [one for one in members if turn < len(batches[one.name])]
            sums = self._loss_sums(there, [batches[one.name][turn] for one in there])
            shares = [loss / targets[one.name] for one, loss in zip(there, sums, strict=True)]
            scaled = [share * scales[one.name] for one, share in zip(there, shares, strict=True)]
            torch.stack(scaled).sum().backward()
            for one, share in zip(there, shares, strict=True):
                losses[one.name].append(share.detach())
        made = {name: Pass(own, losses[name], 0.0, scales[name]) for name, own in batches.items()}
        seconds, tokens = time.perf_counter() - started, sum(p.num_tokens for p in made.values())
        self._seconds |= {name: seconds * p.num_tokens / tokens for name, p in made.items()}
        self._ready |= made

    def _members(self, first: Session) -> list[Session]:
        """Return the session and as many of its siblings as one pass has room for."""
        shape = self.backbone.anatomy
        numbers = PASS_NUMBERS["cuda" if self._loaded.device.type == "cuda" else "cpu"]
        room = numbers // (shape.hidden_size * shape.num_layers) - _tokens(first)
        members = [first]
        for one in self._sessions:
            if one is first or not self._may_share(one) or _is_virtual(one) != _is_virtual(first):
                continue
            ended = one.progress.step >= one.plan.total_steps or one.stopped_early
            if ended or one.name in self._ready or (tokens := _tokens(one)) > room:
                continue
            members.append(one)
            room -= tokens
        return members

    def _may_share(self, session: Session) -> bool:
        """Return True if the run's rows may share a pass: packed, and nothing in it is random.

        Routed experts count the tokens of a pass, which says how one run uses them.
        """
        if self.backbone.experts:
            return False
        random, args = bool(session.spec.method.input_dropout), session.spec.train
        return args.packing and args.loss == "sft" and not random and not self._ran_out_of_memory

    def _loss_sums(
        self, members: Sequence[Session], batches: Sequence[PackedBatch]
    ) -> list[Tensor]:
        """Return each run's summed loss over its own batch, from one pass over all."""
        stacks = [
            one.stack for one, batch in zip(members, batches, strict=True) for _ in batch.lengths
        ]
        if self.backbone.active_for_all is not None or self.backbone.active != stacks:
            self.backbone.use_rows(stacks)
        smoothings = [one.spec.train.label_smoothing_factor for one in members]
        return loss_sums(self.backbone, batches, smoothings)


def _tokens(session: Session) -> int:
    """Return the tokens of the largest micro-batch of the session's next step."""
    rows = session.prepared.train
    return max(sum(len(rows[row].input_ids) for row in batch) for batch in session.next_rows())


def _is_virtual(session: Session) -> bool:
    return session.spec.method.phase in VIRTUAL


def _packed(batch: PackedBatch | PaddedBatch) -> PackedBatch:
    assert isinstance(batch, PackedBatch)
    return batch

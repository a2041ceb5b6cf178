"""Several adapters for the price of one base: sibling runs that train together in one process.

Each run keeps its own session: spec, rows, optimizer, schedule, metrics, checkpoints, and its own
loop (`loop.py`), which is advanced one step at a time in turns. What they share is the base in
memory, the loading, and the passes: where the rows of several runs fit into one pass, they go
through the model together, each row under its own adapter; large batches gain nothing from that
and pass one after the other, so that the memory stays that of one. A run that ends, stops or
diverges leaves the others untouched.

Together or alone, a run's result is the same: bit for bit where it passes alone, up to the order of
float sums (about 1e-6 of the loss) where rows share a pass.

Shapes: `N positions that predict a trained token, D hidden, V vocabulary`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from studio.methods import Phase
from studio.training.batch import Packed, Padded
from studio.training.estimate import base_of
from studio.training.events import Event, Loading, Started, Step
from studio.training.loop import Control
from studio.training.loss import loss_sums
from studio.training.remedies import explained, is_out_of_memory
from studio.training.session import Passed, pass_alone

if TYPE_CHECKING:
    from studio.home import Home
    from studio.models.loading import Loaded
    from studio.spec import RunSpec
    from studio.training.session import Session

logger = logging.getLogger(__name__)

VIRTUAL = (Phase.KEYS_VALUES, Phase.PROMPT)
PASS_NUMBERS = {"cpu": 1_500_000, "cuda": 64_000_000}
"""Numbers of one residual stream (tokens × width × layers) that may go through in one pass. On a
CPU beyond that more rows only cost memory; on a GPU the figure is a guess: `studio bench siblings`.
"""


@dataclass(frozen=True, slots=True)
class Sibling:
    """One of several runs on one base, as `train` takes a single one."""

    spec: RunSpec
    run_dir: Path
    control: Control


Heard = tuple[int, Event | Exception]
"""The number of a sibling, and what happened to it; an exception is its end."""


def train_together(siblings: Sequence[Sibling], *, home: Home) -> Iterator[Heard]:
    """Train runs of one `kinship` on one base; each resumes by itself from its newest checkpoint.

    Yields each event with the number of its run. A run that fails yields its exception and is over;
    the others go on.
    """
    from studio.models.loading import load

    live = list(range(len(siblings)))
    for number in live:
        yield number, Loading(text=f"Loading the model, for {len(siblings)} runs together")
    try:
        loaded = load(base_of(siblings[0].spec), siblings[0].spec.train.device)
    except Exception as error:
        yield from ((number, error) for number in live)
        return
    group = Group(loaded)
    runs: dict[int, Iterator[Event]] = {}
    for number, sibling in enumerate(siblings):
        yield number, Loading(text=f"Placing {sibling.spec.method.title}")
        try:
            runs[number] = group.open(sibling, home)
        except Exception as error:
            yield number, error
    yield from group.take_turns(runs)


class Group:
    """The sessions on one base, and the passes they share."""

    def __init__(self, loaded: Loaded) -> None:
        from studio.backbone import Backbone

        self.backbone = Backbone(loaded.model)
        self._loaded = loaded
        self._sessions: list[Session] = []
        self._ready: dict[str, Passed] = {}
        self._spent: dict[str, float] = {}
        self._cramped = False

    # -- who is there --------------------------------------------------------------------------

    def open(self, sibling: Sibling, home: Home) -> Iterator[Event]:
        """Prepare a run's data, place its adapter, and return its events, none of them taken."""
        from studio.data.prepare import prepare
        from studio.training import loop
        from studio.training.session import open_session

        spec = sibling.spec
        sibling.run_dir.mkdir(parents=True, exist_ok=True)
        if (finished := loop.already_finished(sibling.run_dir)) is not None:
            return iter([finished])
        with explained(spec, lambda: "before the first step"):
            context = self._loaded.facts.context_length - spec.method.num_tokens_before
            prepared = prepare(
                spec.data, self._loaded.tokenizer, context_length=max(1, context),
                seed=spec.seed, home=home,
            )  # fmt: skip
            name = f"sibling-{sibling.run_dir.name}"
            session = open_session(
                spec, loaded=self._loaded, prepared=prepared, backbone=self.backbone, name=name
            )
        self.join(session)
        return self._events(session, loop.run(
            session, run_dir=sibling.run_dir, control=sibling.control
        ))  # fmt: skip

    def join(self, session: Session) -> None:
        """Let a session on this backbone pass together with those that are here."""
        session.passes = self.passes
        self._sessions.append(session)
        self.backbone.train(*(one.name for one in self._sessions))

    def leave(self, session: Session) -> None:
        """Take a run that is over off the base."""
        self._sessions.remove(session)
        self._ready.pop(session.name, None)
        self._spent.pop(session.name, None)
        self.backbone.detach(session.name)

    def take_turns(self, runs: dict[int, Iterator[Event]]) -> Iterator[Heard]:
        """Advance every run by one step at a time until all are over.

        All are back at their checkpoints before one steps: its pass may take the others' along.
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

    def _events(self, session: Session, events: Iterator[Event]) -> Iterator[Event]:

        with contextlib.ExitStack() as stack:
            stack.callback(self.leave, session)
            stack.enter_context(
                explained(session.spec, lambda: f"at step {session.progress.step + 1}")
            )
            yield from events

    # -- their passes --------------------------------------------------------------------------

    def passes(self, session: Session) -> Passed:
        """Return what the session's next passes left, taking those of its siblings with them."""
        if session.name not in self._ready and self._shares(session):
            try:
                self._pass_together(session)
            except Exception as error:
                self._recover(error)
        if (passed := self._ready.pop(session.name, None)) is None:
            session.stage()
            passed = pass_alone(session)
            self._spent[session.name] = passed.seconds
        seconds = sum(self._spent.get(one.name, 0.0) for one in self._sessions)
        return replace(passed, seconds=seconds)  # a step takes as long as the round of all

    def _recover(self, error: Exception) -> None:
        """After a pass together failed, let each of its runs pass alone and meet its own fault."""
        logger.warning("siblings pass alone, their pass together failed", exc_info=error)
        self._cramped = self._cramped or is_out_of_memory(error)  # it would run out again
        for one in self._sessions:
            if one.name not in self._ready:
                one.optimizer.zero_grad(set_to_none=True)

    def _pass_together(self, first: Session) -> None:
        """Make `_ready` what the session and those siblings need whose rows fit beside its own."""
        started = time.perf_counter()
        crew = self._crew(first)
        if len(crew) == 1:
            return
        batches = {one.name: [_packed(batch) for batch in one.next_batches()] for one in crew}
        targets = {name: sum(batch.num_targets for batch in own) for name, own in batches.items()}
        losses: dict[str, list[Tensor]] = {one.name: [] for one in crew}
        for turn in range(max(map(len, batches.values()))):
            there = [one for one in crew if turn < len(batches[one.name])]
            sums = self._loss_sums(there, [batches[one.name][turn] for one in there])
            shares = [
                loss / max(1, targets[one.name]) for one, loss in zip(there, sums, strict=True)
            ]
            torch.stack(shares).sum().backward()
            for one, share in zip(there, shares, strict=True):
                losses[one.name].append(share.detach())
        made = {
            name: Passed(own, [float(loss) for loss in losses[name]], 0.0)
            for name, own in batches.items()
        }
        seconds, tokens = time.perf_counter() - started, sum(p.num_tokens for p in made.values())
        self._spent |= {name: seconds * p.num_tokens / tokens for name, p in made.items()}
        self._ready |= made

    def _crew(self, first: Session) -> list[Session]:
        """The session and its siblings, as many as one pass has room for."""
        shape = self.backbone.anatomy
        numbers = PASS_NUMBERS["cuda" if self._loaded.device.type == "cuda" else "cpu"]
        room = numbers // (shape.hidden_size * shape.num_layers) - _tokens(first)
        crew = [first]
        for one in self._sessions:
            if one is first or not self._shares(one) or _is_virtual(one) != _is_virtual(first):
                continue
            ended = one.progress.step >= one.plan.total_steps or one.gave_up
            if ended or one.name in self._ready or (tokens := _tokens(one)) > room:
                continue
            crew.append(one)
            room -= tokens
        return crew

    def _shares(self, session: Session) -> bool:
        """Whether a run's rows may share a pass: nothing of it is random, and they are packed."""
        random = session.spec.method.drops_inputs
        return session.spec.train.packing and not random and not self._cramped

    def _loss_sums(self, crew: Sequence[Session], batches: Sequence[Packed]) -> list[Tensor]:
        """Return each run's summed loss over its own batch, from one pass over all of them."""
        stacks = [
            ((one.name, 1.0),)
            for one, batch in zip(crew, batches, strict=True)
            for _ in batch.lengths
        ]
        if self.backbone.active_for_all is not None or self.backbone.active != stacks:
            self.backbone.use_rows(stacks)
        smoothings = [one.spec.train.label_smoothing_factor for one in crew]
        return loss_sums(self.backbone, batches, smoothings)


def _tokens(session: Session) -> int:
    """Tokens of the largest micro-batch of a session's next step."""
    rows = session.prepared.train
    batches = session.plan.micro_batches(session.progress.step)
    return max(sum(len(rows[row].input_ids) for row in batch) for batch in batches)


def _is_virtual(session: Session) -> bool:
    return session.spec.method.phase in VIRTUAL


def _packed(batch: Packed | Padded) -> Packed:
    assert isinstance(batch, Packed)
    return batch

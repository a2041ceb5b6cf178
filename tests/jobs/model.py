"""A model of the queue in plain Python, and operations that do the same to it and to the store.

Used by the stateful test and by the random walk; `test_planted_bugs.py` checks that both would
notice a broken store.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from jobs.claims import Claim, Fenced
from jobs.job_queue import JobStore
from jobs.job_record import ACTIVE, LEGAL
from jobs.processes import me
from jobs.run_curves import Progress
from studio.errors import QueueError
from tests.jobs.conftest import take

DEVICES = ("cpu", "cuda:0")
LIMIT = 3


@dataclass
class Expected:
    """What the model believes about one job."""

    state: str = "queued"
    attempt: int = 0
    device: str | None = None
    intent: str | None = None
    registered: bool = False
    tries: int = 0
    resume_step: int = 0


@dataclass
class Queue:
    """The store, the model beside it, and every claim ever given out."""

    store: JobStore
    jobs: dict[int, Expected] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    metrics: dict[tuple[int, int], float] = field(default_factory=dict)
    checked_events: int = 0

    # -- operations: each returns nothing and asserts its own outcome ----------------------------

    def submit(self) -> None:
        job = self.store.submit({"name": ""}).id
        assert job not in self.jobs
        self.jobs[job] = Expected()
        self.order.append(job)

    def claim(self, device: str) -> None:
        busy = any(one.device == device for one in self.jobs.values())
        first = next((job for job in self.order if self.jobs[job].state == "queued"), None)
        claim = take(self.store, device)
        if busy or first is None:
            assert claim is None, "a claim on a busy device or from an empty queue"
            return
        assert claim is not None and claim.job == first, "not the first of the queue"
        expected = self.jobs[first]
        expected.state, expected.device, expected.registered = "starting", device, False
        expected.attempt += 1
        assert claim.attempt == expected.attempt
        self.claims.append(claim)

    def register(self, claim: Claim) -> None:
        expected = self.jobs[claim.job]
        valid = self._owns(claim) and not expected.registered
        try:
            intent = self.store.claims.register(claim, me())
            assert valid, "registered without owning the job"
            assert intent == expected.intent
            expected.registered = True
            expected.state = "running" if expected.state == "starting" else expected.state
        except Fenced:
            assert not valid, "fenced although it owns the job"

    def report(self, claim: Claim, step: int, value: float) -> None:
        valid = self._owns(claim) and self.jobs[claim.job].state in ("running", "stopping")
        try:
            self.store.claims.report(claim, Progress(metrics=[("loss", step, value, 0.0)]))
            assert valid, "a stale attempt wrote a metric"
            self.metrics[claim.job, step] = value
        except Fenced:
            assert not valid

    def finish(self, claim: Claim, state: str) -> None:
        valid = self._owns(claim) and self.jobs[claim.job].state in ("running", "stopping")
        if self._owns(claim) and not valid:
            return  # a runner never ends before it registered
        error = ("run", "because") if state == "failed" else None
        try:
            self.store.claims.finish(claim, state, error=error)
            assert valid, "a stale attempt ended the job"
            self._leave(claim.job, state)
        except Fenced:
            assert not valid

    def obey(self, claim: Claim) -> None:
        expected = self.jobs[claim.job]
        valid = self._owns(claim) and expected.state == "stopping"
        if self._owns(claim) and not valid:
            return
        try:
            state = self.store.claims.stopped(claim)
            assert valid, "a stale attempt stopped the job"
            wanted = {"cancel": "cancelled", "pause": "paused", "shutdown": "interrupted"}
            assert state == wanted[str(expected.intent)]
            self._leave(claim.job, state)
        except Fenced:
            assert not valid

    def shutdown(self, claim: Claim) -> None:
        self.store.claims.ask_shutdown(claim)
        expected = self.jobs[claim.job]
        if self._owns(claim) and expected.state in ("starting", "running"):
            expected.state, expected.intent = "stopping", "shutdown"

    def lose(self, claim: Claim, newest: int) -> None:
        """The supervisor took the claim's process for dead, rightly or (a stale claim) wrongly."""
        expected = self.jobs[claim.job]
        valid = self._owns(claim)
        state = self.store.claims.lost(claim, why="dead", newest_step=newest, limit=LIMIT)
        if not valid:
            assert state is None, "a job was taken from its new owner"
            return
        if expected.intent in ("cancel", "pause"):
            wanted = "cancelled" if expected.intent == "cancel" else "paused"
        else:
            moved = newest > expected.resume_step or expected.intent == "shutdown"
            expected.tries = 0 if moved else expected.tries + 1
            expected.resume_step = max(newest, expected.resume_step)
            wanted = "interrupted" if expected.tries >= LIMIT else "queued"
        assert state == wanted
        self._leave(claim.job, wanted)

    def stop(self, job: int, intent: str) -> None:
        expected = self.jobs[job]
        ended = "cancelled" if intent == "cancel" else "paused"
        if expected.state in ACTIVE:
            valid = expected.intent not in ("cancel", intent)
        else:
            valid = (expected.state, ended) in LEGAL
        try:
            (self.store.cancel if intent == "cancel" else self.store.pause)(job)
            assert valid, f"{intent} of a {expected.state} job was accepted"
            if expected.state in ACTIVE:
                expected.state, expected.intent = "stopping", intent
            else:
                self._leave(job, ended)
        except QueueError:
            assert not valid, f"{intent} of a {expected.state} job was refused"

    def resume(self, job: int) -> None:
        expected = self.jobs[job]
        valid = expected.state in ("paused", "failed", "cancelled", "interrupted")
        try:
            self.store.resume(job)
            assert valid
            if expected.state in ("failed", "cancelled"):
                self.order.remove(job)
                self.order.append(job)
            expected.tries = expected.resume_step = 0
            self._leave(job, "queued")
        except QueueError:
            assert not valid

    def move(self, job: int, before: int) -> None:
        valid = {self.jobs[job].state, self.jobs[before].state} <= {"queued", "paused"}
        try:
            self.store.move(job, before=before)
            assert valid
            if job != before:
                self.order.remove(job)
                self.order.insert(self.order.index(before), job)
        except QueueError:
            assert not valid

    def reopen(self) -> None:
        """Closing and opening the database at any point changes nothing."""
        self.store.close()
        self.store = JobStore(self.store.home)

    # -- what must always hold ---------------------------------------------------------------------

    def check(self, *, whole: bool = True) -> None:
        found = {job.id: job for job in self.store.list()}
        assert set(found) == set(self.jobs), "a job was lost or appeared"
        for number, expected in self.jobs.items():
            job = found[number]
            assert (job.state, job.attempt, job.device, job.intent) == (
                expected.state, expected.attempt, expected.device, expected.intent,
            ), number  # fmt: skip
        devices = [job.device for job in found.values() if job.device]
        assert len(devices) == len(set(devices)), "two active jobs on one device"
        if not whole:
            return
        waiting = [job.id for job in self.store.queue() if job.state == "queued"]
        assert waiting == [job for job in self.order if self.jobs[job].state == "queued"]
        self._check_events()

    def check_all(self) -> None:
        self.check()
        for job in self.jobs:
            state = None
            for event in self.store.events(job):
                assert event["src"] == state, "the chain of events is broken"
                assert state is None or (state, event["dst"]) in LEGAL
                state = event["dst"]
            assert state == self.jobs[job].state
        with self.store.database.reading() as db:
            rows = db.conn.execute("SELECT job, step, value FROM metrics").fetchall()
        assert {(job, step): value for job, step, value in rows} == self.metrics

    def _check_events(self) -> None:
        with self.store.database.reading() as db:
            sql = "SELECT id, src, dst FROM events WHERE id > ?"
            rows = db.conn.execute(sql, (self.checked_events,)).fetchall()
        for number, src, dst in rows:
            assert src is None or (src, dst) in LEGAL
            self.checked_events = max(self.checked_events, number)

    def _owns(self, claim: Claim) -> bool:
        expected = self.jobs[claim.job]
        return expected.attempt == claim.attempt and expected.state in ACTIVE

    def _leave(self, job: int, state: str) -> None:
        expected = self.jobs[job]
        expected.state, expected.device, expected.intent = state, None, None
        expected.registered = False


def one_step(queue: Queue, dice: random.Random) -> None:
    """Do one random operation; stale claims are as likely as fresh ones."""
    names = [
        "submit", "claim", "claim", "register", "register", "report", "report", "finish",
        "obey", "obey", "shutdown", "lose", "lose", "stop", "stop", "resume", "resume", "move",
        "reopen",
    ]  # fmt: skip
    name = dice.choice(names)
    jobs = list(queue.jobs)
    if (name == "submit" and len(jobs) < 12) or not jobs:
        queue.submit()
    elif name == "claim":
        queue.claim(dice.choice(DEVICES))
    elif name in ("stop", "resume", "move"):
        rest: dict[str, tuple[Any, ...]] = {
            "stop": (dice.choice(["cancel", "pause"]),), "resume": (),
            "move": (dice.choice(jobs),),
        }  # fmt: skip
        getattr(queue, name)(dice.choice(jobs), *rest[name])
    elif name == "reopen":
        if dice.random() < 0.05:
            queue.reopen()
    elif queue.claims:
        recent = queue.claims[-6:]
        claim = dice.choice(recent if dice.random() < 0.7 else queue.claims)
        arguments: dict[str, tuple[Any, ...]] = {
            "register": (), "obey": (), "shutdown": (),
            "report": (dice.randrange(5), dice.random()),
            "finish": (dice.choice(["succeeded", "failed"]),),
            "lose": (dice.choice([0, 0, 5, 9]),),
        }  # fmt: skip
        if name in arguments:
            getattr(queue, name)(claim, *arguments[name])


def walk(store: JobStore, *, steps: int, seed: int) -> Queue:
    """Do so many random operations, checking after each."""
    queue, dice = Queue(store), random.Random(seed)
    for number in range(steps):
        one_step(queue, dice)
        queue.check(whole=number % 5 == 0)
    queue.check_all()
    return queue

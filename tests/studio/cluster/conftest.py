"""A job on a cluster that a test plays itself: its storage is real, Ray's answers are given."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from studio.cluster.follow_and_fetch import Follower
from studio.cluster.ray_api import NoAnswer
from studio.cluster.shared_storage import (
    ADAPTER,
    CHECKPOINTS,
    REPORT,
    EventWriter,
    Storage,
    Submission,
    read_submission,
)
from studio.home import publishing
from studio.spec import RunSpec
from studio.training.training_events import Event, Finished, Saved, Started, Step

SPEC = RunSpec.parse({"name": "far", "train": {"device": "ray"}})


class FakeRay:
    """Answers with `now`; None is silence, "UNKNOWN" a job that nobody knows."""

    address = "http://fake:8265"

    def __init__(self) -> None:
        self.now: str | None = "RUNNING"
        self.printed = ""
        self.stopped: list[str] = []

    def status(self, submission: str) -> tuple[str, str] | None:
        if self.now is None:
            raise NoAnswer("The cluster does not answer: http://fake:8265.")
        return None if self.now == "UNKNOWN" else (self.now, "Ray's own words")

    def stop(self, submission: str) -> None:
        self.status(submission)
        self.stopped.append(submission)
        self.now = "STOPPED"

    def log(self, submission: str) -> str:
        return self.printed


@dataclass
class Far:
    """A job on the cluster, and whoever follows it here."""

    folder: Path
    run_dir: Path
    ray: FakeRay = field(default_factory=FakeRay)
    intent: str | None = None
    wish: str | None = None

    def __post_init__(self) -> None:
        self.place = Storage(str(self.folder))
        self.writer = EventWriter(self.place)
        self.run_dir.mkdir()
        Submission(submission="far-1", place=self.place.url, submitted=True).save(self.run_dir)

    def add(self, *events: Event) -> None:
        for event in events:
            self.writer.add(event.as_dict())
        self.writer.flush()

    def save(self, step: int) -> None:
        name = f"step-{step:08d}"
        with publishing(self.folder / "made" / name) as made:
            (made / "state.json").write_text("{}")
        self.place.send(self.folder / "made" / name, f"{CHECKPOINTS}/{name}")
        self.add(Saved(step=step, path=f"/somewhere/else/{name}"))

    def finish(self, step: int) -> None:
        with publishing(self.folder / ADAPTER) as made:
            passport = {"spec": {}, "base": {"path": "/there/model"}, "data": {"path": "x"}}
            (made / "passport.json").write_text(json.dumps(passport))
            config = {"base_model_name_or_path": "/there/model"}
            (made / "adapter_config.json").write_text(json.dumps(config))
        self.place.write(REPORT, b'{"tokens": 7, "reason": "completed"}')
        self.add(finished(step, "completed"))

    def follow(self, at: dict[type, Callable[[], Any]] | None = None) -> list[Event]:
        """Follow to the end; `at` does something when an event of a kind comes."""
        sent = read_submission(self.run_dir)
        assert sent is not None
        following = Follower(SPEC, self.run_dir, self.ray, sent, lambda: self.intent)
        heard = []
        for event in following.follow(lambda: self.wish):
            heard.append(event)
            if at and type(event) in at:
                at[type(event)]()
        return heard


def finished(step: int, reason: str) -> Finished:
    return Finished(
        step=step, reason=reason, adapter=ADAPTER if reason == "completed" else None,
        first_loss=2.0, last_loss=1.0, eval_loss=None, seconds=1.0,
    )  # fmt: skip


def started(step: int = 0) -> Started:
    return Started(
        step=step, total_steps=9, trainable_parameters=1, total_parameters=2, device="cpu",
        dtype="float32", learning_rate=0.1, rows_read=1, rows_kept=1, rows_dropped=0,
    )  # fmt: skip


def step(number: int) -> Step:
    return Step(
        step=number, loss=1.0 / number, learning_rate=0.1, grad_norm=1.0, tokens=1,
        tokens_per_second=1.0, epoch=0.1, memory_bytes=1,
    )  # fmt: skip


@pytest.fixture
def far(tmp_path, monkeypatch):
    for name, seconds in (
        ("POLL_SECONDS", 0.01), ("STATUS_SECONDS", 0.03), ("SAVE_SECONDS", 0.0),
        ("INTENT_SECONDS", 0.05), ("END_SECONDS", 0.05),
    ):  # fmt: skip
        monkeypatch.setattr(f"studio.cluster.follow_and_fetch.{name}", seconds)
    return Far(folder=tmp_path / "storage" / "far-1", run_dir=tmp_path / "run")

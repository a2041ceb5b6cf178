"""A job as a record: its states, the legal transitions between them, its summary as JSON.

The database holds the same table and refuses every other pair (`database_schema.py`); commands and
pages read here what is possible.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

from studio.train_args import LOSSES

State = Literal[
    "queued", "starting", "running", "stopping", "paused",
    "succeeded", "failed", "cancelled", "interrupted",
]  # fmt: skip
Intent = Literal["cancel", "pause", "shutdown"]
Request = Literal["save", "sample"]  # of a running training: a checkpoint, or its samples, now

STATES: tuple[State, ...] = get_args(State)
ACTIVE: frozenset[State] = frozenset({"starting", "running", "stopping"})
"""A process works on the job, or should; it holds a device."""
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
"""States that only the user can leave."""
OPEN: frozenset[State] = frozenset(STATES) - ENDED
"""What the job reads has to stay where it is."""
TRAINS = ("train", "arrive")
"""Kinds of runs: trained here, or elsewhere and then unpacked."""

NEXT: dict[State, tuple[State, ...]] = {
    "queued": ("starting", "paused", "cancelled"),
    "starting": ("running", "stopping", "failed", "interrupted"),
    "running": ("succeeded", "failed", "stopping", "interrupted"),
    "stopping": ("cancelled", "paused", "succeeded", "failed", "interrupted"),
    "paused": ("queued", "cancelled"),
    "interrupted": ("queued", "cancelled"),  # queued by itself while it makes progress
    "failed": ("queued",),
    "cancelled": ("queued",),
}
LEGAL = frozenset((state, after) for state, states in NEXT.items() for after in states)
"""The legal transitions: interrupted is a job whose process died or whose machine shuts down."""


def actions(state: State) -> tuple[str, ...]:
    """Return what the state in a job's record lets the user do, in the order of the page."""
    return {
        "queued": ("hold", "cancel"),
        "starting": ("pause", "cancel"),
        "running": ("pause", "cancel"),
        "stopping": ("cancel",),
        "paused": ("resume", "cancel", "delete"),
        "interrupted": ("resume", "cancel", "delete"),
        "failed": ("resume", "delete"),
        "cancelled": ("resume", "delete"),
        "succeeded": ("delete",),
    }[state]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the queue: a row of `jobs`."""

    id: int
    kind: str
    name: str
    state: State
    position: float
    device_wanted: str
    device: str | None
    pid: int | None
    attempt: int
    no_progress: int
    intent: Intent | None
    created: float
    started: float | None
    finished: float | None
    step: int
    total_steps: int | None
    phase: str
    error_kind: str | None
    error_text: str | None
    parent: int | None
    why: str
    sweep: str | None
    on_error: str
    start_after: float | None
    start_when: str
    retries_left: int
    notes: str
    tags_json: str
    needs: list[int]
    drop_checkpoints: int
    memory_bytes: int
    waits: str
    spec_json: str
    result_json: str

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Return the frozen spec as plain values."""
        return cast(dict[str, Any], json.loads(self.spec_json))

    @cached_property
    def result(self) -> dict[str, Any]:
        """Return what the runner reported: rows, losses, adapter, seconds."""
        return cast(dict[str, Any], json.loads(self.result_json))

    @cached_property
    def tags(self) -> list[str]:
        """Return the user's tags."""
        return cast(list[str], json.loads(self.tags_json))

    @property
    def active(self) -> bool:
        """Return True if a process executes it."""
        return self.state in ACTIVE


_COLUMN = {
    "intent": "stop_requested", "tags_json": "tags", "spec_json": "spec", "result_json": "result",
}  # fmt: skip


def job_of(row: dict[str, Any], needs: list[int]) -> Job:
    """Build a job's record from a row of `jobs` and the jobs that it needs."""
    fields = Job.__dataclass_fields__.keys() - {"needs"}
    return Job(needs=needs, **{field: row[_COLUMN.get(field, field)] for field in fields})


def loss_of(spec: Mapping[str, Any]) -> str:
    """Return the name of a run's loss, as in DPO; empty for the usual one, SFT."""
    train = spec.get("train")
    loss = str(train.get("loss", "sft")) if isinstance(train, dict) else "sft"
    return "" if loss == "sft" else LOSSES.get(loss, loss).partition(":")[0]


def summary(job: Job) -> dict[str, Any]:
    """Return a job's record as JSON values; what is not known yet is None."""
    result = job.result
    rows = result.get("rows") or {}
    failed = job.error_kind is not None or job.error_text is not None
    return {
        **{key: getattr(job, key) for key in _SHOWN},
        **{key: result.get(key) for key in _REPORTED},
        "forgetting": (result.get("forgetting") or {}).get("forgetting"),
        "sources": result.get("sources"),
        "seconds_left": seconds_left(job),
        "rows": {key: rows.get(key) for key in _ROWS},
        "memory_bytes": job.memory_bytes or None,
        "waits": job.waits if job.state == "queued" else "",
        "error": {"kind": job.error_kind or "run", "text": job.error_text} if failed else None,
    }


_SHOWN = (
    "id", "name", "kind", "state", "step", "total_steps", "position", "parent", "needs", "sweep",
    "on_error", "retries_left", "start_after", "start_when", "notes", "tags",
)  # fmt: skip
_ROWS = ("read", "kept", "dropped", "trained", "held_out", "evaluated")
_REPORTED = (
    "first_loss", "last_loss", "eval_loss", "seconds", "adapter", "adapter_deleted",
)  # fmt: skip


def seconds_left(job: Job) -> float | None:
    """Return the remaining seconds of a running job, from step and time in its record."""
    before = job.result.get("training_seconds")  # until the first step; not of the wall clock
    first = job.result.get("training_from_step", 0)
    done = job.step - first
    if job.state != "running" or before is None or not job.total_steps or done < 2:
        return None
    pace = max(0.0, job.result.get("seconds", 0) - before) / done
    return round(pace * (job.total_steps - job.step), 1)

"""A job as one row of the queue, its states and the legal transitions between them.

The database holds the same table and refuses every other pair (`schema.py`); commands and pages
read here what is possible.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

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

LEGAL: frozenset[tuple[State, State]] = frozenset(
    {
        ("queued", "starting"),  # a supervisor claimed it
        ("queued", "paused"),  # held by the user
        ("queued", "cancelled"),
        ("starting", "running"),  # the runner registered itself
        ("starting", "stopping"),
        ("starting", "failed"),  # it could not be started
        ("starting", "interrupted"),  # its process died before it registered
        ("running", "succeeded"),
        ("running", "failed"),
        ("running", "stopping"),
        ("running", "interrupted"),  # its process is proven dead
        ("stopping", "cancelled"),
        ("stopping", "paused"),
        ("stopping", "succeeded"),  # it finished before it saw the request
        ("stopping", "failed"),
        ("stopping", "interrupted"),  # the machine shuts down
        ("paused", "queued"),
        ("paused", "cancelled"),
        ("interrupted", "queued"),  # automatically while it makes progress, else by the user
        ("interrupted", "cancelled"),
        ("failed", "queued"),
        ("cancelled", "queued"),
    }
)


def actions(state: State) -> tuple[str, ...]:
    """Return what the user can do with a job in this state, in the order of the page."""
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
    """Build the record from a row of `jobs` and the jobs that it needs."""
    fields = Job.__dataclass_fields__.keys() - {"needs"}
    return Job(needs=needs, **{field: row[_COLUMN.get(field, field)] for field in fields})

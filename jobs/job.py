"""A job as one row of the queue, its states and the legal transitions between them.

The database holds the same table and refuses every other pair (`schema.py`); this module is where
people and pages read what is possible. It knows no SQL.
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


def can_move(source: State, target: State) -> bool:
    """Return True if a job may go from one state to another."""
    return (source, target) in LEGAL


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
    heartbeat: float | None
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
    needs_json: str
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

    @cached_property
    def needs(self) -> list[int]:
        """Return the jobs that must have succeeded before it starts."""
        return cast(list[int], json.loads(self.needs_json))

    @property
    def active(self) -> bool:
        """Return True if a process executes it."""
        return self.state in ACTIVE


COLUMNS = """id, kind, name, state, position, device_wanted, device, pid, attempt, no_progress,
  stop_requested, created, started, finished, heartbeat, step, total_steps, phase, error_kind,
  error_text, parent, why, sweep, on_error, start_after, start_when, retries_left, notes, tags,
  drop_checkpoints, memory_bytes, waits, spec, result,
  (SELECT json_group_array(needs) FROM dependencies WHERE dependencies.job = jobs.id)
    AS needs_json"""


def job_of(row: dict[str, Any]) -> Job:
    """Build the record from a row of `jobs`."""
    values = {key: row[key] for key in _SAME}
    return Job(
        **values,
        intent=row["stop_requested"],
        tags_json=row["tags"],
        spec_json=row["spec"],
        result_json=row["result"],
    )


_NAMED_ELSE = {"intent", "tags_json", "spec_json", "result_json"}
_SAME = [key for key in Job.__dataclass_fields__ if key not in _NAMED_ELSE]

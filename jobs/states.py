"""The states of a job and the only legal ways between them.

The database holds the same table and refuses every other pair (`schema.py`); this module is where
people and pages read what is possible. It knows no SQL.
"""

from typing import Literal, get_args

State = Literal[
    "queued", "starting", "running", "stopping", "paused",
    "succeeded", "failed", "cancelled", "interrupted",
]  # fmt: skip
Intent = Literal["cancel", "pause", "shutdown"]

STATES: tuple[State, ...] = get_args(State)
ACTIVE: frozenset[State] = frozenset({"starting", "running", "stopping"})
"""A process works on the job, or should; it holds a device."""
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
"""Nothing more happens unless a person asks for it."""
OPEN: frozenset[State] = frozenset(STATES) - ENDED
"""What the job reads has to stay where it is."""

LEGAL: frozenset[tuple[State, State]] = frozenset(
    {
        ("queued", "starting"),  # a supervisor claimed it
        ("queued", "paused"),  # a person holds it back
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
        ("interrupted", "queued"),  # by itself while it makes progress, else by a person
        ("interrupted", "cancelled"),
        ("failed", "queued"),
        ("cancelled", "queued"),
    }
)


def can_move(source: State, target: State) -> bool:
    """Whether a job may go from one state to another."""
    return (source, target) in LEGAL


def actions(state: State) -> tuple[str, ...]:
    """What a person can do with a job in this state, in the order a page shows it."""
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

"""What a training run says while it runs. Plain records: no torch, no queue, no screen."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened; `step` counts finished optimizer steps."""

    step: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the event's kind."""
        return {"event": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading(Event):
    """A phase before the first step: what is being done now."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Working(Event):
    """How far a job without optimizer steps is: `step` of `total_steps` parts are done."""

    text: str
    total_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Event):
    """Everything is loaded; the first step comes next (or the first after `step`)."""

    total_steps: int
    trainable_parameters: int
    total_parameters: int
    device: str
    dtype: str
    learning_rate: float
    rows_read: int
    rows_kept: int
    rows_dropped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Event):
    """One optimizer step. `tokens` counts real tokens, padding never."""

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    epoch: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated(Event):
    """Loss per token on the held-out rows, and the share of tokens guessed right."""

    eval_loss: float
    token_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled(Event):
    """A fixed prompt answered by the adapter as it is now."""

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving(Event):
    """A checkpoint or the adapter is written next: store what was said so far.

    A run that is killed right after goes on from there and never says it again.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved(Event):
    """A checkpoint is whole on disk."""

    path: str
    eval_loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Event):
    """The run is over; `reason` says how, `adapter` or `facts` what its result is."""

    seconds: float
    reason: Literal["completed", "stopped"] = "completed"
    adapter: str | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None
    note: str = ""
    facts: dict[str, Any] | None = None


def event_from(values: dict[str, Any]) -> Event:
    """Return the event that `as_dict` made plain."""
    kinds = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}
    values = dict(values)
    return kinds[values.pop("event")](**values)

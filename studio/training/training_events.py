"""Events of a training run: plain records without torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Base class of events; `step` counts finished optimizer steps."""

    step: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with the event's kind."""
        return {"event": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading(Event):
    """A phase before the first step."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Working(Event):
    """Progress of a job without optimizer steps: `step` of `total_steps` parts are done."""

    text: str
    total_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Event):
    """Everything is loaded; the next event is the first step (or the first after `step`).

    `rows_read` to `rows_dropped` are rows of the file, `rows_trained` and `rows_held_out` what they
    became, `rows_evaluated` those of each evaluation; `longer_chosen` is the fraction of the pairs
    whose chosen answer is the longer one.
    """

    total_steps: int
    trainable_parameters: int
    total_parameters: int
    device: str
    dtype: str
    learning_rate: float
    rows_read: int
    rows_kept: int
    rows_dropped: int
    rows_truncated: int = 0
    rows_trained: int | None = None
    rows_held_out: int | None = None
    rows_evaluated: int | None = None
    rows_format: str = ""
    longer_chosen: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Event):
    """One optimizer step; `tokens` excludes padding.

    `expert_balance` is the evenness of the routers' choice, from 0 (one expert for all) to 1; None
    for models without routed experts. Then come the means of a run that learns from preferences
    (`preference_loss.py`), and those of one that learns from rewards of its own answers
    (`grpo_rollouts.py`), by TRL's names: mean reward, its standard deviation within a group, share
    of groups without any, tokens of an answer, KL to the reference per token. `tokens_shared` is
    the fraction of all tokens so far that are prompts of several answers and were computed once.
    """

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    epoch: float
    memory_bytes: int
    expert_balance: float | None = None
    rewards_chosen: float | None = None
    rewards_rejected: float | None = None
    rewards_margins: float | None = None
    rewards_accuracies: float | None = None
    logps_chosen: float | None = None
    logps_rejected: float | None = None
    reward: float | None = None
    reward_std: float | None = None
    frac_reward_zero_std: float | None = None
    completion_length: float | None = None
    kl: float | None = None
    tokens_shared: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated(Event):
    """Loss and token accuracy on the validation rows; of preferences, their rewards.

    `kl` is the distance from the reference per token of the chosen answers. A run that learns from
    rewards has only the mean reward of its greedy answers. `sources` are those of a mix: name,
    number of rows, held-out rows, and what was measured on these.
    """

    eval_loss: float | None = None
    reward: float | None = None
    token_accuracy: float | None = None
    rewards_accuracies: float | None = None
    rewards_margins: float | None = None
    kl: float | None = None
    sources: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten(Event):
    """A point of the forgetting curve: KL divergence from the base, per token of its answers."""

    forgetting: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled(Event):
    """A fixed prompt answered with the current adapter.

    `answer_tokens` is the mean length of a step's answers, on the last of them.
    """

    prompt: str
    text: str
    answer_tokens: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked(Event):
    """Questions of the dataset: prompt, wanted answer, and whether their rows are trained.

    `trained` is None if evaluation rows are among the training rows, so that it is not known.
    """

    questions: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered(Event):
    """The sample answers beside the rows' own answers to the same prompts; None if not comparable.

    `answer_length` is their length relative to the rows', both up to the samples' maximum;
    `answers_overrun` and `answers_copied` are the fractions that run on without an end, past twice
    the row's own answer or to their limit, and that repeat the prompt where the row's does not.
    `rows_ended` is the fraction of the rows whose own answer trains an end of turn.
    """

    answer_length: float | None = None
    answers_overrun: float | None = None
    answers_copied: float | None = None
    rows_ended: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving(Event):
    """A checkpoint or the adapter is written next: store all events so far.

    A run that is killed afterwards resumes from there and does not repeat them.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved(Event):
    """A checkpoint was written."""

    path: str
    eval_loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Event):
    """The run ended; `reason` says how, `adapter` or `facts` is its result."""

    seconds: float = 0.0
    reason: Literal["completed", "stopped"] = "completed"
    adapter: str | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None
    note: str = ""
    facts: dict[str, Any] | None = None


def event_from(values: dict[str, Any]) -> Event:
    """Return the event that `as_dict` describes."""
    kinds = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}
    values = dict(values)
    return kinds[values.pop("event")](**values)

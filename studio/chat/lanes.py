"""Records of the chat engine: lanes, requests, deltas, and the events of its stream.

A lane is one pane of a comparison: a base model, a stack of weighted adapters, a conversation and
how to sample. A request is up to `MAX_LANES` lanes that are answered together.

`status` (lane or null, text) · `delta` (lane, text, at, tokens when asked) · `done` (lane, reason,
figures, active) · `error` (lane or null, kind, text). Every lane ends with one `done` or `error`.
`at` is when the oldest token of the text existed, in seconds since 1970.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ValidationError, model_validator

from studio.errors import ChatError, StudioError
from studio.fields import Record, knob
from studio.stack import MAX_LANES, Stack

MAX_CHARACTERS = 2_000_000

Reason = Literal["stop", "length", "stopped", "error"]


class Sampling(Record):
    """How the next token is picked; names and meanings are those of transformers' generate."""

    max_new_tokens: int = knob(
        256, "The answer is cut here.", title="Longest answer", unit="tokens", ge=1, le=1_048_576
    )
    temperature: float = knob(
        0.0,
        "0 always takes the likeliest token; larger is more varied.",
        title="Temperature",
        ge=0,
        le=10,
        step=0.05,
    )
    top_p: float = knob(
        1.0,
        "Draw only from the likeliest tokens that together hold this share.",
        title="Top p",
        gt=0,
        le=1,
        step=0.01,
        advanced=True,
    )
    top_k: int = knob(
        0, "Draw only from this many tokens; 0 from all.", title="Top k", ge=0, advanced=True
    )
    repetition_penalty: float = knob(
        1.0,
        "Above 1 makes tokens that were already there less likely.",
        title="Repetition penalty",
        gt=0,
        le=10,
        step=0.05,
        advanced=True,
    )
    seed: int = knob(0, "Same seed and prompt, same answer.", title="Seed", ge=0, le=2**63 - 1)
    stop: tuple[str, ...] = knob((), "Texts that end the answer.", title="Stop at", advanced=True)
    logprobs: int = knob(
        -1,
        "Alternatives told for each token, with log-probabilities; 0 tells only the token's own, "
        "-1 nothing.",
        ge=-1,
        le=20,
        advanced=True,
    )


def _without_nulls(values: Any) -> Any:
    """A null in JSON means the default."""
    if isinstance(values, Mapping):
        return {key: value for key, value in values.items() if value is not None}
    return values


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = knob("", "Plain text.", max_length=MAX_CHARACTERS)


class Lane(Record):
    """One pane: who answers, what, and how. A last assistant message is continued."""

    model: str = knob("starter", "A folder, a hub id, or the embedded starter.", min_length=1)
    stack: Stack = knob((), "Adapters in order; none is the base itself.")
    system: str = knob("", "What the model is told first.", max_length=MAX_CHARACTERS)
    messages: tuple[Message, ...] = knob((), "The conversation; it ends with the question.")
    sampling: Annotated[Sampling, BeforeValidator(_without_nulls)] = Sampling()
    template: str = knob(
        "auto", "auto takes what the adapters were trained with, else the model's own."
    )

    @model_validator(mode="after")
    def _has_something_to_answer(self) -> Self:
        if not any(message.content.strip() for message in self.messages):
            raise ValueError("there is no prompt to answer: write something")
        return self

    def conversation(self) -> list[dict[str, str]]:
        """Return the turns as templates read them, the lane's system prompt first."""
        turns = [{"role": m.role, "content": m.content} for m in self.messages]
        if self.system.strip():
            turns = [turn for turn in turns if turn["role"] != "system"]
            turns.insert(0, {"role": "system", "content": self.system})
        return turns


class Request(Record):
    """Lanes that are answered together; `id` is what a stop names."""

    id: str = knob("", "Chosen by whoever asks.", max_length=200)
    lanes: tuple[Lane, ...] = knob((), "", min_length=1, max_length=MAX_LANES)


class Moved(Record):
    """A lane's stack with other weights, while it answers."""

    lane: int = knob(0, "Its place in the request.", ge=0, lt=MAX_LANES)
    stack: Stack = knob((), "The same adapters, in the same order.")


def parse_request(values: Mapping[str, Any]) -> Request:
    """Validate what arrived as JSON.

    Raises:
        ChatError: Names the first wrong field and the value got.
    """
    try:
        return Request.model_validate(values)
    except ValidationError as error:
        raise ChatError(_sentence(error)) from None


def parse_weights(values: Mapping[str, Any]) -> tuple[int, tuple[tuple[str, float], ...]]:
    """Validate what a slider sends: `{"lane": 0, "stack": [{"name", "weight"}]}`.

    Raises:
        ChatError: Names the first wrong field and the value got.
    """
    try:
        moved = Moved.model_validate(values)
    except ValidationError as error:
        raise ChatError(_sentence(error)) from None
    return moved.lane, tuple((part.name, part.weight) for part in moved.stack)


def _sentence(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = list(fault["loc"])
    where = ""
    if len(place) > 1 and place[0] == "lanes" and isinstance(place[1], int):
        where, place = f"Lane {place[1] + 1}: ", place[2:]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error" or not place:
        return f"{where}{message}."
    shown = repr(fault.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    dotted = ".".join(str(part) for part in place)
    return f"{where}{dotted} is {shown}: {message[0].lower() + message[1:]}."


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A token that could have come, and how likely the model found it (natural logarithm)."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The token that came, its log-probability before sampling, and the likeliest others."""

    token_id: int
    text: str
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Active:
    """What really answered: measured from the logits that were used, not from what was asked.

    `max_logit_difference` is against the bare base on the same tokens: zero (up to rounding) for
    an empty stack, above it for one that does something. `note` says what a person should know.
    """

    model: str
    stack: tuple[tuple[str, float], ...]
    max_logit_difference: float | None = None
    verified: bool = False
    batched: bool = False
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the shape of `active` in events and in `studio chat --json`."""
        return {
            "model": self.model,
            "stack": [{"name": name, "weight": weight} for name, weight in self.stack],
            "max_logit_difference": self.max_logit_difference,
            "verified": self.verified,
            "batched": self.batched,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What the answer cost. `tokens` counts the answer's, the stop token not."""

    tokens: int = 0
    prompt_tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first per second after the first; one token has no rate but its own."""
        if self.tokens > 1 and self.seconds > self.first_token_seconds:
            return (self.tokens - 1) / (self.seconds - self.first_token_seconds)
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What happened in one lane: some text, a note, or the end (`done`) with its reason."""

    lane: int
    text: str = ""
    token_id: int | None = None
    scored: tuple[Scored, ...] = ()
    note: str = ""
    done: bool = False
    reason: Reason | None = None
    stats: Stats = field(default_factory=Stats)
    active: Active | None = None
    error: StudioError | None = None


Event = dict[str, Any]


def status_event(text: str, *, lane: int | None = None) -> Event:
    """Something a person should know; no lane means all of them."""
    return {"type": "status", "lane": lane, "text": text}


def error_event(error: StudioError, *, lane: int | None = None) -> Event:
    """The end of a lane, or of the whole request."""
    return {"type": "error", "lane": lane, **error.as_dict()}


def events_of(delta: Delta) -> list[Event]:
    """Return what a delta says, in order."""
    events: list[Event] = []
    if delta.text or delta.scored:
        event: Event = {
            "type": "delta", "lane": delta.lane, "text": delta.text, "at": round(time.time(), 3)
        }  # fmt: skip
        if delta.scored:
            event["tokens"] = [_scored(token) for token in delta.scored]
        events.append(event)
    if delta.note:
        events.append(status_event(delta.note, lane=delta.lane))
    if delta.error is not None:
        events.append(error_event(delta.error, lane=delta.lane))
    elif delta.done:
        events.append(_done(delta))
    return events


def _done(delta: Delta) -> Event:
    stats = delta.stats
    return {
        "type": "done",
        "lane": delta.lane,
        "reason": delta.reason,
        "tokens": stats.tokens,
        "prompt_tokens": stats.prompt_tokens,
        "tokens_per_second": round(stats.tokens_per_second, 2),
        "first_token_seconds": round(stats.first_token_seconds, 4),
        "seconds": round(stats.seconds, 4),
        "active": delta.active.as_dict() if delta.active else None,
    }


def _scored(token: Scored) -> Event:
    return {
        "id": token.token_id,
        "text": token.text,
        "logprob": round(token.logprob, 5),
        "top": [
            {"id": other.token_id, "text": other.text, "logprob": round(other.logprob, 5)}
            for other in token.top
        ],
    }

"""Records of the chat engine: sampling, lanes, requests, deltas, and the events of its stream.

A lane is one pane of a comparison: a base model, a stack of weighted adapters, a conversation and
sampling settings. A request is up to `MAX_LANES` lanes that are answered together; the page, the
command line, suites and the OpenAI route all use these records and their defaults.

The stream's events: `status` (lane or null, text), `delta` (lane, text, at, tokens if requested,
part if it is not plain text: `thought`, `call`, or `mark` for the template's markers around them),
`done` (lane, reason, figures, active), `error` (lane or null, kind, text). Every lane ends with one
`done` or `error`. `at` is when the oldest token of the text was sampled, in seconds since 1970.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from studio.adapter_stack import MAX_LANES, NOTE, Stack, write_lane
from studio.chat.thought_and_tool_parser import PartKind, Piece, message_of
from studio.data.template import ChatTemplateKwargs
from studio.errors import ChatError, StudioError
from studio.fields import PLAIN, Record, knob

MAX_CHARACTERS = 2_000_000
MAX_NEW_TOKENS = 1_048_576

Reason = Literal["stop", "length", "stopped", "error"]
ActiveStack = tuple[tuple[str, float], ...]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,64}$")]
Event = dict[str, Any]


class Sampling(Record):
    """Settings of an answer, with the names and meanings of transformers' generate."""

    max_new_tokens: int = knob(
        256,
        "Maximum length of the answer.",
        title="Longest answer",
        unit="tokens",
        ge=1,
        le=MAX_NEW_TOKENS,
    )
    temperature: float = knob(
        0.0,
        "0 takes the most likely token; larger values are more varied.",
        title="Temperature",
        ge=0,
        le=10,
        step=0.05,
    )
    top_p: float = knob(
        1.0,
        "Sample from the most likely tokens that together have this probability.",
        title="Top p",
        gt=0,
        le=1,
        step=0.01,
        advanced=True,
    )
    top_k: int = knob(
        0, "Sample from this many tokens; 0 uses all.", title="Top k", ge=0, advanced=True
    )
    repetition_penalty: float = knob(
        1.0,
        "Above 1 makes tokens less likely that occurred already.",
        title="Repetition penalty",
        gt=0,
        le=10,
        step=0.05,
        advanced=True,
    )
    seed: int = knob(
        0, "The same seed and prompt give the same answer.", title="Seed", ge=0, le=2**63 - 1
    )
    chat_template_kwargs: ChatTemplateKwargs = knob(
        "",
        "Settings that the model's own chat template reads, such as enable_thinking=false or "
        "reasoning_effort=high; those that the adapter was trained with if empty.",
        title="Template settings",
    )
    stop: tuple[str, ...] = knob((), "Texts that end the answer.", title="Stop at", advanced=True)
    logprobs: int = knob(
        -1,
        "Alternatives to report per token with log-probabilities; 0 reports the token's own, -1 "
        "none.",
        title="Log-probabilities",
        ge=-1,
        le=20,
        advanced=True,
    )


def _without_nulls(values: Any) -> Any:
    """Drop nulls of JSON: they mean the default."""
    if isinstance(values, Mapping):
        return {key: value for key, value in values.items() if value is not None}
    return values


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = knob("", "Plain text.", max_length=MAX_CHARACTERS)
    reasoning_content: str = knob("", "Thought of an answer.", max_length=MAX_CHARACTERS)
    tool_calls: tuple[dict[str, Any], ...] = knob((), "Tool calls of an answer.")
    tool_call_id: str = knob("", "The call that a tool's result belongs to.", max_length=200)
    name: str = knob("", "Name of the tool.", max_length=200)

    @model_validator(mode="before")
    @classmethod
    def _read_parts(cls, values: Any) -> Any:
        """Accept an earlier answer as its `parts`, as its events named them."""
        if not isinstance(values, Mapping) or "parts" not in values:
            return values
        given = {key: value for key, value in values.items() if key != "parts"}
        try:
            return given | message_of(values["parts"])
        except (TypeError, ValueError):
            raise ValueError("parts must be pairs of a kind and a text") from None

    def turn(self) -> dict[str, Any]:
        """Return the message as templates read it, without what is empty."""
        given = self.model_dump(exclude_defaults=True)
        calls = {"tool_calls": [*self.tool_calls]} if self.tool_calls else {}
        return {"role": self.role, "content": self.content} | given | calls


class LaneSettings(Record):
    """One pane without a conversation: model, adapters, system prompt, sampling."""

    model: str = knob("starter", "Folder, hub id, or the embedded starter.", min_length=1)
    stack: Stack = knob((), "Adapters in order; empty for the base.")
    system: str = knob("", "System prompt.", max_length=MAX_CHARACTERS)
    sampling: Annotated[Sampling, BeforeValidator(_without_nulls)] = Sampling()
    template: str = knob("auto", "Chat template; auto uses the adapters', else the model's own.")

    @property
    def name(self) -> str:
        """Return the lane as it is written in a page's address."""
        return write_lane(self.model, self.stack)

    def _told_apart(self) -> dict[str, Any]:
        """Return the settings that make it another lane; another seed does not."""
        sampling = self.sampling.model_dump(exclude={"seed", "logprobs"})
        return {"system": self.system.strip(), "template": self.template, **sampling}

    def with_prompt(
        self, prompt: str, before: Sequence[Message] = (), tools: Sequence[dict[str, Any]] = ()
    ) -> Lane:
        """Return the lane with one question, after the turns `before` it."""
        settings = {name: getattr(self, name) for name in LaneSettings.model_fields}
        messages = (*before, Message(role="user", content=prompt))
        return Lane(messages=messages, tools=tuple(tools), **settings)


def lane_notes(lanes: Sequence[LaneSettings]) -> list[str]:
    """Return what follows each lane's name: its settings other lanes and the defaults differ in."""
    usual, settings = LaneSettings()._told_apart(), [lane._told_apart() for lane in lanes]
    differing = [key for key in usual if any(one[key] != settings[0][key] for one in settings)]
    notes = (
        [f"{key} {_brief(one[key])}" for key in differing if one[key] != usual[key]]
        for one in settings
    )
    return [NOTE + ", ".join(note) if note else "" for note in notes]


def _brief(value: Any) -> str:
    """Return a setting in at most 50 characters, a longer one with a number of its whole text."""
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:40]}… {zlib.crc32(text.encode()):08x}"


class Lane(LaneSettings):
    """One pane. A last assistant message is continued."""

    messages: tuple[Message, ...] = knob((), "The conversation; it ends with the question.")
    tools: tuple[dict[str, Any], ...] = knob((), "Tools that the model may call.")

    @model_validator(mode="after")
    def _require_prompt(self) -> Self:
        if not any(message.content.strip() for message in self.messages):
            raise ValueError("there is no prompt to answer: write something")
        return self

    def conversation(self) -> list[dict[str, Any]]:
        """Return the turns as templates read them, the lane's system prompt first."""
        turns = [message.turn() for message in self.messages]
        if self.system.strip():
            turns = [turn for turn in turns if turn["role"] != "system"]
            turns.insert(0, {"role": "system", "content": self.system})
        return turns


class JsonRecord(Record):
    """A record that arrives as JSON."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate plain values.

        Raises:
            ChatError: Names the first invalid field and the value got.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ChatError(sentence(error.errors()[0])) from None


class ChatRequest(JsonRecord):
    """Lanes that are answered together; `id` names the request when it is stopped."""

    id: RequestId = knob("", "Chosen by the client; generated if empty.")
    lanes: tuple[Lane, ...] = knob((), "Lanes.", min_length=1, max_length=MAX_LANES)


class NewWeights(JsonRecord):
    """New weights for a lane that is answering."""

    id: RequestId = knob("", "The request.")
    lane: int = knob(0, "Its place in the request.", ge=0, lt=MAX_LANES)
    stack: Stack = knob((), "The same adapters, in the same order.")


def sentence(fault: Mapping[str, Any]) -> str:
    """Return a fault that pydantic found as a sentence with the field and the value got."""
    place = list(fault["loc"])
    where = ""
    if len(place) > 1 and place[0] == "lanes" and isinstance(place[1], int):
        where, place = f"Lane {place[1] + 1}: ", place[2:]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] in PLAIN:
        message = f"input should be {PLAIN[fault['type']]}"
    if fault["type"] == "value_error" or not place:
        return f"{where}{message}."
    shown = repr(fault.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    dotted = ".".join(str(part) for part in place)
    return f"{where}{dotted} is {shown}: {message[0].lower() + message[1:]}."


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredToken:
    """A token with its log-probability before sampling, and the most likely alternatives."""

    token_id: int
    text: str
    logprob: float
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Active:
    """The model and stack that answered, measured from the logits that were used.

    `max_logit_difference` is against the bare base on the same tokens: zero (up to rounding) for
    an empty stack. `note` is a message for the user.
    """

    model: str
    stack: ActiveStack
    max_logit_difference: float | None = None
    verified: bool = False
    batched: bool = False
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the shape of `active` in events and in `studio chat --json`."""
        stack = [{"name": name, "weight": weight} for name, weight in self.stack]
        return asdict(self) | {"stack": stack}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """The cost of an answer. `tokens` counts the answer without its stop token."""

    tokens: int = 0
    prompt_tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Return tokens per second after the first token."""
        if self.tokens > 1 and self.seconds > self.first_token_seconds:
            return (self.tokens - 1) / (self.seconds - self.first_token_seconds)
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """One step of a lane: some text, a note, or the end (`done`) with its reason."""

    lane: int
    text: str = ""
    pieces: tuple[Piece, ...] = ()  # the text in parts, where the template marks any
    token_id: int | None = None
    scored: ScoredToken | None = None
    note: str = ""
    done: bool = False
    reason: Reason | None = None
    stats: Stats = field(default_factory=Stats)
    active: Active | None = None
    error: StudioError | None = None

    def part(self, *kinds: PartKind) -> str:
        """Return the text of its pieces of these kinds; without pieces all is text."""
        pieces = self.pieces or (Piece("text", self.text),)
        return "".join(piece.text for piece in pieces if piece.kind in kinds)


# -- events ----------------------------------------------------------------------------------------


def status_event(text: str, *, lane: int | None = None) -> Event:
    """Return a message for the user, about one lane or all."""
    return {"type": "status", "lane": lane, "text": text}


def error_event(error: StudioError, *, lane: int | None = None) -> Event:
    """Return the end of a lane, or of the whole request."""
    return {"type": "error", "lane": lane, **error.as_dict()}


def events_of(delta: Delta) -> list[Event]:
    """Return a delta's events, in order."""
    lane, events = delta.lane, list[Event]()
    if delta.text or delta.scored:
        at = round(time.time(), 3)
        for kind, text in delta.pieces or (Piece("text", delta.text),):
            part = {} if kind == "text" else {"part": kind}
            events.append({"type": "delta", "lane": lane, "text": text, **part, "at": at})
        if delta.scored:
            top = [_scored(other) for other in delta.scored.top]
            events[0]["tokens"] = [_scored(delta.scored) | {"top": top}]
    if delta.note:
        events.append(status_event(delta.note, lane=lane))
    if delta.error is not None:
        events.append(error_event(delta.error, lane=lane))
    elif delta.done:
        stats = delta.stats
        events.append({
            "type": "done",
            "lane": lane,
            "reason": delta.reason,
            "tokens": stats.tokens,
            "prompt_tokens": stats.prompt_tokens,
            "tokens_per_second": round(stats.tokens_per_second, 2),
            "first_token_seconds": round(stats.first_token_seconds, 4),
            "seconds": round(stats.seconds, 4),
            "active": delta.active.as_dict() if delta.active else None,
        })  # fmt: skip
    return events


def _scored(token: ScoredToken) -> Event:
    return {"id": token.token_id, "text": token.text, "logprob": round(token.logprob, 5)}

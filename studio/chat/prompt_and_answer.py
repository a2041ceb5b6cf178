"""The prompt and the text of one answer: the context, whole characters, stop texts, scores, cost.

A conversation that is too long for the model's context loses its oldest turns, which is noted; the
system prompt and the last question stay, and the text of a turn is never cut. The chat template
turns messages into tokens, as in training.

Shapes: `V vocabulary`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from studio.chat.lanes import Active, ActiveStack, Delta, Lane, Reason, Sampling, ScoredToken, Stats
from studio.chat.sampling import Sampler
from studio.chat.thought_and_tool_parser import NO_MARKERS, MarkedText, Markers, Piece, overlap
from studio.data.model_tokenizer import CONTEXT_TOKENS, Detokenizer
from studio.errors import ChatError, StudioError

if TYPE_CHECKING:
    from studio.data.template.template import Template


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPrompt:
    """The prompt's tokens, the limit of the answer, and a note for the user.

    The last `num_continued` tokens are of an unfinished answer.
    """

    ids: list[int]
    max_new_tokens: int
    num_continued: int = 0
    note: str = ""


def fit_prompt(
    lane: Lane, template: Template, tokenizer: Any, *, context: int, before: int = 0
) -> FittedPrompt:
    """Return the prompt's tokens; drop the oldest turns where they are too long.

    Args:
        context: The model's context in tokens.
        before: Positions of the stack's virtual tokens.

    Raises:
        ChatError: The last question alone is longer than the context.
        DataError: The template refuses the conversation.
    """
    room = context - before
    asked = lane.sampling.max_new_tokens
    usual = Sampling().max_new_tokens  # for an answer that may fill the context
    wanted = min(asked if asked < room else usual, max(16, room // 4), room // 2)
    turns = lane.conversation()
    head = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    system, turns = turns[:head], turns[head:]
    starts = [i for i, turn in enumerate(turns) if turn["role"] == "user" or i == 0] or [0]

    unfinished: list[int] = []
    if len(system + turns) > 1 and turns and turns[-1]["role"] == "assistant":
        unfinished = tokenizer.encode(turns.pop()["content"], add_special_tokens=False)

    def encoded(place: int) -> list[int]:
        shown = system + turns[starts[place] :]
        return template.encode_prompt(shown, [*lane.tools] or None) + unfinished

    ids = encoded(0)
    place = 0
    if len(ids) > room - wanted and len(starts) > 1:
        places = range(len(starts) - 1)
        place = bisect_left(places, True, lo=1, key=lambda p: len(encoded(p)) <= room - wanted)
        ids = encoded(place)
    if len(ids) >= room:
        raise ChatError(
            f"The prompt has {len(ids):,} tokens, but the model reads at most {room - 1:,} at once"
            f"{f' beside {before} virtual tokens' if before else ''}: shorten it, or choose a "
            "model with a longer context."
        )
    if not ids:
        raise ChatError("The prompt is empty: write something.")
    note = ""
    if left_out := starts[place]:
        note = (
            f"The oldest {left_out} messages no longer fit into the {context:,} tokens of the "
            "context and were left out."
        )
    return FittedPrompt(
        ids=ids, max_new_tokens=min(lane.sampling.max_new_tokens, room - len(ids)),
        num_continued=len(unfinished), note=note,
    )  # fmt: skip


class StopTexts:
    """Hold back text that may begin a stop text, and cut the answer at the first stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached = False

    def add(self, text: str) -> str:
        """Add text and return what can be shown."""
        if not self._stops:
            return text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.reached = True
            return self._held[: min(places)]
        keep = max(overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return the text held back, at the end of the answer."""
        return "" if self.reached else self._held


class Answer:
    """The answer of one lane.

    Args:
        number: The lane's place in the request.
        stop_ids: Tokens that end the answer.
        vocab_size: Number of logits.
        started: Start of the request (`perf_counter`).
        markers: What the model's template writes around thoughts and calls.
    """

    def __init__(
        self,
        number: int,
        lane: Lane,
        stack: ActiveStack,
        prompt: FittedPrompt,
        tokenizer: Any,
        stop_ids: Collection[int],
        vocab_size: int,
        started: float,
        markers: Markers = NO_MARKERS,
    ) -> None:
        self.number = number
        self.lane = lane
        self.stack = stack  # active now
        self.requested = stack  # the last one requested while it was written
        self.changed_at: int | None = None  # the token at which weights last changed
        self.prompt = prompt.ids
        self.tokens: list[int] = []
        self.sampler = Sampler(lane.sampling, prompt.ids, vocab_size)
        self.reason: Reason | None = None
        self.error: StudioError | None = None
        self.active: Active | None = None
        self._limit = prompt.max_new_tokens
        self._stop_ids = stop_ids
        self._tokenizer = tokenizer
        kept = _kept_tokens(tokenizer, markers, stop_ids)
        self._text = Detokenizer(tokenizer, prompt.ids, kept)
        self._parts = _parts_after(prompt, lane, markers, tokenizer)
        self._stops = StopTexts(lane.sampling.stop)
        self._started = started
        self._first = 0.0
        self._counted = 0

    def take(self, token: int, logits_V: Tensor) -> Delta:
        """Append a token; the last one sets `reason`."""
        self._first = self._first or time.perf_counter() - self._started
        self.tokens.append(token)
        if token in self._stop_ids:
            self.reason = "stop"
            return Delta(lane=self.number)
        self._counted += 1
        text = self._stops.add(self._text.add(token))
        if self._stops.reached:
            self.reason = "stop"
        elif self._counted >= self._limit:
            self.reason = "length"
        scored, wanted = None, self.lane.sampling.logprobs
        if wanted >= 0:
            scored = score(self._tokenizer, logits_V, token, wanted)
        text, pieces = self._split(text)
        return Delta(lane=self.number, text=text, pieces=pieces, token_id=token, scored=scored)

    def _split(self, text: str, *, ended: bool = False) -> tuple[str, tuple[Piece, ...]]:
        """Return the text that is complete, and its parts where the template marks any."""
        if self._parts is None:
            return text, ()
        pieces = self._parts.add(text) + (self._parts.flush() if ended else [])
        return "".join(piece.text for piece in pieces), tuple(pieces)

    def fail(self, error: StudioError) -> None:
        """End the answer with an error."""
        self.reason, self.error = "error", error

    def done(self) -> Delta:
        """Return the last delta: text held back, reason, cost, active stack."""
        text = "" if self._stops.reached else self._stops.add(self._text.flush())
        text, pieces = self._split(text + self._stops.flush(), ended=True)
        note = ""
        if self.reason == "length" and self._limit < self.lane.sampling.max_new_tokens:
            note = "The model's context is full: the answer ends here."
        active = self.active
        if self.changed_at is not None:
            note += f" Weights changed while it was written, last at token {self.changed_at + 1}."
            if active is not None:
                active = replace(active, stack=tuple(part for part in self.stack if part[1]))
        return Delta(
            lane=self.number,
            text=text,
            pieces=pieces,
            done=True,
            reason=self.reason,
            stats=Stats(
                tokens=self._counted,
                prompt_tokens=len(self.prompt),
                first_token_seconds=self._first,
                seconds=time.perf_counter() - self._started,
            ),
            active=active,
            error=self.error,
            note=note.strip(),
        )


def without_thought(
    ids: Sequence[int], prompt: Sequence[int], tokenizer: Any, markers: Markers,
    stop_ids: Collection[int],
) -> str:  # fmt: skip
    """Return the text of an answer's tokens without thoughts and markers."""
    text = Detokenizer(tokenizer, prompt, _kept_tokens(tokenizer, markers, stop_ids))
    tail = tokenizer.decode(prompt[-2 * CONTEXT_TOKENS :], skip_special_tokens=False)
    parts = MarkedText(markers, str(tail))
    pieces = parts.add("".join(map(text.add, ids)) + text.flush()) + parts.flush()
    return "".join(one.text for one in pieces if one.kind in ("text", "call")).strip()


def _kept_tokens(tokenizer: Any, markers: Markers, stop_ids: Collection[int]) -> dict[int, str]:
    """Return the control tokens whose text belongs to an answer: markers of thoughts and calls."""
    if not markers:
        return {}
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {
        token: text for token, text in special if token not in stop_ids and markers.is_written(text)
    }


def _parts_after(
    prompt: FittedPrompt, lane: Lane, markers: Markers, tokenizer: Any
) -> MarkedText | None:
    """Return the splitter of an answer, in the state that its prompt or its beginning left."""
    if not markers:
        return None
    end = len(prompt.ids) - prompt.num_continued
    tail = prompt.ids[max(0, end - 2 * CONTEXT_TOKENS) : end]
    parts = MarkedText(markers, str(tokenizer.decode(tail, skip_special_tokens=False)))
    if prompt.num_continued:
        parts.add(lane.messages[-1].content)
        parts.flush()
    return parts


def score(tokenizer: Any, logits_V: Tensor, token: int, alternatives: int) -> ScoredToken:
    """Return a token's log-probability before any sampling filter, and the most likely others."""
    logprobs_V = logits_V.float().log_softmax(-1)
    values, ids = logprobs_V.topk(min(alternatives, len(logprobs_V)))
    top = tuple(
        ScoredToken(token_id=i, text=token_text(tokenizer, i), logprob=value)
        for i, value in zip(ids.tolist(), values.tolist(), strict=True)
    )
    text, logprob = token_text(tokenizer, token), float(logprobs_V[token])
    return ScoredToken(token_id=token, text=text, logprob=logprob, top=top)


def token_text(tokenizer: Any, token: int) -> str:
    """Return the text of one token alone, with its leading space."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if isinstance(piece, str) and piece.startswith("\u2581"):
        return piece.replace("\u2581", " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return str(text)

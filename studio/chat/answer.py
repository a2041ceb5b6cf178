"""One growing answer: its tokens, its text so far, when it ends, what it cost.

It takes tokens and gives deltas. Where the tokens come from is the group's business.

Shapes: `V vocabulary`.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from studio.chat.identity import Stack
from studio.chat.lanes import Active, Alternative, Delta, Lane, Reason, Scored, Stats
from studio.chat.prompt import Fitted
from studio.chat.sampling import Sampler
from studio.chat.text import Detokenizer, StopTexts
from studio.errors import StudioError

if TYPE_CHECKING:
    from torch import Tensor


class Answer:
    """The answer of one lane.

    Args:
        number: The lane's place in the request.
        lane: What was asked.
        stack: The adapters that should act.
        fitted: The prompt's tokens and how many may follow.
        tokenizer: Turns tokens into text.
        stop_ids: Tokens that end the answer.
        vocab_size: How many logits there are.
        started: When the request began (`perf_counter`).
    """

    def __init__(
        self,
        number: int,
        lane: Lane,
        stack: Stack,
        fitted: Fitted,
        tokenizer: Any,
        stop_ids: Collection[int],
        vocab_size: int,
        started: float,
    ) -> None:
        self.number = number
        self.lane = lane
        self.stack = stack  # what acts now
        self.asked = stack  # what was last asked for while it was written
        self.moved_at: int | None = None  # the token at which weights last moved
        self.prompt = fitted.ids
        self.tokens: list[int] = []
        self.sampler = Sampler(lane.sampling, fitted.ids, vocab_size)
        self.reason: Reason | None = None
        self.error: StudioError | None = None
        self.active: Active | None = None
        self._limit = fitted.max_new_tokens
        self._stop_ids = stop_ids
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer, fitted.ids)
        self._stops = StopTexts(lane.sampling.stop)
        self._started = started
        self._first = 0.0
        self._counted = 0

    def take(self, token: int, logits_V: Tensor) -> Delta:
        """Append a token; `reason` is set when it was the last."""
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
        scored: tuple[Scored, ...] = ()
        if self.lane.sampling.logprobs >= 0:
            scored = (score(self._tokenizer, logits_V, token, self.lane.sampling.logprobs),)
        return Delta(lane=self.number, text=text, token_id=token, scored=scored)

    def fail(self, error: StudioError) -> None:
        """End the answer with an error."""
        self.reason, self.error = "error", error

    def done(self) -> Delta:
        """Return the last delta: text that was held back, and how it went."""
        text = "" if self._stops.reached else self._stops.add(self._text.flush())
        text += self._stops.flush()
        note = ""
        if self.reason == "length" and self._limit < self.lane.sampling.max_new_tokens:
            note = "The model's context is full: the answer ends here."
        if self.moved_at is not None:
            note = f"{note} Weights moved while it was written, last at token {self.moved_at + 1}."
        return Delta(
            lane=self.number,
            text=text,
            done=True,
            reason=self.reason,
            stats=self.stats(),
            active=self._active_at_the_end(),
            error=self.error,
            note=note.strip(),
        )

    def _active_at_the_end(self) -> Active | None:
        if self.active is None or self.moved_at is None:
            return self.active
        return replace(self.active, stack=tuple(part for part in self.stack if part[1]))

    def stats(self) -> Stats:
        """What the answer cost until now."""
        return Stats(
            tokens=self._counted,
            prompt_tokens=len(self.prompt),
            first_token_seconds=self._first,
            seconds=time.perf_counter() - self._started,
        )


def score(tokenizer: Any, logits_V: Tensor, token: int, alternatives: int) -> Scored:
    """Return a token's log-probability before any sampling filter, and the likeliest others."""
    logprobs_V = logits_V.float().log_softmax(-1)
    top: tuple[Alternative, ...] = ()
    if alternatives:
        values, ids = logprobs_V.topk(min(alternatives, len(logprobs_V)))
        top = tuple(
            Alternative(token_id=i, text=token_text(tokenizer, i), logprob=value)
            for i, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
    return Scored(
        token_id=token, text=token_text(tokenizer, token), logprob=float(logprobs_V[token]), top=top
    )


def token_text(tokenizer: Any, token: int) -> str:
    """How one token looks alone, its leading space included."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if isinstance(piece, str) and piece.startswith("\u2581"):
        return piece.replace("\u2581", " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return str(text)

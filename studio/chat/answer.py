"""One growing answer: tokens, text of whole characters, stop conditions, cost.

A token may be a part of a character (byte-level and byte-fallback vocabularies) or owe its leading
space to its neighbour (sentencepiece), so tokens are never decoded alone: always together with the
few before them, and text that ends in a broken character waits for the next token. It knows a
tokenizer's `decode` and nothing of models.

It takes tokens and gives deltas. Where the tokens come from is the group's business.

Shapes: `V vocabulary`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from studio.chat.lanes import Active, Alternative, Delta, Lane, Reason, Scored, Stats
from studio.chat.prompt import Fitted
from studio.chat.routing_check import Stack
from studio.chat.sampling import Sampler
from studio.errors import StudioError

if TYPE_CHECKING:
    from torch import Tensor


BROKEN = "\ufffd"
CONTEXT = 6
PATIENCE = 8  # no character has more bytes; a longer wait means the bytes are no text


class Detokenizer:
    """The text of one growing answer.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The tokens before the answer; their end decides about the first space.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = list(prompt[-CONTEXT:])  # decoded before, for the first space's sake
        self._waiting: list[int] = []

    def add(self, token_id: int) -> str:
        """Take one token and return the text that is now certain, possibly none."""
        self._waiting.append(token_id)
        text = self._fresh()
        if not text or (text.endswith(BROKEN) and len(self._waiting) < PATIENCE):
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        """Return what is left when no token follows; a broken character stays visible."""
        text = self._fresh()
        self._advance()
        return text

    def _fresh(self) -> str:
        before = self._decode(self._shown)
        after = self._decode(self._shown + self._waiting)
        if after.startswith(before):
            return after[len(before) :]
        return self._decode(self._waiting)  # broken bytes spoiled a run that was whole before

    def _advance(self) -> None:
        # The text just shown ends in a whole character, so decoding can go on from its tokens.
        if self._waiting:
            self._shown, self._waiting = self._waiting, []

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class StopTexts:
    """Hold back text that may be the beginning of a stop text, and cut at the first whole one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached = False

    def add(self, text: str) -> str:
        """Return the part of the text that can be shown."""
        if not self._stops:
            return text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.reached = True
            return self._held[: min(places)]
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back when the answer ends otherwise."""
        return "" if self.reached else self._held

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


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

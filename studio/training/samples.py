"""Sample answers of the model while it trains: the same prompts at every evaluation.

Decoding is greedy, so it consumes no random numbers of the training. Samples take about a tenth of
the training time at most: beyond it an answer is cut short and ends with an ellipsis. The last
samples, and those that the user requests, get more time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.chat.decoding import Batch
from studio.data.template.template import IGNORED, choose_for
from studio.training.events import Sampled
from studio.training.session import Session
from studio.training.start import num_tokens_before

if TYPE_CHECKING:
    import torch

    from studio.backbone import Backbone
    from studio.training.batch import TokenRow

MAX_NEW_TOKENS, MAX_PROMPT_TOKENS = 48, 512
MIN_SECONDS, FULL_LENGTH_SECONDS = 1.0, 15.0
TIME_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """A prompt as token ids and as text."""

    ids: tuple[int, ...]
    text: str


class PromptSampler:
    """Samples fixed prompts: the user's, or those of the first validation rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last = time.monotonic()
        self.stop_ids: tuple[int, ...] = ()
        self.prompts = self._choose()

    def sample(self, *, full_length: bool = False) -> Iterator[Sampled]:
        """Answer every prompt with the current adapter.

        Args:
            full_length: Give the answers `FULL_LENGTH_SECONDS` together.
        """
        if not self.prompts:
            return
        session, now = self._session, time.monotonic()
        session.activate()
        seconds = max(
            FULL_LENGTH_SECONDS if full_length else MIN_SECONDS, TIME_FRACTION * (now - self._last)
        )
        answers = greedy(
            session.backbone,
            [prompt.ids for prompt in self.prompts],
            device=session.loaded.device,
            stop_ids=self.stop_ids,
            max_new_tokens=MAX_NEW_TOKENS,
            seconds=math.inf if session.spec.train.fsdp else seconds,  # ranks must stop together
        )
        mean = sum(len(ids) for ids, _ in answers) / len(answers)
        session.progress.watch.see_answers(mean)
        for number, (ids, ended) in enumerate(answers, start=1):
            text = session.loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
            yield Sampled(
                step=session.progress.step, prompt=self.prompts[number - 1].text,
                text=text if ended else f"{text} …",
                answer_tokens=mean if number == len(answers) else None,
            )  # fmt: skip
        self._last = time.monotonic()

    def _choose(self) -> list[SamplePrompt]:
        session, args = self._session, self._session.spec.train
        tokenizer = session.loaded.tokenizer
        if not args.num_samples or tokenizer is None:
            return []
        template = choose_for(tokenizer, session.spec.data)
        self.stop_ids = template.stop_ids
        own = [part.strip() for part in args.sample_prompts.split("|") if part.strip()]
        if own:
            found = user_prompts(own[: args.num_samples], template)
        else:
            rows = session.prepared.validation[: 4 * args.num_samples]
            found = [p for row in rows if (p := prompt_of(row, tokenizer))]
        room = session.loaded.facts.context_length - num_tokens_before(session.spec)
        unique = {p.text: p for p in found if len(p.ids) + MAX_NEW_TOKENS <= room}
        return list(unique.values())[: args.num_samples]


def prompt_of(row: TokenRow, tokenizer: Any) -> SamplePrompt | None:
    """Return the tokens before a row's first trained one; for plain text its first third."""
    trained = (row.labels != IGNORED).nonzero()[0]
    first = int(trained[0]) if len(trained) else 0
    if first < 2:
        first = len(row.input_ids) // 3
    if not 0 < first <= MAX_PROMPT_TOKENS:
        return None
    ids = tuple(int(token) for token in row.input_ids[:first])
    return SamplePrompt(ids, tokenizer.decode(ids, skip_special_tokens=True).strip())


def user_prompts(questions: Sequence[str], template: Any) -> list[SamplePrompt]:
    """Return the user's questions, rendered with the chat template."""
    return [
        SamplePrompt(tuple(template.encode_prompt([{"role": "user", "content": text}])), text)
        for text in questions
    ]


def greedy(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    device: torch.device,
    stop_ids: Collection[int],
    max_new_tokens: int,
    seconds: float = float("inf"),
) -> list[tuple[list[int], bool]]:
    """Return each prompt's greedy continuation, and whether it reached a stop token."""
    deadline = time.monotonic() + seconds
    found: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    going = list(range(len(prompts)))
    with backbone.evaluating(), backbone.without_checkpointing():
        batch = Batch(backbone.model, prompts, device)
        logits_BV, _ = batch.prefill()
        for _ in range(max_new_tokens):
            tokens = logits_BV.argmax(-1).tolist()
            kept = [i for i, token in enumerate(tokens) if token not in stop_ids]
            for i, row in enumerate(going):
                ended[row] = i not in kept
            for i in kept:
                found[going[i]].append(tokens[i])
            if not kept or time.monotonic() > deadline:
                break
            if len(kept) < len(going):
                batch.keep(kept)
                going = [going[i] for i in kept]
            logits_BV = batch.step([found[row][-1] for row in going])
    return list(zip(found, ended, strict=True))

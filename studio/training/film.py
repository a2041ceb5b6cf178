"""The filmstrip of a run: the same few prompts answered at every evaluation, and before the first.

Answers are greedy and touch nothing of the training. Together they cost at most about a tenth of
the time: beyond it they are cut short, and say so with an ellipsis. Those that are read, the last
ones and those that a person asks for, get longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from studio.training.answers import Prompt, asked, greedy, prompt_of
from studio.training.events import Sampled
from studio.training.session import Session

MAX_NEW_TOKENS = 48
LEAST_SECONDS, READ_SECONDS = 1.0, 15.0
SHARE = 0.1


class Film:
    """Fixed prompts, chosen once: the person's own, or the first held-out rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cut = time.monotonic()
        self.stop_ids: tuple[int, ...] = ()
        self.prompts = self._choose()

    def shoot(self, *, read: bool = False) -> Iterator[Sampled]:
        """Answer every prompt as the adapter is now; `read`: somebody waits for these."""
        if not self.prompts:
            return
        session, now = self._session, time.monotonic()
        session.stage()
        answers = greedy(
            session.backbone,
            [prompt.ids for prompt in self.prompts],
            device=session.loaded.device,
            stop_ids=self.stop_ids,
            max_new_tokens=MAX_NEW_TOKENS,
            seconds=self._seconds(now - self._cut, READ_SECONDS if read else LEAST_SECONDS),
        )
        for prompt, (ids, ended) in zip(self.prompts, answers, strict=True):
            text = session.loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
            more = "" if ended else " …"
            yield Sampled(step=session.progress.step, prompt=prompt.text, text=text + more)
        self._cut = time.monotonic()

    def _seconds(self, since: float, least: float) -> float:
        if self._session.spec.train.fsdp:
            return math.inf  # all processes compute each token together, so none may stop alone
        return max(least, SHARE * since)

    def _choose(self) -> list[Prompt]:
        from studio.data.templates import choose

        session, args = self._session, self._session.spec.train
        if not args.num_samples or session.loaded.tokenizer is None:
            return []
        template = choose(session.loaded.tokenizer, session.spec.data.chat_template)
        self.stop_ids = template.stop_ids
        own = [part.strip() for part in args.sample_prompts.split("|") if part.strip()]
        if own:
            found = asked(own[: args.num_samples], template)
        else:
            rows = session.prepared.validation[: 4 * args.num_samples]
            found = [p for row in rows if (p := prompt_of(row, session.loaded.tokenizer))]
        room = session.loaded.facts.context_length - session.spec.method.num_tokens_before
        unique = {p.text: p for p in found if len(p.ids) + MAX_NEW_TOKENS <= room}
        return list(unique.values())[: args.num_samples]

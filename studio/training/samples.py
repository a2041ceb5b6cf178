"""Sample answers of the model while it trains: the same prompts at every evaluation.

Greedy, so that nothing random of the training is touched. A deadline may cut answers short: what is
shown along the way must never cost a large part of the run.

Answers are greedy and touch nothing of the training. Together they cost at most about a tenth of
the time: beyond it they are cut short, and say so with an ellipsis. Those that are read, the last
ones and those that a person asks for, get longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.chat.decoding import Batch
from studio.training.events import Sampled
from studio.training.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from studio.backbone import Backbone
    from studio.training.batch import Row


LONGEST_PROMPT = 512
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: its tokens as training has them, and as a person reads it."""

    ids: tuple[int, ...]
    text: str


def prompt_of(row: Row, tokenizer: Any) -> Prompt | None:
    """Return what stands before a row's first trained token; of a plain text its first third."""
    trained = (row.labels != IGNORED).nonzero()[0]
    first = int(trained[0]) if len(trained) else 0
    if first < 2:
        first = len(row.input_ids) // 3
    if not 0 < first <= LONGEST_PROMPT:
        return None
    ids = tuple(int(token) for token in row.input_ids[:first])
    return Prompt(ids, tokenizer.decode(ids, skip_special_tokens=True).strip())


def asked(questions: Sequence[str], template: Any) -> list[Prompt]:
    """Return a person's own questions as the template has them."""
    return [
        Prompt(tuple(template.encode_prompt([{"role": "user", "content": question}])), question)
        for question in questions
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
    """Return each prompt's likeliest continuation, and whether it came to its own end."""
    deadline = time.monotonic() + seconds
    found: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    going = list(range(len(prompts)))
    with backbone.evaluating(), _not_recomputing(backbone):
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


@contextmanager
def _not_recomputing(backbone: Backbone) -> Iterator[None]:
    """Let checkpointed layers keep a cache for a while."""
    layers = [layer for layer in backbone.anatomy.layers() if layer.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


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
        from studio.data.template.template import choose

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

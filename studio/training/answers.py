"""Short greedy answers of the model as it is now: the filmstrip of a run, and scored evaluations.

Greedy, so that nothing random of the training is touched. A deadline may cut answers short: what is
shown along the way must never cost a large part of the run.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.chat.decoding import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from studio.methods.layer import Backbone
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

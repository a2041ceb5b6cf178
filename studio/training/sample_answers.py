"""Sample answers of the model while it trains: the same prompts at every evaluation.

Samples are greedy, so they consume no random numbers of the training. They take about a tenth of
the training time at most: beyond it an answer is cut short and ends with an ellipsis. The last
samples, and those that the user requests, get more time. GRPO (`grpo_rollouts.py`) decodes its
answers here too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from studio.chat.decoding import Batch, shares_passes
from studio.chat.lanes import Sampling
from studio.chat.sampling import Sampler, pick_all
from studio.data.template.choose_template import choose_for
from studio.data.template.template import IGNORED
from studio.training.starting_point import num_tokens_before
from studio.training.training_events import Answered, Asked, Sampled

if TYPE_CHECKING:
    import torch

    from studio.backbone import Backbone
    from studio.backbone.composition import Stack
    from studio.training.batching import TokenRow
    from studio.training.training_session import Session

MAX_NEW_TOKENS, MAX_OF_LONG, MAX_PROMPT_TOKENS = 48, 128, 512
MIN_SECONDS, FULL_LENGTH_SECONDS = 1.0, 15.0
TIME_FRACTION = 0.1
LEAST_COPY = 8  # tokens in a row
MIN_QUESTIONS, MAX_WANTED_TOKENS = 3, 256


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """A prompt as token ids and as text, and the row's own answer without its end of turn.

    `limit` is the most tokens of an answer: up to twice the row's own, so that a missing end shows.
    """

    ids: tuple[int, ...]
    text: str
    own: tuple[int, ...] = ()
    own_ended: bool = False
    limit: int = MAX_NEW_TOKENS


class PromptSampler:
    """Samples fixed prompts: the user's, or those of the first validation rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last = time.monotonic()
        self.stop_ids: tuple[int, ...] = ()
        self.questions: list[dict[str, Any]] = []
        self.prompts = self._choose()

    def asked(self) -> Asked:
        """Return the event with the questions that answers can be held against."""
        return Asked(step=self._session.progress.step, questions=self.questions)

    def sample(self, *, full_length: bool = False) -> Iterator[Sampled | Answered]:
        """Answer every prompt with the current adapter.

        With `full_length` the answers have `FULL_LENGTH_SECONDS` together.
        """
        if not self.prompts:
            return
        session, now = self._session, time.monotonic()
        session.activate()
        seconds = max(
            FULL_LENGTH_SECONDS if full_length else MIN_SECONDS, TIME_FRACTION * (now - self._last)
        )
        answers = greedy(
            session.backbone, [prompt.ids for prompt in self.prompts],
            device=session.loaded.device, stop_ids=self.stop_ids,
            limits=[prompt.limit for prompt in self.prompts],
            seconds=math.inf if session.spec.train.fsdp else seconds,  # ranks must stop together
        )  # fmt: skip
        mean = sum(len(ids) for ids, _ in answers) / len(answers)
        for number, (ids, ended) in enumerate(answers, start=1):
            text = session.loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
            yield Sampled(
                step=session.progress.step, prompt=self.prompts[number - 1].text,
                text=text if ended else f"{text} …",
                answer_tokens=mean if number == len(answers) else None,
            )  # fmt: skip
        if all(prompt.own for prompt in self.prompts):
            yield compared(session.progress.step, self.prompts, answers)
        self._last = time.monotonic()

    def _choose(self) -> list[SamplePrompt]:
        session, args = self._session, self._session.spec.train
        tokenizer = session.loaded.tokenizer
        if tokenizer is None or args.num_samples < 1:
            return []
        template = choose_for(tokenizer, session.spec.data)
        self.stop_ids = template.stop_ids
        prepared, wanted = session.prepared, max(args.num_samples, MIN_QUESTIONS)
        room = session.loaded.facts.context_length - num_tokens_before(session.spec)
        held = self._of_rows(prepared.validation, room)[:wanted]
        overlap = None if prepared.report.overlap else False
        trained = self._of_rows(prepared.train, room)[:MIN_QUESTIONS]
        self.questions = [
            {"prompt": one.text, "wanted": self._wanted(one), "trained": known}
            for some, known in ((held, overlap), (trained, True))
            for one in some
            if one.own
        ]
        own = [part.strip() for part in args.sample_prompts.split("|") if part.strip()]
        if not own:
            return held[: args.num_samples]
        asked = [[{"role": "user", "content": text}] for text in own[: args.num_samples]]
        return unique(
            (SamplePrompt(tuple(template.encode_prompt(turns)), turns[0]["content"])
             for turns in asked), room,
        )  # fmt: skip

    def _of_rows(self, rows: Sequence[Any], room: int) -> list[SamplePrompt]:
        """Return the prompts of the first rows; of a pair, the chosen answer comes first."""
        tokenizer = self._session.loaded.tokenizer
        some = rows[: 4 * max(self._session.spec.train.num_samples, MIN_QUESTIONS)]
        return unique((p for row in some if (p := prompt_of(row, tokenizer, self.stop_ids))), room)

    def _wanted(self, prompt: SamplePrompt) -> str:
        ids = prompt.own[:MAX_WANTED_TOKENS]
        text: str = self._session.loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return text if len(ids) == len(prompt.own) else f"{text} …"


def unique(prompts: Iterable[SamplePrompt], room: int) -> list[SamplePrompt]:
    """Return the prompts that leave room for an answer, each text once."""
    found: dict[str, SamplePrompt] = {}
    for prompt in prompts:
        left, wanted = room - len(prompt.ids), min(MAX_OF_LONG, 2 * len(prompt.own))
        if left >= MAX_NEW_TOKENS:
            limit = min(left, max(MAX_NEW_TOKENS, wanted))
            found.setdefault(prompt.text, replace(prompt, limit=limit))
    return list(found.values())


def prompt_of(row: TokenRow, tokenizer: Any, stop_ids: Collection[int] = ()) -> SamplePrompt | None:
    """Return the tokens before a row's first trained one; for plain text its first third."""
    trained = (row.labels != IGNORED).nonzero()[0]
    first = int(trained[0]) if len(trained) else len(row.input_ids)
    is_text = first < 2
    if is_text:
        first = len(row.input_ids) // 3
    if not 0 < first <= MAX_PROMPT_TOKENS:
        return None
    ids = tuple(int(token) for token in row.input_ids[:first])
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if is_text or not getattr(row, "good", True):
        return SamplePrompt(ids, text)
    own, ended = _own_answer(row.labels[first:].tolist(), stop_ids)
    return SamplePrompt(ids, text, own, ended)


def _own_answer(labels: list[int], stop_ids: Collection[int]) -> tuple[tuple[int, ...], bool]:
    """Return the first answer of a row up to its end of turn, and whether that is trained."""
    for place, token in enumerate(labels):
        if token == IGNORED or token in stop_ids:
            return tuple(labels[:place]), token != IGNORED
    return tuple(labels), False


def compared(
    step: int, prompts: Sequence[SamplePrompt], answers: Sequence[tuple[list[int], bool]]
) -> Answered:
    """Return how the answers differ from the rows' own: in length, in their end, as copies."""
    lengths, own_lengths, overrun, copied = [], [], 0, 0
    for prompt, (ids, ended) in zip(prompts, answers, strict=True):
        own = len(prompt.own)
        overrun += not ended and len(ids) >= max(own + LEAST_COPY, min(2 * own, prompt.limit))
        copied += copies(ids, prompt.ids) and not copies(prompt.own, prompt.ids)
        lengths.append(len(ids))
        own_lengths.append(min(own, prompt.limit))
    cut = any(  # by the time, so that the length is not known
        not ended and len(ids) < own for (ids, ended), own in zip(answers, own_lengths, strict=True)
    )
    return Answered(
        step=step,
        answer_length=None if cut else sum(lengths) / sum(own_lengths),
        answers_overrun=overrun / len(prompts),
        answers_copied=copied / len(prompts),
        rows_ended=sum(prompt.own_ended for prompt in prompts) / len(prompts),
    )


def copies(answer: Sequence[int], prompt: Sequence[int]) -> bool:
    """Return True if half of an answer or more are runs of `LEAST_COPY` tokens of its prompt."""
    size = LEAST_COPY
    known = {tuple(prompt[i : i + size]) for i in range(len(prompt) - size + 1)}
    covered: set[int] = set()
    for i in range(len(answer) - size + 1):
        if tuple(answer[i : i + size]) in known:
            covered.update(range(i, i + size))
    return bool(answer) and 2 * len(covered) >= len(answer)


def greedy(
    backbone: Backbone, prompts: Sequence[Sequence[int]], *, device: torch.device,
    stop_ids: Collection[int], limits: Sequence[int], seconds: float = math.inf,
) -> list[tuple[list[int], bool]]:  # fmt: skip
    """Return each prompt's greedy continuation, and whether it reached a stop token."""
    found = continuations(
        backbone, prompts, [[Sampling()]] * len(prompts), device=device, stop_ids=stop_ids,
        limits=limits, seconds=seconds,
    )  # fmt: skip
    return [(one.ids, one.stop is not None) for one in found]


@dataclass(slots=True)
class Continuation:
    """Tokens after a prompt, and the stop token after them if there was one.

    `overflows` is True if it ended because the logits are not finite.
    """

    ids: list[int]
    stop: int | None = None
    overflows: bool = False


def continuations(
    backbone: Backbone, prompts: Sequence[Sequence[int]], samplings: Sequence[Sequence[Sampling]],
    *, device: torch.device, stop_ids: Collection[int], limits: Sequence[int],
    seconds: float = math.inf, stacks: Sequence[Stack] = (),
    is_over: Callable[[list[int]], bool] = lambda ids: False,
) -> list[Continuation]:  # fmt: skip
    """Continue each prompt once for each of its samplings, in their order, all in one batch.

    The tokens are those of the chat engine with the same stack and seeds. A prompt is read once for
    all its answers, where rows may share a pass.

    `limits` are the most tokens of an answer, by prompt; all are cut short after `seconds`.
    `stacks` are those of the prompts where they differ (`backbone.use_rows` has activated them);
    `is_over` returns True if an answer ends after these tokens.
    """
    deadline = time.monotonic() + seconds
    order = [number for number, own in enumerate(samplings) for _ in own]
    found = [Continuation([]) for _ in order]
    going = list(range(len(order)))
    with backbone.evaluating(), backbone.without_checkpointing():
        shared = shares_passes(backbone.model) and len(order) > len(prompts)
        batch = Batch(backbone.model, prompts if shared else [prompts[n] for n in order], device)
        logits_BV, _ = batch.prefill()
        if shared:
            batch.keep(order)
            logits_BV = logits_BV[order]
        every = (one for own in samplings for one in own)
        samplers = [
            Sampler(one, prompts[number], logits_BV.shape[-1])
            for number, one in zip(order, every, strict=True)
        ]
        while True:
            tokens = pick_all([samplers[row] for row in going], logits_BV)
            kept = []
            for place, (row, token) in enumerate(zip(going, tokens, strict=True)):
                own = found[row]
                if token is None or token in stop_ids:
                    own.stop, own.overflows = token, token is None
                    continue
                own.ids.append(token)
                if len(own.ids) < limits[order[row]] and not is_over(own.ids):
                    kept.append(place)
            if not kept or time.monotonic() > deadline:
                return found
            if len(kept) < len(going):
                batch.keep(kept)
                going = [going[place] for place in kept]
                if stacks:
                    backbone.use_rows([stacks[order[row]] for row in going])
            logits_BV = batch.step([found[row].ids[-1] for row in going])

"""Answers that go through the model in one batch: prefill, proof of identity, steps.

Shapes: `B rows, V vocabulary`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from studio.chat.answer import Answer
from studio.chat.decoding import Batch
from studio.chat.identity import Identity, Stack, probe
from studio.chat.lanes import Active, Delta, Reason
from studio.chat.sampling import pick_all
from studio.errors import ChatError, MethodError, StudioError

if TYPE_CHECKING:
    from torch import Tensor

    from studio.methods.layer import Backbone
    from studio.models.loading import Loaded

NO_EFFECT = "This stack does not change the model here: the answer is the base's."
LATER = "This change acts from the next answer on: only weights can move while one is written."
VIRTUAL = "{} has virtual tokens: switching it on or off acts from the next answer on."
OVERFLOW = "The model's numbers overflow with this stack: lower its weights."


class Group:
    """A batch of answers; `advance` takes each one token further until none is left."""

    def __init__(
        self, answers: Sequence[Answer], loaded: Loaded, backbone: Backbone, identity: Identity
    ) -> None:
        self.answers = list(answers)
        self._loaded = loaded
        self._backbone = backbone
        self._identity = identity
        self._batch: Batch | None = None

    def activate(self) -> None:
        """Make the rows' stacks the backbone's active ones."""
        stacks = [answer.stack for answer in self.answers]
        if len(set(stacks)) == 1:
            self._backbone.use(stacks[0])
        else:
            self._backbone.use_rows(stacks)

    def advance(self) -> Iterator[Delta]:
        """Take every row one token further; its stacks must be active."""
        if self._batch is None:
            yield from self._start()
        else:
            logits_BV = self._batch.step([answer.tokens[-1] for answer in self.answers])
            yield from self._take(logits_BV)
        yield from self._drop_finished()

    def reweigh(self, wanted: Mapping[int, Stack]) -> Iterator[Delta]:
        """Let answers go on with other weights from their next token on.

        What cannot change in the middle is said once and left as it was.
        """
        for answer in self.answers:
            stack = wanted.get(answer.number, answer.asked)
            if stack == answer.asked:
                continue
            before, answer.asked = answer.stack, stack
            refusal = self._refusal(before, stack)
            if not refusal:
                answer.stack = stack
                try:
                    self.activate()
                    answer.moved_at = len(answer.tokens)
                except MethodError as error:
                    answer.stack, refusal = before, error.text
                    self.activate()
            if refusal:
                yield Delta(lane=answer.number, note=refusal)

    def _refusal(self, before: Stack, after: Stack) -> str:
        if [name for name, _ in before] != [name for name, _ in after]:
            return LATER
        for (name, was), (_, now) in zip(before, after, strict=True):
            virtual = self._backbone.adapters[name].method.num_tokens_before
            if virtual and bool(was) != bool(now):
                return VIRTUAL.format(name)
        return ""

    def end(self, reason: Reason, error: StudioError | None = None) -> Iterator[Delta]:
        """End every answer that is left."""
        self._batch = None
        for answer in self.answers:
            answer.reason, answer.error = reason, error
            yield answer.done()
        self.answers = []

    def _start(self) -> Iterator[Delta]:
        self.activate()
        claimed = self._backbone.active
        prompts = [answer.prompt for answer in self.answers]
        self._batch = Batch(self._loaded.model, prompts, self._loaded.device)
        logits_BV, probed_BV = self._batch.prefill([probe(prompt) for prompt in prompts])
        assert probed_BV is not None
        yield from self._take(logits_BV)
        # The first tokens are out before the proof costs anything.
        if len(claimed) == 1:
            claimed = claimed * len(self.answers)
        routed = len({answer.stack for answer in self.answers}) > 1
        for answer, stack, probed_V in zip(self.answers, claimed, probed_BV, strict=True):
            yield from self._prove(answer, stack, probed_V, routed=routed)
        self.activate()

    def _prove(
        self, answer: Answer, claimed: Stack, probed_V: Tensor, *, routed: bool
    ) -> Iterator[Delta]:
        wanted = tuple((name, weight) for name, weight in answer.stack if weight)
        if answer.reason == "error":
            return
        try:
            distance, differs = self._identity.difference(
                answer.prompt, wanted, probed_V, routed=routed
            )
        except ChatError as error:
            answer.fail(error)
            return
        answer.active = Active(
            model=answer.lane.model,
            stack=claimed,
            max_logit_difference=distance,
            verified=differs,
            batched=routed,
            note="" if differs else NO_EFFECT,
        )
        if not differs:
            yield Delta(lane=answer.number, note=NO_EFFECT)

    def _take(self, logits_BV: Tensor) -> Iterator[Delta]:
        tokens = pick_all([answer.sampler for answer in self.answers], logits_BV)
        for row, (answer, token) in enumerate(zip(self.answers, tokens, strict=True)):
            if token is None:
                answer.fail(ChatError(OVERFLOW))
                continue
            delta = answer.take(token, logits_BV[row])
            if delta.token_id is not None:
                yield delta

    def _drop_finished(self) -> Iterator[Delta]:
        going = [row for row, answer in enumerate(self.answers) if answer.reason is None]
        if len(going) == len(self.answers):
            return
        finished = [answer for answer in self.answers if answer.reason is not None]
        self.answers = [self.answers[row] for row in going]
        if going:
            assert self._batch is not None
            self._batch.keep(going)
            self.activate()
        else:
            self._batch = None
        for answer in finished:
            yield answer.done()

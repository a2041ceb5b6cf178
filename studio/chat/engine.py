"""Answer lanes on one resident base, token by token, several lanes in one batch.

Shapes: `B rows, V vocabulary`.

Lanes whose stacks can be routed per row share one batch; where they cannot, each lane is its own
batch and they take turns token by token on the same base, so they stream together either way and
say the same. It knows one base and its loaded adapters; finding and loading them is `residents`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from studio.chat.answer import Answer
from studio.chat.decoding import Batch
from studio.chat.lanes import Active, Delta, Lane, Reason
from studio.chat.prompt import PromptTemplate, fit
from studio.chat.routing_check import Identity, Stack, probe
from studio.chat.sampling import pick_all
from studio.errors import ChatError, MethodError, OutOfMemory, StudioError

if TYPE_CHECKING:
    from torch import Tensor

    from studio.backbone import Backbone
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


Stopped = Callable[[], bool]
Wanted = Callable[[], Mapping[int, Stack]]
TOO_LITTLE_MEMORY = (
    "There is not enough memory for this answer: use fewer lanes, a shorter conversation or a "
    "smaller model."
)


class ChatEngine:
    """One base, its backbone, and the memory of who answers how.

    Args:
        loaded: The base.
        backbone: The adapter layer around it.
        template_for: Chooses a lane's chat template; by default from the tokenizer.
    """

    def __init__(
        self,
        loaded: Loaded,
        backbone: Backbone,
        *,
        template_for: Callable[[Lane], PromptTemplate] | None = None,
    ) -> None:
        import torch

        from studio.chat.decoding import quicken_products

        quicken_products(loaded.model)
        self.loaded = loaded
        self.backbone = backbone
        self._template_for = template_for or self._chosen_template
        quantized = bool(getattr(loaded.model, "is_loaded_in_4bit", False))
        self._identity = Identity(backbone, exact=loaded.dtype == torch.float32 and not quantized)

    def stream(
        self, lanes: Sequence[Lane], *, stopped: Stopped | None = None, wanted: Wanted | None = None
    ) -> Iterator[Delta]:
        """Answer every lane; each ends with exactly one `done` delta, whatever happens to it.

        Args:
            lanes: Their stacks name adapters that are loaded in the backbone.
            stopped: Asked before each token; True ends all answers where they are.
            wanted: Asked before each token for the stacks that lanes should have now; weights that
                differ act on the next token.

        Yields:
            Text and notes in the order they come, lanes interleaved.
        """
        started = time.perf_counter()
        answers: list[Answer] = []
        for number, lane in enumerate(lanes):
            try:
                answer, note = self._prepared(number, lane, started)
            except StudioError as error:
                yield Delta(lane=number, done=True, reason="error", error=error)
                continue
            answers.append(answer)
            if note:
                yield Delta(lane=number, note=note)
        groups = self._grouped(answers)
        while groups := [group for group in groups if group.answers]:
            for group in groups:
                if stopped is not None and stopped():
                    for left in groups:
                        yield from left.end("stopped")
                    return
                if wanted is not None and (moved := wanted()):
                    yield from group.reweigh(moved)
                yield from self._advance(group, alone=len(groups) == 1)

    def _advance(self, group: Group, *, alone: bool) -> Iterator[Delta]:
        try:
            if not alone:
                group.activate()
            yield from group.advance()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            yield from group.end("error", OutOfMemory(TOO_LITTLE_MEMORY))

    def _grouped(self, answers: list[Answer]) -> list[Group]:
        stacks = [answer.stack for answer in answers]
        together = bool(answers)
        if len(set(stacks)) > 1:
            try:
                self.backbone.use_rows(stacks)
            except MethodError:
                together = False
        rows = [answers] if together else [[answer] for answer in answers]
        return [Group(row, self.loaded, self.backbone, self._identity) for row in rows]

    def _prepared(self, number: int, lane: Lane, started: float) -> tuple[Answer, str]:
        stack = tuple((part.name, part.weight) for part in lane.stack)
        for name, _ in stack:
            if name not in self.backbone.adapters:
                raise ChatError(f'The adapter "{name}" is not loaded.')
        self.backbone.use(stack)  # a stack that cannot be combined costs its own lane only
        adapters = self.backbone.adapters
        template = self._template_for(lane)
        fitted = fit(
            lane,
            template,
            self.loaded.tokenizer,
            context=self.loaded.facts.context_length,
            before=sum(adapters[name].method.num_tokens_before for name, weight in stack if weight),
        )
        vocab_size = self.loaded.model.get_input_embeddings().weight.shape[0]
        if max(fitted.ids) >= vocab_size:
            raise ChatError(
                f"The tokenizer makes token {max(fitted.ids)}, but the model knows only "
                f"{vocab_size}: this tokenizer does not belong to this model."
            )
        stop_ids = self._stop_ids(template)
        answer = Answer(
            number, lane, stack, fitted, self.loaded.tokenizer, stop_ids, vocab_size, started
        )
        return answer, fitted.note

    def _stop_ids(self, template: PromptTemplate) -> frozenset[int]:
        own = getattr(self.loaded.model.generation_config, "eos_token_id", None)
        return frozenset({*template.stop_ids, *_as_list(own)})

    def _chosen_template(self, lane: Lane) -> PromptTemplate:
        from studio.data.template.template import choose

        return choose(self.loaded.tokenizer, lane.template)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left; torch has no one type for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]

"""Answer lanes on one resident base, token by token.

Lanes whose stacks can be routed per row share one batch; where they cannot, each lane is its own
batch and they take turns token by token on the same base, so they stream together either way and
say the same. It knows one base and its loaded adapters; finding and loading them is `residents`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from studio.chat.answer import Answer
from studio.chat.group import Group
from studio.chat.identity import Identity, Stack
from studio.chat.lanes import Delta, Lane
from studio.chat.prompt import PromptTemplate, fit
from studio.errors import ChatError, MethodError, OutOfMemory, StudioError

if TYPE_CHECKING:
    from studio.methods.layer import Backbone
    from studio.models.loading import Loaded

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

        from studio.chat.products import quicken_products

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
        from studio.data.templates import choose

        return choose(self.loaded.tokenizer, lane.template)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left; torch has no one type for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]

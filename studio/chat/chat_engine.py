"""Answer lanes on one resident base, token by token, several lanes in one batch.

Lanes whose stacks can be routed per row share one batch; otherwise each lane is a batch of its own
and they alternate token by token on the same base: they stream together and give the same tokens
either way. `resident_models` finds and loads bases and adapters.

Shapes: `B rows, V vocabulary`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from studio.chat.decoding import Batch, longrope_length, shares_passes, use_transposed_products
from studio.chat.lanes import Active, ActiveStack, Delta, Lane, Reason
from studio.chat.prompt_and_answer import Answer, fit_prompt
from studio.chat.sampling import pick_all
from studio.chat.thought_and_tool_parser import NO_MARKERS, Markers, markers_of
from studio.data.template.choose_template import choose
from studio.data.template.template import Template
from studio.errors import ChatError, MethodError, OutOfMemory, StudioError, is_out_of_memory

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.models.loading import Loaded

NO_EFFECT = "This stack changes the logits here by no more than rounding does."
PROBE_TOKENS = 32
CACHE_SIZE = 64
BUG = (
    "{whose} differ from the expected ones by {error:.3g}: this is a bug, please report it. The "
    "answer is not shown."
)
Stopped = Callable[[], bool]
WeightChanges = Callable[[], Mapping[int, ActiveStack]]


def probe_position(prompt: Sequence[int]) -> int:
    """Return the position whose logits are compared: an early one, or the prompt's last."""
    return min(len(prompt), PROBE_TOKENS) - 1


class RoutingCheck:
    """Checks that each lane was answered by its own stack: compares logits with a reference.

    Every answer's own prefill is compared at one early position with the bare base (how far the
    stack changes the model) and, where rows were routed in one batch, with the same stack alone,
    computed another way. The position is early because a causal model's logits depend only on the
    tokens before it: the reference costs a few tokens, and is cached for the next turn.
    """

    def __init__(self, backbone: Backbone, *, exact: bool) -> None:
        self._backbone = backbone
        self._tolerance = 2e-3 if exact else 6e-2
        self._noise = 1e-5 if exact else 2e-2  # a few steps of bfloat16
        self._cache: OrderedDict[Any, tuple[Tensor, list[Any]]] = OrderedDict()

    def difference(
        self, prompt: Sequence[int], stack: ActiveStack, logits_V: Tensor, *, routed: bool
    ) -> tuple[float, bool]:
        """Compare a row's own logits at its probe position; leaves another stack active.

        Args:
            stack: The adapters that should be active.
            logits_V: The row's logits at `probe_position(prompt)`, from its own prefill.
            routed: True if the row shared its batch with other stacks.

        Returns:
            The largest logit difference against the base, and True if the stack had an effect.

        Raises:
            ChatError: Another stack answered.
        """
        head = tuple(prompt[: probe_position(prompt) + 1])
        base_V = self._reference(head, ())
        scale = max(1.0, float(base_V.abs().max()))
        distance = float((logits_V.float() - base_V).abs().max())
        if not stack and distance > self._tolerance * scale:
            raise ChatError(BUG.format(whose="The base lane's logits", error=distance))
        if stack and routed:
            own_V = self._reference(head, stack)
            error = float((logits_V.float() - own_V).abs().max())
            if not error <= self._tolerance * max(scale, float(own_V.abs().max())):
                raise ChatError(BUG.format(whose="This lane's logits", error=error))
        return distance, not stack or distance > self._noise * scale

    def _reference(self, head: tuple[int, ...], stack: ActiveStack) -> Tensor:
        adapters = [self._backbone.adapters[name] for name, _ in stack]
        # In-place training changes a tensor's version, a reload makes another adapter.
        state = [(id(a), sum(p._version for p in a.parameters())) for a in adapters]
        key = (head, stack, tuple(state))
        if key not in self._cache:
            self._backbone.use(stack)
            device = self._backbone.model.device
            with torch.no_grad():
                output = self._backbone.model(
                    input_ids=torch.tensor([head], device=device),
                    position_ids=torch.arange(len(head), device=device)[None],
                    use_cache=False,
                    logits_to_keep=1,
                )
            self._cache[key] = (output.logits[0, -1].float(), adapters)
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key][0]


class LaneBatch:
    """Answers that share a batch; `advance` adds one token to each until none is left."""

    def __init__(
        self, answers: Sequence[Answer], loaded: Loaded, backbone: Backbone, check: RoutingCheck
    ) -> None:
        self.answers = list(answers)
        self._loaded = loaded
        self._backbone = backbone
        self._check = check
        self._batch: Batch | None = None

    def activate(self) -> None:
        """Activate the rows' stacks in the backbone."""
        stacks = [answer.stack for answer in self.answers]
        if len(set(stacks)) == 1:
            self._backbone.use(stacks[0])
        else:
            self._backbone.use_rows(stacks)

    def advance(self) -> Iterator[Delta]:
        """Add one token to every row; its stacks must be active."""
        if self._batch is None:
            yield from self._start()
        else:
            logits_BV = self._batch.step([answer.tokens[-1] for answer in self.answers])
            yield from self._take(logits_BV)
        yield from self._drop_finished()

    def reweigh(self, wanted: Mapping[int, ActiveStack]) -> Iterator[Delta]:
        """Change answers' weights from their next token on; note what cannot change now."""
        for answer in self.answers:
            stack = wanted.get(answer.number, answer.requested)
            if stack == answer.requested:
                continue
            before, answer.requested = answer.stack, stack
            refusal = self._refusal(before, stack)
            if not refusal:
                answer.stack = stack
                try:
                    self.activate()
                    answer.changed_at = len(answer.tokens)
                except MethodError as error:
                    answer.stack, refusal = before, error.text
                    self.activate()
            if refusal:
                yield Delta(lane=answer.number, note=refusal)

    def _refusal(self, before: ActiveStack, after: ActiveStack) -> str:
        if [name for name, _ in before] != [name for name, _ in after]:
            return (
                "This change applies to the next answer: while one is written, only weights can "
                "change."
            )
        for (name, was), (_, now) in zip(before, after, strict=True):
            virtual = self._backbone.adapters[name].method.num_tokens_before
            if virtual and bool(was) != bool(now):
                return (
                    f"{name} has virtual tokens: switching it on or off applies to the next answer."
                )
        return ""

    def end(self, reason: Reason, error: StudioError | None = None) -> Iterator[Delta]:
        """End the remaining answers."""
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
        logits_BV, probed_BV = self._batch.prefill([probe_position(prompt) for prompt in prompts])
        assert probed_BV is not None
        yield from self._take(logits_BV)
        # The first tokens are sent before the check costs time.
        if len(claimed) == 1:
            claimed = claimed * len(self.answers)
        routed = len({answer.stack for answer in self.answers}) > 1
        switch = longrope_length(self._loaded.model)
        changed = switch is not None and max(map(len, prompts)) > switch
        for answer, stack, probed_V in zip(self.answers, claimed, probed_BV, strict=True):
            if changed:  # the reference of a few tokens would get other rotary factors
                model = answer.lane.model
                answer.active = Active(model=model, stack=stack, batched=routed)
            else:
                yield from self._verify(answer, stack, probed_V, routed=routed)
        self.activate()

    def _verify(
        self, answer: Answer, claimed: ActiveStack, probed_V: Tensor, *, routed: bool
    ) -> Iterator[Delta]:
        wanted = tuple((name, weight) for name, weight in answer.stack if weight)
        if answer.reason == "error":
            return
        try:
            distance, differs = self._check.difference(
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
                answer.fail(ChatError("The logits overflow with this stack: lower its weights."))
                continue
            seen_V = answer.sampler.logits_V
            delta = answer.take(token, logits_BV[row] if seen_V is None else seen_V)
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


class ChatEngine:
    """One base with its backbone.

    Args:
        template_for: Chooses a lane's chat template; by default from the tokenizer.
    """

    def __init__(
        self,
        loaded: Loaded,
        backbone: Backbone,
        *,
        template_for: Callable[[Lane], Template] | None = None,
    ) -> None:
        use_transposed_products(loaded.model)
        self.loaded = loaded
        self.backbone = backbone
        self._template_for = template_for or self._chosen_template
        quantized = bool(getattr(loaded.model, "is_loaded_in_4bit", False))
        self._check = RoutingCheck(backbone, exact=loaded.dtype == torch.float32 and not quantized)

    def stream(
        self,
        lanes: Sequence[Lane],
        *,
        stopped: Stopped | None = None,
        wanted: WeightChanges | None = None,
    ) -> Iterator[Delta]:
        """Answer every lane; each ends with exactly one `done` delta.

        Args:
            lanes: Their stacks name adapters that are loaded in the backbone.
            stopped: Called before each token; True stops all answers.
            wanted: Called before each token; returns the current stacks of lanes. Changed weights
                apply to the next token.

        Yields:
            Text and notes as they come, lanes interleaved.
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
        batches = self._batched(answers)
        while batches := [batch for batch in batches if batch.answers]:
            for batch in batches:
                if stopped is not None and stopped():
                    for left in batches:
                        yield from left.end("stopped")
                    return
                if wanted is not None and (moved := wanted()):
                    yield from batch.reweigh(moved)
                yield from self._advance(batch, alone=len(batches) == 1)

    def _advance(self, batch: LaneBatch, *, alone: bool) -> Iterator[Delta]:
        try:
            if not alone:
                batch.activate()
            yield from batch.advance()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            yield from batch.end("error", OutOfMemory(
                "Not enough memory: use fewer lanes, a shorter conversation or a smaller model."
            ))  # fmt: skip

    def _batched(self, answers: list[Answer]) -> list[LaneBatch]:
        stacks = [answer.stack for answer in answers]
        together = bool(answers)
        if len(set(stacks)) > 1 and not shares_passes(self.loaded.model):
            together = False
        elif len(set(stacks)) > 1:
            try:
                self.backbone.use_rows(stacks)
            except MethodError:
                together = False
        rows = [answers] if together else [[answer] for answer in answers]
        return [LaneBatch(row, self.loaded, self.backbone, self._check) for row in rows]

    def _prepared(self, number: int, lane: Lane, started: float) -> tuple[Answer, str]:
        stack = tuple((part.name, part.weight) for part in lane.stack)
        for name, _ in stack:
            if name not in self.backbone.adapters:
                raise ChatError(f'The adapter "{name}" is not loaded.')
        self.backbone.use(stack)  # refuses a stack that cannot be combined
        adapters = self.backbone.adapters
        template = self._template_for(lane)
        fitted = fit_prompt(
            lane,
            template,
            self.loaded.tokenizer,
            context=self.loaded.facts.context_length,
            before=sum(adapters[name].method.num_tokens_before for name, weight in stack if weight),
        )
        vocab_size = self.loaded.model.get_input_embeddings().weight.shape[0]
        if max(fitted.ids) >= vocab_size:
            raise ChatError(
                f"The tokenizer gives token {max(fitted.ids)}, but the model has {vocab_size} "
                "embeddings: they do not belong together."
            )
        own = getattr(self.loaded.model.generation_config, "eos_token_id", None)
        own_ids = own if isinstance(own, list) else [] if own is None else [own]
        stop_ids = frozenset({*template.stop_ids, *own_ids})
        answer = Answer(
            number, lane, stack, fitted, self.loaded.tokenizer, stop_ids, vocab_size, started,
            self._markers if template.name == "model" else NO_MARKERS,
        )  # fmt: skip
        return answer, fitted.note

    @cached_property
    def _markers(self) -> Markers:
        return markers_of(self.loaded.tokenizer)

    def _chosen_template(self, lane: Lane) -> Template:
        settings = lane.sampling.chat_template_kwargs
        return choose(self.loaded.tokenizer, lane.template, chat_template_kwargs=settings)

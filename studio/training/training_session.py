"""A training session: take optimizer steps, evaluate, save, resume, restore the best checkpoint.

`training_loop.py` decides when each of these happens. One step is `Session.step`: forward and
backward over every micro-batch (`forward_backward`; `siblings.py` has its own), gradient clipping,
optimizer. The session knows tensors and one device, not run folders or the queue.

Routers of a mixture are frozen, so how evenly they choose their experts is a property of the data:
an expert that its router never chooses keeps an untrained adapter (`ExpertBalance`).

Shapes: `B rows, T tokens, D hidden, L layers, E experts`; batches as in `batching.py`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from studio import hardware
from studio.data.token_arrays import places_by_source
from studio.errors import DataError, Diverged
from studio.training import checkpoint
from studio.training.batching import (
    Neftune,
    PackedBatch,
    PaddedBatch,
    TokenRow,
    groups,
    pack,
    pad,
    total_weight,
)
from studio.training.checkpoint import CheckpointOrigin, RunProgress
from studio.training.distributed import sum_gradients
from studio.training.grpo_rollouts import Rollouts
from studio.training.loss import EvalLoss, eval_tokens, evaluate_loss, loss_sum
from studio.training.optimizer import OptimizerLike, set_learning_rate
from studio.training.preference_loss import Preference
from studio.training.starting_point import StartingPoint
from studio.training.steps_and_learning_rate import Plan
from studio.training.training_events import Evaluated, Started, Step

if TYPE_CHECKING:
    from accelerate import Accelerator

    from studio.backbone import Adapter, Backbone
    from studio.backbone.experts import Experts
    from studio.data.prepare_run_data import Prepared
    from studio.data.token_arrays import Example
    from studio.evaluation.forgetting import GeneralSet
    from studio.models.loading import Loaded
    from studio.spec import RunSpec


NAME = "trained"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pass:
    """Forward and backward of one step: its batches, their parts of the step's loss, the time.

    `scale` is what the gradients are too large by: see `Session.gradient_scale`. `sums` are those
    of `report` of the session's `preference`.
    """

    batches: Sequence[PackedBatch | PaddedBatch]
    losses: Sequence[Tensor]
    seconds: float
    scale: float = 1
    sums: Sequence[Tensor] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without padding."""
        return sum(batch.num_tokens for batch in self.batches)

    @property
    def num_shared(self) -> int:
        """Number of tokens of prompts that were computed with another row."""
        return sum(sum(one.shared) for one in self.batches if isinstance(one, PackedBatch))


def forward_backward(session: Session) -> Pass:
    """Run forward and backward over the next step's micro-batches; gradients accumulate."""
    started, number = time.perf_counter(), session.progress.step
    torch.manual_seed(session.plan.step_seed(number))
    places, batches = session.next_rows(), session.next_batches()
    preference, smoothing = session.preference, session.spec.train.label_smoothing_factor
    if preference is None:
        targets = session.sum_over_ranks(sum(map(total_weight, batches), 0.0)) or 1.0
    else:
        targets = preference.begin_step(places, batches)
    losses, scale = [], session.gradient_scale(targets)
    for rows, batch in zip(places, batches, strict=True):
        if session.neftune:
            session.neftune.prepare(batch)
        if preference is None:
            loss = loss_sum(session.backbone, batch, smoothing) / targets
        else:
            loss = preference.loss(rows, batch)
        session.accelerator.backward(loss * scale if scale > 1 else loss)
        losses.append(loss.detach())
    if session.spec.train.fsdp:
        # Every rank gathers each layer's shards equally often: pad with passes of no effect.
        for _ in range(session.plan.most_passes(session.accelerator.num_processes) - len(batches)):
            loss = loss_sum(session.backbone, session.batch([session.prepared.train[0]]))
            session.accelerator.backward(loss * 0.0)
    sums = preference.sums() if preference else ()
    return Pass(batches, losses, time.perf_counter() - started, scale, sums)


@dataclass(slots=True)
class Session:
    """The live objects of a run."""

    spec: RunSpec
    plan: Plan
    loaded: Loaded
    backbone: Backbone
    adapter: Adapter
    prepared: Prepared
    optimizer: OptimizerLike
    accelerator: Accelerator
    progress: RunProgress
    origin: CheckpointOrigin
    balance: ExpertBalance
    name: str = NAME
    self_test: dict[str, Any] = field(default_factory=dict)
    parameters: list[nn.Parameter] = field(default_factory=list)
    forward_backward: Callable[[Session], Pass] = forward_backward
    neftune: Neftune | None = None
    general: GeneralSet | None = None
    preference: Preference | Rollouts | None = None
    start: StartingPoint = field(default_factory=StartingPoint)
    timer_start: float = field(default_factory=time.monotonic)

    # -- one optimizer step --------------------------------------------------------------------

    def step(self) -> Step:
        """Take one optimizer step over the plan's next rows.

        Raises:
            Diverged: The loss or the gradient is not finite; the weights are as before the step.
        """
        rate, seconds, tokens = self.plan.lr(self.progress.step), 0.0, 0
        set_learning_rate(self.optimizer, rate)
        self.balance.begin_step()
        for _ in range(self.preference.updates if self.preference else 1):
            passed, started = self.forward_backward(self), time.perf_counter()
            norm = self._reduce_and_clip(passed.scale).float()
            found = torch.stack([norm, *passed.losses, *passed.sums]).tolist()  # the only wait
            grad_norm, count = found[0], len(passed.losses)
            losses, sums = found[1 : 1 + count], found[1 + count :]
            loss = self.sum_over_ranks(float(sum(losses)))
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                self.optimizer.zero_grad(set_to_none=True)
                raise self._diverged(passed.batches, losses, grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            tokens += self.sum_over_ranks(passed.num_tokens)
            if self.preference:
                self.progress.shared_tokens += self.sum_over_ranks(passed.num_shared)
            seconds += passed.seconds + time.perf_counter() - started
        self.progress.record_step(loss, tokens)
        sums = self.sum_over_ranks(sums)
        return Step(
            step=self.progress.step,
            loss=loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=tokens,
            tokens_per_second=tokens / max(seconds, 1e-9),
            epoch=self.plan.epoch(self.progress.step),
            memory_bytes=self.memory_bytes(),
            expert_balance=self.balance.of_step(),
            tokens_shared=self.progress.shared_fraction,
            **(self.preference.report(sums) if self.preference else {}),
        )

    def next_rows(self) -> list[list[int]]:
        """Return the rows of this rank's micro-batches of the next step; pairs stay together."""
        width = self.prepared.rows_per_example
        micro_batches = self.plan.micro_batches(
            self.progress.step,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        return [[width * one + i for one in ones for i in range(width)] for ones in micro_batches]

    def next_batches(self) -> list[PackedBatch | PaddedBatch]:
        """Return this rank's micro-batches of the next step."""
        if isinstance(self.preference, Rollouts):
            return self.preference.batches(self.next_rows())
        width = self.prepared.rows_per_example
        return [
            self.batch([self.prepared.train[i] for i in rows], together=width)
            for rows in self.next_rows()
        ]

    def batch(
        self, examples: Sequence[TokenRow], *, together: int = 1
    ) -> PackedBatch | PaddedBatch:
        """Return rows as tensors, packed or padded as the spec says.

        Every `together` rows compute the beginning that they have in common once, where the model
        can. NEFTune's noise depends on the row.
        """
        vocabulary = self.loaded.model.get_input_embeddings().weight.shape[0]
        for example in examples:
            if (largest := int(example.input_ids.max())) >= vocabulary:
                raise DataError(
                    f"Row {example.row} of {self.spec.data.path} has the token {largest}, but the "
                    f"model knows only {vocabulary}: the tokenizer belongs to another model."
                )
        if self.spec.train.packing:
            shares = together > 1 and not self.neftune and self.backbone.shares_prompts
            return pack(examples, self.loaded.device, together=together if shares else 1)
        return pad(examples, self.loaded.device)

    def gradient_scale(self, targets: float) -> float:
        """Return the factor on the loss during backward.

        float16 has nothing between 0 and 6e-8, and a gradient divided by thousands of targets is
        smaller than that. So it stays the gradient of the sum until it is in the adapter's float32
        gradients, which are divided there.
        """
        return targets if self.loaded.dtype == torch.float16 else 1

    def _reduce_and_clip(self, scale: float) -> Tensor:
        """Sum gradients over ranks, clip their norm to `max_grad_norm`, return the norm."""
        if self.accelerator.num_processes > 1:
            sum_gradients(self.parameters)
        if scale > 1:
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], scale)
        limit = self.spec.train.max_grad_norm or math.inf
        return nn.utils.clip_grad_norm_(self.parameters, limit)

    def _diverged(
        self, batches: Sequence[PackedBatch | PaddedBatch], losses: list[float], grad_norm: float
    ) -> Diverged:
        """Return the error for a loss or gradient that is not finite, naming rows and rate."""
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        rows = [row for i in bad or range(len(batches)) for row in batches[i].rows]
        what = f"loss became {losses[bad[0]]}" if bad else f"gradient became {grad_norm}"
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            found = gather_object([(not bad, what, rows)])
            _, what, rows = min(found)  # a rank with a bad loss knows the rows
        rate = self.plan.lr(self.progress.step)
        first = "float16 overflows above 65,504: set model.dtype to bfloat16 or float32, or lower "
        advice = first if self.loaded.dtype == torch.float16 else "Lower "
        return Diverged(
            f"The {what} at step {self.progress.step + 1}, in row{'s' if len(rows) > 1 else ''} "
            f"{', '.join(map(str, sorted(rows)[:16]))} of {self.spec.data.path}. {advice}"
            f"train.learning_rate ({self.plan.learning_rate:g}, {rate:.2g} at this step) or check "
            "these rows; the last checkpoint is intact."
        )

    # -- ranks ---------------------------------------------------------------------------------

    @property
    def is_rank_0(self) -> bool:
        """True on rank 0, which saves and reports."""
        return bool(self.accelerator.is_main_process)

    @property
    def evaluates(self) -> bool:
        """True if this rank evaluates: rank 0, or every rank when the base is sharded."""
        return self.is_rank_0 or self.spec.train.fsdp

    def from_rank_0(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def sum_over_ranks(self, value: Any) -> Any:
        """Return the sum of a number, or of each number of a list, over all ranks."""
        if self.accelerator.num_processes == 1 or value == []:
            return value
        tensor = torch.tensor(value, device=self.loaded.device, dtype=torch.float64)
        summed = self.accelerator.reduce(tensor, "sum").tolist()
        if not isinstance(value, list):
            return type(value)(summed)
        return [type(old)(new) for old, new in zip(value, summed, strict=True)]

    # -- evaluation ----------------------------------------------------------------------------

    def activate(self) -> None:
        """Apply this run's adapter, on the one it started from, to every row."""
        if self.backbone.active_for_all != self.stack:
            self.backbone.use(self.stack)

    @property
    def stack(self) -> tuple[tuple[str, float], ...]:
        """Adapters that are active while the run trains."""
        return (*self.start.frozen, (self.name, 1.0))

    def evaluate(self) -> Evaluated:
        """Return the loss on the validation rows, per token or of preferences, or the reward."""
        self.activate()
        step = self.progress.step
        if isinstance(self.preference, Rollouts):
            own = self.preference.evaluate()
            parts = self._by_source(self.prepared.validation[: len(own)])
            means = {name: fmean(own[i] for i in places) for name, places in parts.items()}
            reward = fmean(own)
            self.progress.record_evaluation(None, reward, means)
            return Evaluated(step=step, reward=reward, sources=self.sources())
        if self.preference:
            loss, rewards, kl, losses = self.preference.evaluate()
            self.progress.record_evaluation(loss, rewards.rewards_accuracies, losses)
            return Evaluated(
                step=step, eval_loss=loss, kl=kl, sources=self.sources(),
                rewards_accuracies=rewards.rewards_accuracies,
                rewards_margins=rewards.rewards_margins,
            )  # fmt: skip
        rows = list(self.prepared.validation[: self.plan.eval_rows])
        parts = self._by_source(rows) or {"": [*range(len(rows))]}
        found = {name: self._loss_of([rows[i] for i in ids]) for name, ids in parts.items()}
        whole = EvalLoss.of(found.values())
        losses = {name: one.loss for name, one in found.items() if name}
        self.progress.record_evaluation(whole.loss, None, losses)
        return Evaluated(
            step=step, eval_loss=whole.loss, token_accuracy=whole.accuracy, sources=self.sources()
        )

    def _loss_of(self, rows: Sequence[TokenRow]) -> EvalLoss:
        parts = groups(rows, max_tokens=eval_tokens(self.backbone))
        return evaluate_loss(self.backbone, map(self.batch, parts))

    def _by_source(self, rows: Sequence[Example]) -> dict[str, list[int]]:
        return places_by_source(rows) if self.prepared.sources else {}

    def sources(self) -> list[dict[str, Any]] | None:
        """Return the rows of each source of a mix, and the loss (or reward) of those held out."""
        what = "reward" if isinstance(self.preference, Rollouts) else "eval_loss"
        return [
            {"name": name, "rows": rows, "held_out": held, what: self.progress.sources.get(name)}
            for name, (rows, held) in self.prepared.sources.items()
        ] or None

    @property
    def keeps_best(self) -> bool:
        """True if the checkpoint of the best evaluation becomes the adapter."""
        args = self.spec.train
        return args.load_best_model_at_end or args.early_stopping_patience > 0

    @property
    def stopped_early(self) -> bool:
        """True if early stopping ended the run; the same on every rank."""
        return self.spec.train.early_stopping_patience > 0 and self.from_rank_0(
            self._out_of_patience
        )

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.spec.train.early_stopping_patience <= self.progress.waited

    def restore_best(self, folder: Path) -> str:
        """Load the adapter of the best evaluation; return a note for the user."""
        progress, best = self.progress, self.progress.best_step
        if not self.keeps_best or best == progress.step:
            return ""
        if best is None:
            return (
                "Nothing was evaluated, so the adapter is that of the last step: early stopping "
                "and the best checkpoint need held-out rows (data.validation_fraction) and "
                "evaluations (train.eval_steps)."
            )
        # Not `stopped_early`, which communicates: the other ranks have left.
        best_of = "the lowest held-out loss"
        if self.preference and progress.best_accuracy is not None:
            what = "reward" if isinstance(self.preference, Rollouts) else "reward accuracy"
            best_of = f"the highest {what} on held-out rows"
        early = f"Stopped early at step {progress.step}. " if self._out_of_patience else ""
        if not checkpoint.load_adapter(folder, best, self.adapter):
            return (
                f"{early}The checkpoint of step {best}, which had {best_of}, is missing "
                f"or damaged: the adapter is that of step {progress.step}."
            )
        progress.eval_loss, progress.eval_score = progress.best_loss, progress.best_accuracy
        progress.sources = progress.best_sources
        return f"{early}The adapter is that of step {best}, which had {best_of}."

    # -- state ---------------------------------------------------------------------------------

    def save(self, folder: Path) -> Path:
        """Write a checkpoint under `folder`."""
        self.update_seconds()
        return checkpoint.save(
            folder, adapter=self.adapter, optimizer=self.optimizer, progress=self.progress,
            origin=self.origin, keep=self.spec.train.save_total_limit,
            protect=self.progress.best_step if self.keeps_best else None,
        )  # fmt: skip

    def resume(self, path: Path) -> None:
        """Restore a checkpoint."""
        self.progress = checkpoint.load(
            path, adapter=self.adapter, optimizer=self.optimizer, origin=self.origin
        )

    def update_seconds(self) -> None:
        """Add the time since the last update to the run's seconds."""
        now = time.monotonic()
        self.progress.seconds += now - self.timer_start
        self.timer_start = now

    def memory_bytes(self) -> int:
        """Return the peak memory of the device, or the resident memory of the process on a CPU."""
        if of := hardware.torch_module(self.loaded.device):
            return int(of.max_memory_allocated(self.loaded.device))
        return hardware.process_bytes()

    def started(self) -> Started:
        """Return the event that describes the run before its next step."""
        report = self.prepared.report
        return Started(
            step=self.progress.step,
            total_steps=self.plan.total_steps,
            trainable_parameters=self.adapter.num_parameters,
            total_parameters=self.loaded.facts.parameters,
            device=str(self.loaded.device),
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            learning_rate=self.plan.learning_rate,
            rows_read=report.rows.read,
            rows_kept=report.rows.kept,
            rows_dropped=report.rows.dropped,
            rows_truncated=report.truncated,
            rows_trained=report.train_examples,
            rows_held_out=report.validation_examples,
            rows_evaluated=min(report.validation_examples, self.plan.eval_rows)
            if self.plan.eval_every <= self.plan.total_steps
            else None,
            rows_format=report.format,
            longer_chosen=self.preference.longer_chosen if self.preference else None,
        )


def evaluated(plan: Plan, prepared: Prepared, loss: str) -> dict[str, Any]:
    """Return the number of rows that held-out losses are of, and a hash of what they depend on.

    Losses of one base are comparable where both are equal.
    """
    width = prepared.rows_per_example
    rows = prepared.validation[: width * plan.eval_rows]
    if not rows or plan.eval_every > plan.total_steps:
        return {}
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.input_ids.tobytes() + row.labels.tobytes())
        if row.weights is not None:
            digest.update(row.weights.tobytes())
        if loss == "kto":
            digest.update(bytes([row.good]))
    return {"rows": len(rows) // width, "hash": digest.hexdigest()}


class ExpertBalance:
    """Counts the tokens per expert in the steps of one session; others may share the experts."""

    def __init__(self, experts: Sequence[Experts]) -> None:
        self._experts = experts
        self._counts = [torch.zeros_like(one.tokens_E) for one in experts]
        self._seen = [counts_E.cpu().clone() for counts_E in self._counts]
        self._steps = 0

    def begin_step(self) -> None:
        """Let the experts count on from this session's last step."""
        for one, counts_E in zip(self._experts, self._counts, strict=True):
            one.tokens_E = counts_E

    def of_step(self) -> float | None:
        """Return the evenness since the step began: the layers' mean entropy, in parts of log E."""
        if not self._experts:
            return None
        self._steps += 1
        self._counts = [one.tokens_E for one in self._experts]
        before, self._seen = self._seen, [counts_E.cpu().clone() for counts_E in self._counts]
        layers = [evenness(now - old) for now, old in zip(self._seen, before, strict=True)]
        return sum(layers) / len(layers)

    def warning(self, adapter: Adapter, *, steps: int, processes: int) -> str:
        """Return a sentence on adapted experts that saw no token in any step; empty if none.

        It is empty too if a part of the run's tokens was not counted: after the run was resumed,
        `steps` are more than those of this session, and other processes have rows of their own.
        """
        if steps != self._steps or processes > 1:
            return ""
        adapted = {site.key.rpartition(".")[0] for site in adapter.sites if site.num_experts}
        pairs = zip(self._experts, self._seen, strict=True)
        counts = [seen for experts, seen in pairs if experts.key in adapted]
        unused = sum(int((seen == 0).sum()) for seen in counts)
        if not unused:
            return ""
        return (
            f"{unused} of {sum(map(len, counts))} experts saw no token of this data, so their part "
            "of the adapter is untrained; more or more varied rows reach more experts."
        )


def evenness(counts_E: Tensor) -> float:
    """Return the entropy of the counts as a part of its largest value; 1 for an even choice."""
    if len(counts_E) < 2 or not counts_E.sum():
        return 1.0
    shares = counts_E.double() / counts_E.sum()
    return float(-torch.xlogy(shares, shares).sum() / math.log(len(counts_E)))

"""Everything one run holds while it runs, and the three things it can do: step, evaluate, save.

The loop in `loop.py` decides when; here is how. It knows tensors and one device, not where a run
folder is or who asked.

Shapes: as in `batch.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from studio import hardware
from studio.errors import DataError
from studio.training import checkpoint
from studio.training.batch import Packed, Padded, Row, groups, pack, pad
from studio.training.checkpoint import Origin, Progress
from studio.training.events import Evaluated, Started, Step
from studio.training.loss import measure
from studio.training.noise import Noise
from studio.training.optimizer import Steps, set_rate
from studio.training.passes import Passed, diverged, pass_alone
from studio.training.schedule import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

    from studio.data.prepare import Prepared
    from studio.methods.layer import Adapter, Backbone
    from studio.models.loading import Loaded
    from studio.spec import RunSpec

NAME = "trained"
BUCKET = 8_000_000  # gradient numbers that are summed over processes at once
EVAL_TOKENS = 4096
T = TypeVar("T")


@dataclass(slots=True)
class Session:
    """A run's live objects."""

    spec: RunSpec
    plan: Plan
    loaded: Loaded
    backbone: Backbone
    adapter: Adapter
    prepared: Prepared
    optimizer: Steps
    accelerator: Accelerator
    progress: Progress
    origin: Origin
    name: str = NAME
    parameters: list[torch.nn.Parameter] = field(default_factory=list)
    passes: Callable[[Session], Passed] = pass_alone
    noise: Noise | None = None
    opened: float = field(default_factory=time.monotonic)

    # -- batches -------------------------------------------------------------------------------

    def batch(self, examples: Sequence[Row]) -> Packed | Padded:
        """Turn rows into tensors, packed or padded as the spec says."""
        vocabulary = self.loaded.model.get_input_embeddings().weight.shape[0]
        for example in examples:
            if (largest := int(example.input_ids.max())) >= vocabulary:
                raise DataError(
                    f"Row {example.row} of {self.spec.data.path} has the token {largest}, but the "
                    f"model knows only {vocabulary}: the tokenizer belongs to another model."
                )
        if self.spec.train.packing:
            return pack(examples, self.loaded.device)
        return pad(examples, self.loaded.device)

    # -- several processes ---------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this process is the one that saves and is heard."""
        return bool(self.accelerator.is_main_process)

    @property
    def looks(self) -> bool:
        """Whether this process evaluates: the leading one, or all when the base is shared out."""
        return self.leads or self.spec.train.fsdp

    def agreed(self, wish: T) -> T:
        """Return what the leading process wishes, because all must do the same."""
        if self.accelerator.num_processes == 1:
            return wish
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([wish])[0]

    # -- one optimizer step --------------------------------------------------------------------

    def next_batches(self) -> list[Packed | Padded]:
        """Return this process's batches of the coming step."""
        shares = self.plan.micro_batches(
            self.progress.step,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        return [self.batch([self.prepared.train[row] for row in rows]) for rows in shares]

    def step(self) -> Step:
        """Take one optimizer step over the plan's next rows.

        Raises:
            Diverged: The loss or the gradient is not finite; the weights are as before the step.
        """
        passed, started = self.passes(self), time.perf_counter()
        grad_norm = self._reduce_and_clip()
        total_loss = self.total(float(sum(passed.losses)))
        if not (math.isfinite(total_loss) and math.isfinite(grad_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise diverged(self, passed, grad_norm)
        rate = self.plan.lr(self.progress.step)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._record(
            loss=total_loss, rate=rate, grad_norm=grad_norm,
            tokens=self.total(passed.num_tokens),
            seconds=passed.seconds + time.perf_counter() - started,
        )  # fmt: skip

    def stage(self) -> None:
        """Let this run's adapter, and no sibling's, act on every row."""
        if self.backbone.active_for_all != ((self.name, 1.0),):
            self.backbone.use([(self.name, 1.0)])

    def _record(
        self, *, loss: float, rate: float, grad_norm: float, tokens: int, seconds: float
    ) -> Step:
        progress = self.progress
        progress.step += 1
        progress.tokens += tokens
        progress.last_loss = loss
        if progress.first_loss is None:
            progress.first_loss = loss
        return Step(
            step=progress.step,
            loss=loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=tokens,
            tokens_per_second=tokens / max(seconds, 1e-9),
            epoch=self.plan.epoch(progress.step),
            memory_bytes=self.memory_bytes(),
        )

    def _reduce_and_clip(self) -> float:
        """Sum gradients over processes, shorten them to `max_grad_norm`, return their length."""
        if self.accelerator.num_processes > 1:
            _sum_gradients(self.parameters)
        longest = self.spec.train.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, longest))

    def total(self, value: Any) -> Any:
        """Sum a number over processes."""
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor(value, device=self.loaded.device, dtype=torch.float64)
        return type(value)(self.accelerator.reduce(tensor, "sum").item())

    # -- evaluation, state ---------------------------------------------------------------------

    def evaluate(self) -> Evaluated:
        """Return the loss per token on the held-out rows."""
        self.stage()
        rows = list(self.prepared.validation[: self.plan.eval_rows])
        held_out = groups(rows, max_tokens=EVAL_TOKENS)
        found = measure(self.backbone, (self.batch(group) for group in held_out))
        self.progress.take(found.loss)
        return Evaluated(
            step=self.progress.step, eval_loss=found.loss, token_accuracy=found.accuracy
        )

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluation's checkpoint is kept and becomes the adapter."""
        args = self.spec.train
        return args.load_best_model_at_end or args.early_stopping_patience > 0

    @property
    def gave_up(self) -> bool:
        """Whether the held-out loss has not fallen for as long as patience lasts."""
        return self.spec.train.early_stopping_patience > 0 and self.agreed(self._waited_out)

    @property
    def _waited_out(self) -> bool:
        """Whether patience is over by this process's own count."""
        return 0 < self.spec.train.early_stopping_patience <= self.progress.waited

    def go_back_to_best(self, folder: Path) -> str:
        """Take the adapter of the best evaluation; returns what a person should know."""
        progress, best = self.progress, self.progress.best_step
        if not self.keeps_best or best is None or best == progress.step:
            return ""
        # Not `gave_up`: that asks all processes, and the others have left.
        early = f"Ended early at step {progress.step}. " if self._waited_out else ""
        if not checkpoint.load_adapter(folder, best, self.adapter):
            return (
                f"{early}The checkpoint of step {best}, which had the best held-out loss, is gone "
                f"or damaged: the adapter is that of step {progress.step}."
            )
        progress.eval_loss = progress.best_loss
        return f"{early}The adapter is that of step {best}, which had the best held-out loss."

    def save(self, folder: Path) -> Path:
        """Publish a checkpoint under `folder`."""
        self.note_time()
        return checkpoint.save(
            folder,
            adapter=self.adapter,
            optimizer=self.optimizer,
            progress=self.progress,
            origin=self.origin,
            keep=self.spec.train.save_total_limit,
            protect=self.progress.best_step if self.keeps_best else None,
        )

    def resume(self, path: Path) -> None:
        """Go back to a checkpoint."""
        self.progress = checkpoint.load(
            path, adapter=self.adapter, optimizer=self.optimizer, origin=self.origin
        )

    def note_time(self) -> None:
        """Add the time since the last note to the run's seconds."""
        now = time.monotonic()
        self.progress.seconds += now - self.opened
        self.opened = now

    def memory_bytes(self) -> int:
        """Peak memory of the device, or what the process holds on a CPU."""
        if self.loaded.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.loaded.device))
        return hardware.process_bytes()

    def started(self) -> Started:
        """Describe the run about to start or go on."""
        report = self.prepared.report
        return Started(
            step=self.progress.step,
            total_steps=self.plan.total_steps,
            trainable_parameters=self.adapter.num_parameters,
            total_parameters=self.loaded.facts.parameters,
            device=str(self.loaded.device),
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            learning_rate=self.plan.learning_rate,
            rows_read=report.read,
            rows_kept=report.kept,
            rows_dropped=report.dropped,
        )


def _sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum every gradient over all processes, in few large messages."""
    from torch import distributed

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    buckets: list[list[torch.Tensor]] = [[]]
    for gradient in (p.grad for p in parameters if p.grad is not None):
        if sum(g.numel() for g in buckets[-1]) + gradient.numel() > BUCKET and buckets[-1]:
            buckets.append([])
        buckets[-1].append(gradient)
    for bucket in buckets:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))

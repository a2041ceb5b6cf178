"""A training session: open it on a loaded base, run the passes of one optimizer step.

Each token's noise is `α / √(L D)` large, `L` being the length of its own row: packing or padding,
and the neighbours in a batch, do not change it.

Source: arXiv:2310.05914. Shapes: `B rows, T tokens, D hidden`.

What is left are gradients, and a `Passed` for the session, which decides whether to step. A run
alone passes here; siblings on one base pass together (`siblings.py`).

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
from torch import Tensor, nn

from studio import hardware
from studio.errors import DataError, Diverged, SpecError
from studio.training import checkpoint
from studio.training.allocator import give_back_freed_memory, keep_few_kernels, reuse_freed_memory
from studio.training.batch import Packed, Padded, Row, groups, pack, pad
from studio.training.checkpoint import Origin, Progress
from studio.training.distributed import share_base
from studio.training.events import Evaluated, Started, Step
from studio.training.loss import loss_sum, measure
from studio.training.optimizer import Steps, make_optimizer, set_rate
from studio.training.schedule import Plan, plan_run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from studio.backbone import Adapter, Backbone
    from studio.data.prepare import Prepared
    from studio.models.loading import Loaded
    from studio.spec import RunSpec


class Noise:
    """A hook on the embeddings that acts only while its adapter trains."""

    def __init__(self, backbone: Backbone, adapter: Adapter, alpha: float) -> None:
        self._adapter, self._alpha = adapter, alpha
        self._lengths: Tensor | None = None
        backbone.model.get_input_embeddings().register_forward_hook(self._add)

    def expect(self, batch: Packed | Padded) -> None:
        """Name the batch that comes next."""
        if isinstance(batch, Packed):
            lengths = torch.tensor(batch.lengths)
            self._lengths = lengths.repeat_interleave(lengths)[None]
        else:
            self._lengths = batch.mask_BT.sum(1, keepdim=True).expand_as(batch.ids_BT)

    def _add(self, module: nn.Module, args: tuple[Any, ...], embedded_BTD: Tensor) -> Tensor | None:
        lengths_BT = self._lengths
        if lengths_BT is None or not self._adapter.training:
            return None
        if embedded_BTD.shape[:2] != lengths_BT.shape:
            return None  # virtual tokens of a prompt
        size = self._alpha / (lengths_BT.to(embedded_BTD) * embedded_BTD.shape[2]).sqrt()
        return embedded_BTD + torch.empty_like(embedded_BTD).uniform_(-1, 1) * size[..., None]


@dataclass(frozen=True, slots=True)
class Passed:
    """A step's batches, the share of the step's loss that each had, and how long it all took."""

    batches: Sequence[Packed | Padded]
    losses: Sequence[float]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(batch.num_tokens for batch in self.batches)


def pass_alone(session: Session) -> Passed:
    """Take the passes of the session's next step; the gradients are on its parameters."""
    started, number = time.perf_counter(), session.progress.step
    torch.manual_seed(session.plan.step_seed(number))
    batches = session.next_batches()
    targets = max(1, session.total(sum(batch.num_targets for batch in batches)))
    smoothing, losses = session.spec.train.label_smoothing_factor, []
    for batch in batches:
        if session.noise:
            session.noise.expect(batch)
        loss = loss_sum(session.backbone, batch, smoothing) / targets
        session.accelerator.backward(loss)
        losses.append(loss.detach())
    _keep_company(session, len(batches))
    return Passed(batches, [float(loss) for loss in losses], time.perf_counter() - started)


def _keep_company(session: Session, passes: int) -> None:
    """Where layers are put together by all, pass through them as often as any process does."""
    if not session.spec.train.fsdp:
        return
    for _ in range(session.plan.most_passes(session.accelerator.num_processes) - passes):
        loss = loss_sum(session.backbone, session.batch([session.prepared.train[0]]))
        session.accelerator.backward(loss * 0.0)


def diverged(session: Session, passed: Passed, grad_norm: float) -> Diverged:
    """Say which rows and which rate made a loss or a gradient that is no number."""
    losses, batches = passed.losses, passed.batches
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    rows = [row for i in bad or range(len(batches)) for row in batches[i].rows]
    what = f"loss became {losses[bad[0]]}" if bad else f"gradient became {grad_norm}"
    if session.accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        said = gather_object([(not bad, what, rows)])
        _, what, rows = min(said)  # whoever saw the loss itself knows the rows
    rate = session.plan.lr(session.progress.step)
    return Diverged(
        f"The {what} at step {session.progress.step + 1}, in row{'s' if len(rows) > 1 else ''} "
        f"{', '.join(map(str, sorted(rows)[:16]))} of {session.spec.data.path}. Lower "
        f"train.learning_rate (it was {rate:.2g}) or look at these rows; the last checkpoint "
        "is intact."
    )


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


def open_session(
    spec: RunSpec,
    *,
    loaded: Loaded,
    prepared: Prepared,
    backbone: Backbone | None = None,
    name: str = NAME,
) -> Session:
    """Attach a fresh adapter to a loaded base and get everything ready for the first step.

    Args:
        spec: The run.
        loaded: The base.
        prepared: The rows.
        backbone: The base as siblings have it; a fresh one when the run is alone.
        name: What the adapter is called on it.

    Raises:
        MethodError: The method does not fit this model.
        SpecError: A setting is not possible on this device.
    """
    from accelerate import Accelerator

    from studio.backbone import Backbone as NewBackbone

    torch.set_num_threads(hardware.threads())  # a team's members have a share each
    keep_few_kernels()
    _ = give_back_freed_memory() if spec.train.fsdp else reuse_freed_memory()
    backbone = backbone or NewBackbone(loaded.model)
    if spec.train.fsdp:
        share_base(backbone, loaded.device)
    adapter = backbone.attach(
        name,
        spec.method,
        seed=spec.seed,
        tokenize=lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"],
    )
    backbone.use([(name, 1.0)])
    parameters = backbone.train(name)
    if spec.train.gradient_checkpointing:
        backbone.checkpointing(True, offload=_offloads(spec, loaded))
    backbone.attend(_attention(spec, loaded, backbone.anatomy.head_dim))
    alpha = spec.train.neftune_noise_alpha
    plan = plan_run(spec, num_rows=len(prepared.train), hidden_size=backbone.anatomy.hidden_size)
    return Session(
        spec=spec,
        plan=plan,
        loaded=loaded,
        backbone=backbone,
        adapter=adapter,
        prepared=prepared,
        optimizer=make_optimizer(adapter.named_parameters(), spec.train),
        accelerator=Accelerator(cpu=loaded.device.type == "cpu"),
        progress=Progress(),
        origin=Origin(
            data_hash=prepared.data_hash,
            base_fingerprint=loaded.facts.fingerprint,
            total_steps=plan.total_steps,
        ),
        name=name,
        parameters=parameters,
        noise=Noise(backbone, adapter, alpha) if alpha else None,
    )


def _offloads(spec: RunSpec, loaded: Loaded) -> bool:
    """Return whether layers' inputs go to main memory; on a CPU they are there."""
    asked = spec.train.activation_offloading
    if asked and loaded.device.type != "cuda":
        raise SpecError(
            "train.activation_offloading moves activations from a GPU to main memory, and this run "
            f"is on {loaded.device}: set it to false.", field="train.activation_offloading",
        )  # fmt: skip
    return asked


def _attention(spec: RunSpec, loaded: Loaded, head_dim: int) -> str:
    """Return the attention to take; one that was asked for by name must be possible."""
    from studio.backbone.attention_kernels import why_not

    asked = spec.train.attn_implementation
    if asked != "varlen":
        return asked
    config = loaded.model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    why = why_not(loaded.device, loaded.dtype, head_dim, capped=capped)
    if not (why or spec.train.packing):
        why = "it attends packed rows: set train.packing=true"
    if why:
        raise SpecError(
            f"train.attn_implementation=varlen is not possible: {why}. auto takes the fastest that "
            "is.", field="train.attn_implementation",
        )  # fmt: skip
    return asked

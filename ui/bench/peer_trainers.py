"""The peers of `studio bench train`: this studio's loop, HF Trainer with PEFT, TRL's SFTTrainer.

Each trains the same rows in the same order from the same adapter file, at its own defaults except
where a default would make the comparison about something else (constant rate, no evaluation, no
saving, no dropout).

`python -m ui.bench.peer_trainers PEER FOLDER` is one peer in its own process. It reads a line
before each round and answers with one JSON line after it, so that several peers take turns on one
machine and share its noise. All are timed around the same thing: from taking a step's rows to the
updated weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from studio import hardware
from studio.data.template.template import IGNORED
from ui.bench.training_case import (
    SIBLINGS,
    BenchCase,
    BenchRow,
    bench_device,
    load_bare,
    read_case,
    sibling_rates,
)

if TYPE_CHECKING:
    from studio.models.loading import Loaded

PEAK_SECONDS = 5.0  # then whatever was reached counts


def run_ours(folder: Path, case: BenchCase, rows: list[BenchRow], gate: Turnstile) -> None:
    """Train as the peer `ours`: the loop of `studio.training`, as `studio train` runs it."""
    from studio.training.train_run import open_session
    from studio.training.training_session import NAME

    prepared = _prepared(rows, case.width)
    session = open_session(case.spec(), loaded=bare(case), prepared=prepared)
    if (folder / "adapter").is_dir():
        trained = session.backbone.load("file", folder / "adapter")
        session.adapter.load_state(trained.state())
        session.backbone.detach("file")
        session.backbone.use([(NAME, 1.0)])
        session.backbone.train(NAME)
    session.plan = replace(session.plan, shuffled=False)
    if session.preference:
        list(session.preference.prepare_reference(folder))
    for step in range(case.steps):
        gate.before(step)
        with gate.counting(step):
            event = session.step()
        gate.after()
        gate.note(loss=event.loss, grad_norm=event.grad_norm)


def bare(case: BenchCase) -> Loaded:
    """Load the case's model for the peer that is this studio, without a tokenizer."""
    import torch

    from studio.models.find_model import facts
    from studio.models.loading import Loaded

    model = load_bare(Path(case.model), case.dtype)
    return Loaded(
        model=model, tokenizer=None, device=model.device,
        dtype=getattr(torch, case.dtype), facts=facts(case.spec().model),
    )  # fmt: skip


def _prepared(rows: list[BenchRow], width: int = 1) -> Any:
    return SimpleNamespace(
        train=rows, validation=[], data_hash="", template="", rows_per_example=width
    )


def run_siblings(folder: Path, case: BenchCase, rows: list[BenchRow], gate: Turnstile) -> None:
    """Train as the peer `siblings`: several runs of this studio on one base, in turns."""
    from studio.training.siblings import SiblingGroup
    from studio.training.train_run import open_session

    loaded = bare(case)
    group = SiblingGroup(loaded)
    sessions = []
    for number, rate in enumerate(sibling_rates(case, case.siblings)):
        session = open_session(
            replace(case, learning_rate=rate).spec(), loaded=loaded, prepared=_prepared(rows),
            backbone=group.backbone, name=f"sibling-{number}",
        )  # fmt: skip
        session.plan = replace(session.plan, shuffled=False)
        group.join(session)
        sessions.append(session)
    taken: list[list[dict[str, float]]] = [[] for _ in sessions]
    for step in range(case.steps):
        gate.before(step)
        events = [session.step() for session in sessions]
        gate.after()
        for own, event in zip(taken, events, strict=True):
            own.append({"loss": event.loss, "grad_norm": event.grad_norm})
        (folder / SIBLINGS).write_text(json.dumps(taken), encoding="utf-8")
        gate.note(loss=events[0].loss, grad_norm=events[0].grad_norm)


def run_hf(
    folder: Path, case: BenchCase, rows: list[BenchRow], gate: Turnstile, **changes: Any
) -> None:
    """Train as the peer `hf`: transformers' Trainer with PEFT and a padding collator."""
    from transformers import Trainer, TrainingArguments

    case = replace(case, **changes)
    args = TrainingArguments(**_arguments(folder, case, "hf"), remove_unused_columns=False)
    _train(Trainer, args, folder, case, rows, gate, data_collator=_collate, train_dataset=rows)


def run_trl(
    folder: Path, case: BenchCase, rows: list[BenchRow], gate: Turnstile, **options: Any
) -> None:
    """Train as the peer `trl`: SFTTrainer or DPOTrainer at its defaults but for some options."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if case.loss != "sft":
        _run_trl_dpo(folder, case, rows, gate, options)
        return
    dataset = Dataset.from_dict(
        {
            "input_ids": [row.input_ids.tolist() for row in rows],
            "completion_mask": [(row.labels != IGNORED).astype(int).tolist() for row in rows],
        }
    )
    args = SFTConfig(
        **_arguments(folder, case, "trl"), completion_only_loss=True, max_length=None, **options
    )
    _train(
        SFTTrainer, args, folder, case, rows, gate, processing_class=_tokenizer(),
        train_dataset=dataset,
    )  # fmt: skip


def _run_trl_dpo(
    folder: Path, case: BenchCase, rows: list[BenchRow], gate: Turnstile, options: dict[str, Any]
) -> None:
    """DPOTrainer with the reference computed before the first step, as ours is."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    def parts(row: BenchRow) -> tuple[list[int], list[int]]:
        start = int((row.labels != IGNORED).argmax())
        return row.input_ids[:start].tolist(), row.input_ids[start:].tolist()

    pairs = [(parts(a), parts(b)) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    dataset = Dataset.from_dict({
        "prompt_ids": [prompt for (prompt, _), _ in pairs],
        "chosen_ids": [chosen for (_, chosen), _ in pairs],
        "rejected_ids": [rejected for _, (_, rejected) in pairs],
    })  # fmt: skip
    own = {name: value for name, value in options.items() if name != "padding_free"}  # SFT's alone
    args = DPOConfig(
        **_arguments(folder, case, "trl"), max_length=None, precompute_ref_log_probs=True,
        beta=case.spec().train.own_beta, **own,
    )  # fmt: skip
    _train(
        Tokenised, args, folder, case, rows, gate, processing_class=_tokenizer(),
        train_dataset=dataset,
    )  # fmt: skip


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")),
        pad_token="<pad>", eos_token="</s>",
    )  # fmt: skip


def _arguments(folder: Path, case: BenchCase, name: str) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(folder / name), "per_device_train_batch_size": case.batch,
        "max_steps": case.steps, "learning_rate": case.learning_rate, "logging_steps": 1,
        "lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no",
        "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True,
        **({"bf16": True} if case.dtype == "bfloat16" else {}),
    }  # fmt: skip


def _collate(batch: list[BenchRow]) -> dict[str, Any]:
    import torch

    longest = max(len(row.input_ids) for row in batch)
    ids, mask = np.zeros((len(batch), longest), np.int64), np.zeros((len(batch), longest), np.int64)
    labels = np.full((len(batch), longest), IGNORED, np.int64)
    for i, row in enumerate(batch):
        length = len(row.input_ids)
        ids[i, :length], mask[i, :length], labels[i, :length] = row.input_ids, 1, row.labels
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _train(
    trainer_class: Any, args: Any, folder: Path, case: BenchCase, rows: list[BenchRow],
    gate: Turnstile, **options: Any,
) -> None:  # fmt: skip
    import torch
    from peft import PeftModel
    from transformers import TrainerCallback

    base = load_bare(Path(case.model), "float32")  # their bf16 is autocast over float32 weights
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    losses: list[float] = []

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gate.before(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gate.after()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs.get("logs") or {}
            if "grad_norm" in logs:
                gate.note(loss=losses[-1], grad_norm=float(logs["grad_norm"]))

    class Ordered(trainer_class):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows[:: case.width])

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    Ordered(model=model, args=args, callbacks=[Turns()], **options).train()


PEERS: dict[str, Callable[[Path, BenchCase, list[BenchRow], Turnstile], None]] = {
    "ours": run_ours,
    "siblings": run_siblings,
    "hf": run_hf,
    "hf-float32": partial(run_hf, dtype="float32"),
    "trl": run_trl,
    "trl-best": partial(run_trl, padding_free=True, gradient_checkpointing=False),
}


class Turnstile:
    """Starts a round when the parent asks for it, and reports it when it is over."""

    def __init__(self, case: BenchCase, rows: list[BenchRow]) -> None:
        self.case, self.rows = case, rows
        self.base_bytes = 0
        self.seconds: list[float] = []
        self.steps: list[dict[str, float]] = []
        self.flops_per_token = 0.0
        self._started = 0.0

    def before(self, step: int) -> None:
        """Call before a step; waits at the start of a round."""
        if step % self.case.steps_per_round == 0:
            sys.stdin.readline()
            if step in (0, self.case.steps_per_round):  # what warming up took does not count
                in_use = hardware.reset_peak(bench_device())
                self.base_bytes = self.base_bytes or in_use
        self._started = time.perf_counter()

    def after(self) -> None:
        """Call as soon as the weights are updated."""
        self.seconds.append(time.perf_counter() - self._started)

    @contextmanager
    def counting(self, step: int) -> Iterator[None]:
        """Count the arithmetic of the first step, which warms up and is not timed."""
        if step:
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        counter: Any = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()
        with counter:
            yield
        tokens = self._tokens(0, 1)
        self.flops_per_token = counter.get_total_flops() / tokens

    def note(self, *, loss: float, grad_norm: float) -> None:
        """Call with the step's figures; reports at the end of a round."""
        self.steps.append({"loss": loss, "grad_norm": grad_norm})
        done = len(self.steps)
        if done % self.case.steps_per_round == 0:
            self._report(done - self.case.steps_per_round, done)

    def _tokens(self, first: int, last: int) -> int:
        size = self.case.batch * self.case.width
        return sum(len(row.input_ids) for row in self.rows[first * size : last * size])

    def _report(self, first: int, last: int) -> None:
        report = {
            "tokens": self._tokens(first, last),
            "examples": (last - first) * self.case.batch,
            "seconds": sum(self.seconds[first:last]),
            "steps": self.steps[first:last],
            "peak_bytes": max(0, hardware.peak_bytes(bench_device()) - self.base_bytes),
            "base_bytes": self.base_bytes,
            "flops_per_token": self.flops_per_token,
        }
        print(json.dumps(report), flush=True)


class _NoModules(AbstractContextManager[None]):
    """A stand-in for torch's module tracker, whose hooks fail in a backward within a backward."""

    parents = frozenset({"Global"})

    def __exit__(self, *error: object) -> None:
        return None


def matmul_peak(dtype: str) -> float:
    """Return the most FLOP/s that a peer can reach on this machine: those of one large product."""
    rows, inner, outer = 1024, 1024, 4096
    import torch

    device, kind = bench_device(), getattr(torch, dtype)
    a = torch.randn(rows, inner, device=device, dtype=kind)
    b = torch.randn(inner, outer, device=device, dtype=kind)
    best, first = float("inf"), time.perf_counter()
    for _ in range(12):
        started = time.perf_counter()
        if started - first > PEAK_SECONDS:  # a precision that this processor only emulates
            break
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * outer / best


def main() -> None:
    """Run one peer's trainer over a prepared case, or prepare it."""
    import os

    import torch

    from ui.bench.training_case import prepare_case

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(hardware.threads())
    peer, folder = sys.argv[1], Path(sys.argv[2])
    if peer == "prepare":
        prepare_case(BenchCase(**json.loads(sys.argv[3])), folder)
        return
    case, rows = read_case(folder)
    if peer == "peak":
        print(json.dumps({"flops": matmul_peak(case.dtype)}))
        return
    run: Any = PEERS[peer]
    run(folder, case, rows, Turnstile(case, rows))


if __name__ == "__main__":
    main()

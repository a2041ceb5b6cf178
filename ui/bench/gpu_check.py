"""`studio bench gpu-check`: what only a real GPU can say, the most important first, in one table.

Every check has a time limit of its own and cannot stop the next. Nothing is downloaded: weights are
random. On a machine without a GPU `--tiny` runs the same checks on small shapes, which proves this
file and nothing about a card.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio import hardware
from studio.errors import InputError, first_line, is_out_of_memory
from studio.methods.lora import Lora
from ui.bench.bench_figures import progress
from ui.bench.training_case import SHAPES, BenchRow, make_model, make_rows

if TYPE_CHECKING:
    from studio.backbone import Backbone

ALLOWED_LOSS, ALLOWED_ESTIMATE, MOST_WAITS = 1e-2, 0.15, 1
GIB, TIMES = 2**30, 1
Answer = tuple[str, bool | None]  # what was seen, and if it is as expected, where known


@dataclass
class Machine:
    """The device, one large random model on it, and rows to train on."""

    folder: Path
    tiny: bool

    @cached_property
    def device(self) -> Any:
        """The first GPU; the CPU for a tiny check."""
        import torch

        return torch.device("cpu" if self.tiny else "cuda:0")

    @cached_property
    def backbone(self) -> Backbone:
        """A random model of 8B parameters in bfloat16, made on the device."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from studio.backbone import Backbone

        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                shape = SHAPES["llama-tiny" if self.tiny else "llama-8b"]
                return Backbone(LlamaForCausalLM(LlamaConfig(**shape)).eval())
        finally:
            torch.set_default_dtype(torch.float32)

    @contextlib.contextmanager
    def trained(self, **settings: Any) -> Iterator[list[Any]]:
        """Train a fresh LoRA on it; yield its parameters."""
        self.backbone.attach("a", Lora(r=16, **settings))
        self.backbone.use([("a", 1.0)])
        try:
            yield self.backbone.train("a")
        finally:
            self.backbone.detach("a")

    def batch(self, rows: int = 8, length: int = 256) -> Any:
        """Return packed rows of equal length, half of them trained."""
        from studio.training.batching import pack

        length = 24 if self.tiny else length
        vocabulary = self.backbone.model.config.vocab_size
        made = make_rows(rows, vocabulary=vocabulary)
        ids = np.resize(np.concatenate([row.input_ids for row in made]), (rows, length))
        labels = np.where(np.arange(length) < length // 2, -100, ids)
        return pack([BenchRow(i, t, n) for n, (i, t) in enumerate(zip(ids, labels, strict=True))],
                    self.device)  # fmt: skip

    def step(self, parameters: Sequence[Any], batch: Any) -> float:
        """Run forward and backward; return the loss."""
        from studio.training.loss import loss_sum

        loss = loss_sum(self.backbone, batch) / batch.num_targets
        loss.backward()
        for parameter in parameters:
            parameter.grad = None
        return float(loss.detach())

    def seconds(self, work: Callable[[], object], times: int = TIMES) -> float:
        """Return how long a call takes: the shortest mean of some rounds, the first ones aside."""
        from studio.training.kernel_check import milliseconds

        return milliseconds(work, self.device, times) / 1e3

    def peak(self, work: Callable[[], object]) -> float:
        """Return the GiB that a call takes above what is taken before it."""
        before = hardware.reset_peak(self.device)
        work()
        return (hardware.peak_bytes(self.device) - before) / GIB


def card(machine: Machine) -> Answer:
    """Name the GPU to check, the kernel of packed attention and the memory of the context."""
    import torch

    from studio.backbone.attention_kernels import kernel

    if machine.tiny:
        return f"none; torch {torch.__version__}", None
    found, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
    name = f"{found.name}, compute capability {found.major}.{found.minor}"
    seen = kernel(machine.device) is not None
    return (
        f"{name}, {total / GIB:.0f} GiB ({(total - free) / 2**20:.0f} MiB taken), torch "
        f"{torch.__version__}, varlen kernel {'found' if seen else 'missing'}"
    ), seen


def equal_to_cpu(machine: Machine) -> Answer:
    """Check on the GPU that training the starter gives the losses of the CPU."""
    from studio.home import open_home
    from studio.spec import RunSpec
    from studio.training.train_run import train
    from studio.training.training_events import Step

    losses = []
    for device in dict.fromkeys((str(machine.device), "cpu")):
        spec = RunSpec().with_values(
            {"train.device": device, "train.max_steps": 4, "model.dtype": "bfloat16"}
        )
        folder, home = machine.folder / f"starter-{device[:3]}", open_home(machine.folder / "home")
        events = train(spec, run_dir=folder, home=home)
        losses.append([event.loss for event in events if isinstance(event, Step)])
    apart = max(abs(one - other) for one, other in zip(losses[0], losses[-1], strict=True))
    return f"{apart:.1e}", apart < 2 * ALLOWED_LOSS


def attention_kernels(machine: Machine) -> Answer:
    """Check on the GPU that a step has the same loss with each attention kernel."""
    batch, names = machine.batch(), ("sdpa",) if machine.tiny else ("varlen", "sdpa", "eager")
    with machine.trained() as parameters:
        found = {}
        for name in names:
            machine.backbone.set_attention(name)
            found[name] = machine.step(parameters, batch)
        machine.backbone.set_attention("auto")
    apart = max(found.values()) - min(found.values())
    return f"{', '.join(found)}: {apart:.1e}", apart < ALLOWED_LOSS


def triton_kernels(machine: Machine) -> Answer:
    """Check every Triton kernel on the GPU against its plain form, and time both."""
    from studio.training import kernel_check

    if machine.tiny or not kernel_check.installed():
        return "needs a GPU" if machine.tiny else "Triton is not installed", None
    found = kernel_check.ask(str(machine.device), "bfloat16")
    said = [
        f"{name} {one['milliseconds']:.3g} ms, plain {one['plain_milliseconds']:.3g}"
        if "milliseconds" in one else f"{name}: {one['why']}"
        for name, one in found.items()
    ]  # fmt: skip
    return "; ".join(said), all("milliseconds" in one for one in found.values())


def lora_speed(machine: Machine) -> Answer:
    """Check on the GPU the speed of a LoRA step: plain, in one long row, recomputed, offloaded."""
    batch, said = machine.batch(), []
    with machine.trained() as parameters:
        step = lambda: machine.step(parameters, batch)  # noqa: E731
        loss, seconds, peak = step(), machine.seconds(step), machine.peak(step)
        said.append(f"{batch.num_tokens / seconds:,.0f} tokens/s, {peak:.1f} GiB")
        one = machine.batch(1, 2048)
        slow = machine.seconds(lambda: machine.step(parameters, one))
        said.append(f"one row of {one.num_tokens}: {one.num_tokens / slow:,.0f}")
        apart = 0.0
        for name, offload in (("recomputed", False), ("offloaded", True)):
            if offload and machine.tiny:
                continue
            machine.backbone.checkpointing(True, offload=offload)
            apart = max(apart, abs(step() - loss))
            slower, peak = machine.seconds(step) / seconds, machine.peak(step)
            said.append(f"{name}: {slower:.2f} ×, {peak:.1f} GiB")
            machine.backbone.checkpointing(False)
    return f"{'; '.join(said)}; losses {apart:.0e} apart", apart < ALLOWED_LOSS


def host_waits(machine: Machine) -> Answer:
    """Check where a step waits for the GPU; fetching the loss is the one wait that is needed."""
    if machine.tiny:
        return "needs a GPU", None
    import torch

    batch = machine.batch()
    with machine.trained() as parameters, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        machine.step(parameters, batch)
        caught.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            machine.step(parameters, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(one.filename).name}:{one.lineno}" for one in caught if "sync" in str(one.message)
    )
    return f"{sum(places.values())}: {dict(places)}", sum(places.values()) <= MOST_WAITS


def decoding(machine: Machine) -> Answer:
    """Check on the GPU how long a decoded token takes, of one lane and of four."""
    import torch

    from studio.chat.decoding import Batch

    machine.backbone.use([])
    said = []
    with torch.no_grad():
        for lanes in (1, 4):
            batch = Batch(machine.backbone.model, [[5] * 100] * lanes, machine.device)
            batch.prefill()
            seconds = machine.seconds(lambda b=batch, n=lanes: b.step([7] * n), 20)  # type: ignore[misc]
            said.append(f"{lanes}: {1e3 * seconds:.1f} ms a token, {lanes / seconds:,.0f} tokens/s")
    return "; ".join(said), None


def captured_decoding(machine: Machine) -> Answer:
    """Check on the GPU that captured graphs decode with equal logits, and time a token."""
    import torch

    from studio.chat.captured_decoding import CALM, allow
    from studio.chat.decoding import GRAPHS, Batch
    from studio.home import open_home
    from studio.training.kernel_check import graph_results

    if machine.tiny:
        return "needs a GPU", None
    machine.backbone.use([])
    home, said = open_home(machine.folder / "home"), []
    allow(machine.backbone, device=machine.device, dtype=torch.bfloat16, home=home)
    try:
        for lanes in (1, 4):
            batch = Batch(machine.backbone.model, [[5] * 100] * lanes, machine.device)
            batch.prefill()
            for _ in range(CALM):
                batch.step([7] * lanes)
            seconds = machine.seconds(lambda b=batch, n=lanes: b.step([7] * n), 20)  # type: ignore[misc]
            said.append(f"{lanes}: {1e3 * seconds:.1f} ms a token")
    finally:
        del machine.backbone.model.__dict__[GRAPHS]
    whys = [one["why"] for one in graph_results(home).read().values()]
    return "; ".join([*said, *filter(None, whys)]), bool(whys) and not any(whys)


def memory(machine: Machine, quantization: str) -> Answer:
    """Check on the GPU that the measured peak of a training is near the estimate."""
    from studio.home import open_home
    from studio.spec import RunSpec
    from studio.training.estimate_memory_and_time import estimate
    from studio.training.train_run import train

    model, home = machine.folder / "model", open_home(machine.folder / "home")
    if not model.is_dir():
        make_model("llama-tiny" if machine.tiny else "llama-1b", model, dtype="bfloat16")
    rows = [{"text": " ".join(map(str, row.input_ids))} for row in make_rows(64, vocabulary=2000)]
    data = machine.folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    spec = RunSpec().with_values(
        {
            "model.path": str(model), "data.path": str(data), "data.format": "text",
            "model.quantization": quantization,
            "train.device": str(machine.device), "train.max_steps": 3, "train.num_samples": 0,
            "train.measure_forgetting": False, "model.dtype": "bfloat16", "data.max_length": 512,
        }
    )  # fmt: skip
    paper, folder = estimate(spec, home).process_bytes, machine.folder / f"run-{quantization}"
    list(train(spec, run_dir=folder, home=home))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    share = report["memory_bytes"] / paper
    text = f"peak {report['memory_bytes'] / GIB:.2f} GiB, {share:.2f} of the estimate"
    speed = f", {report['tokens_per_second']:,.0f} tokens/s"
    return text + speed, None if machine.tiny else abs(share - 1) < ALLOWED_ESTIMATE


def out_of_memory(machine: Machine) -> Answer:
    """Check on the GPU that running out of memory is recognised and the next step works."""
    if machine.tiny:
        return "needs a GPU", None
    import torch

    taken = torch.empty(
        int(torch.cuda.mem_get_info()[0] - 2 * GIB), dtype=torch.uint8, device=machine.device
    )
    with machine.trained() as parameters:
        try:
            machine.step(parameters, machine.batch(64))
            return "no error", False
        except Exception as error:  # whatever the allocator raises is what is looked at
            name, known = type(error).__name__, is_out_of_memory(error)
        del taken
        torch.cuda.empty_cache()
        machine.step(parameters, machine.batch())
    return f"{name}, then a step went on", known


def queue(machine: Machine) -> Answer:
    """Check on the GPU that the starter trains through the command line, the queue and a runner."""
    environment = os.environ | {"STUDIO_HOME": str(machine.folder / "queue")}
    call = [sys.executable, "-m", "ui.cli.main"]
    train = ["train", "--model", "starter", "--data", "starter:pirate", "--follow", "--set",
             "train.max_steps=3", "--set", f"train.device={machine.device}"]  # fmt: skip
    ran = subprocess.run(call + train, env=environment, capture_output=True, text=True, check=False)
    subprocess.run([*call, "stop"], env=environment, capture_output=True, check=False)
    last = (ran.stdout + ran.stderr).strip().splitlines()[-1:]
    return f"exit {ran.returncode}: {''.join(last)[:80]}", ran.returncode == 0


CHECKS: list[tuple[str, str, Callable[[Machine], Answer]]] = [
    ("card", "the varlen kernel", card),
    ("starter trained = CPU", "losses within 2e-2", equal_to_cpu),
    ("attention kernels, 8B", "losses within 1e-2", attention_kernels),
    ("Triton kernels, bfloat16", "right; those that are slower are not used", triton_kernels),
    ("host waits of a step", "1", host_waits),
    ("LoRA bfloat16, 8B, 2,048 tokens", "17,000 tokens/s on an H200, by arithmetic", lora_speed),
    ("LoRA, 1B: peak", "estimate ± 15 %", partial(memory, quantization="none")),
    ("QLoRA, 1B: peak", "estimate ± 15 %", partial(memory, quantization="nf4")),
    ("decoding, 8B: 1 and 4 lanes", "3.4 ms on an H200, by bandwidth", decoding),
    ("decoding, captured", "right and faster", captured_decoding),
    ("out of memory, then a step", "recognised", out_of_memory),
    ("the queue, end to end", "exit 0", queue),
]


def bench_gpu_check(folder: Path, *, seconds: float, out: str, tiny: bool) -> dict[str, Any]:
    """Run the checks of the GPU that start within `seconds`; write the rows to `out` if named.

    Raises:
        InputError: There is no GPU that torch can use, and the check is not tiny.
    """
    import torch

    if not (tiny or torch.cuda.is_available()):
        raise InputError("torch sees no GPU here: `studio doctor` says why. --tiny runs on a CPU.")
    machine, started, rows = Machine(folder, tiny), time.monotonic(), []
    for name, expected, check in CHECKS:
        row: dict[str, Any] = {"check": name, "expected": expected}
        row |= {"seen": "no time left", "ok": None}
        began = time.monotonic()
        if began - started < seconds:
            progress(f"{name}, {max(0, seconds - began + started):.0f} s left")
            row["seen"], row["ok"] = _answer(check, machine)
        rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
    result = {"date": datetime.now(UTC).date().isoformat(), "rows": rows}
    if out:
        Path(out).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result | {"failed": sum(row["ok"] is False for row in rows)}


def _answer(check: Callable[[Machine], Answer], machine: Machine) -> Answer:
    try:
        return check(machine)
    except Exception as error:  # one check must not stop the next
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"{type(error).__name__}: {first_line(error, 90)} ({where})", False
    finally:
        gc.collect()


def gpu_check_text(result: dict[str, Any]) -> str:
    """Return the table of the GPU checks as Markdown, as `docs/gpu.md` shows it."""
    marks = {None: "–", True: "yes", False: "NO"}
    lines = [f"| {result['date']} | expected | seen | as expected |", "|---|---|---|---|"]
    lines += [
        f"| {row['check']} | {row['expected']} | {row['seen']} | {marks[row['ok']]} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)

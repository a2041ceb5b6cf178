"""Train on several processes of this machine: start ranks, collect events, shard the base.

Every rank holds the frozen base and takes its part of each step's rows; gradients are summed after
each step, so all ranks stay equal and any number of them can resume the run. They rendezvous in a
file and communicate over the loopback interface (torchrun's store listens on all interfaces).

With FSDP2 each rank keeps a shard of every frozen layer. A layer is gathered when it computes and
freed again after; its weights come from main memory, so no device ever holds the base whole.
Adapters are small and stay whole on every rank, and so do their files and checkpoints.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import hardware
from studio.errors import MethodError, ProcessLost, RunError, SpecError, StudioError, revived
from studio.home import Home
from studio.methods import Phase
from studio.spec import RunSpec
from studio.training.training_events import Event, event_from

if TYPE_CHECKING:
    import torch
    from torch import nn

    from studio.backbone import Backbone
    from studio.job_request import Control
    from studio.methods.method import Method

POLL_SECONDS, END_SECONDS = 0.1, 5.0
CAUSE_SECONDS = 15.0  # a rank that fails makes others fail: wait for the first cause
RANK = (sys.executable, "-P", "-m", "studio.training.distributed_rank")
BUCKET = 8_000_000  # gradient numbers that are summed over ranks at once


def check_sharding(spec: RunSpec) -> None:
    """Check that the run can shard its base, if `train.fsdp` is set.

    Raises:
        SpecError: There is only one process, or the base is quantized.
        MethodError: The method cannot work on a sharded base.
    """
    if not spec.train.fsdp:
        return
    if spec.train.num_processes == 1:
        raise SpecError(
            "train.fsdp shards the base over processes: set train.num_processes to two or more.",
            field="train.fsdp",
        )
    if spec.model.quantization != "none":
        raise SpecError(
            "train.fsdp cannot shard a base in 4 or 8 bit: set model.quantization=none, or "
            "train.fsdp=false.",
            field="train.fsdp",
        )
    if spec.method.phase is Phase.PROMPT:
        raise MethodError(
            f"{spec.method.title} runs its prompt through the layers before the rows, which "
            "train.fsdp does not support: set train.fsdp=false, or use prefix tuning."
        )
    if spec.method.phase is Phase.WEIGHTS:
        raise MethodError(
            f"{spec.method.title} trains the base, but train.fsdp shards a frozen one: set "
            "train.fsdp=false, or use an adapter method."
        )


def shard_base(backbone: Backbone, device: torch.device) -> None:
    """Shard every decoder layer over the ranks and move everything else to the device.

    Call it before adapters are attached: they would be sharded with their layer.
    """
    from torch.distributed.fsdp import fully_shard

    _ = backbone.anatomy.recording  # needs whole weights
    backbone.set_lean(False)  # a layer's weights exist only while the layer itself runs
    for layer in backbone.anatomy.layers():
        small = {parameter for parameter in layer.parameters() if parameter.ndim == 1}
        # Norms and biases stay whole, since their tuning stores full values. The default of
        # reshard_after_forward would keep a root's layers whole.
        fully_shard(layer, reshard_after_forward=True, ignored_params=small)
    backbone.model.to(device)  # embeddings, head, last norm


def check_saved_modules(backbone: Backbone, method: Method) -> None:
    """Check that nothing of a sharded base is trained in full: rank 0 alone could not write it.

    Raises:
        MethodError: `method.modules_to_save` names a linear layer inside the decoder layers.
    """
    names = getattr(method, "modules_to_save", "none")
    ends = tuple(f".{name}" for name in names) if isinstance(names, tuple) else ()
    for site in backbone.anatomy.all_linears():
        if hasattr(site.parameter, "full_tensor") and f".{site.key}".endswith(ends):
            raise MethodError(
                f"method.modules_to_save names {site.key}, which train.fsdp shards: leave it out "
                "there, or set train.fsdp=false."
            )


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum every gradient over all ranks, in buckets of at most `BUCKET` numbers."""
    import torch

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
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def train_distributed(
    spec: RunSpec, *, run_dir: Path, home: Home, control: Control
) -> Iterator[Event]:
    """Train on `spec.train.num_processes` processes; yield the events of rank 0.

    Raises:
        SpecError: This machine lacks the devices.
        ProcessLost: A rank was killed; the others were ended, the last checkpoint is intact.
        StudioError: A rank failed with it.
    """
    devices = spec.train.device_names()
    check_sharding(spec)
    with tempfile.TemporaryDirectory(prefix="studio-ranks-") as folder:
        order = {
            "size": len(devices), "devices": devices, "rendezvous": f"{folder}/rendezvous",
            "spec": spec.model_dump(mode="json"), "run_dir": str(run_dir), "home": str(home.path),
        }  # fmt: skip
        ranks = _Ranks(order)
        try:
            yield from ranks.events(control)
        finally:
            ranks.end()


_Failure = tuple[int, StudioError]
"""How far from the cause (0 explains itself, 1 killed, 2 failed, 3 ended), and the error."""


class _Ranks:
    """The processes of a run, and one queue of their messages."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.size = int(order["size"])
        self.messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        threads = max(1, hardware.threads() // self.size)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        self.processes = [
            subprocess.Popen(
                RANK, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                encoding="utf-8",
            )
            for _ in range(self.size)
        ]  # fmt: skip
        for rank, process in enumerate(self.processes):
            self._send(process, json.dumps(order | {"rank": rank}))
            threading.Thread(target=self._receive, args=(rank, process), daemon=True).start()

    def events(self, control: Control) -> Iterator[Event]:
        """Yield the events of rank 0 until all ranks have ended without error."""
        left, stopping = self.size, False
        while left:
            command = control()
            if command is not None and not (command == "stop" and stopping):
                stopping = stopping or command == "stop"
                self._send(self.processes[0], command)
            try:
                rank, message = self.messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                left -= 1
            if (failure := self._failure(rank, message)) is not None:
                raise self._cause(failure, left)
            if message is not None:
                yield event_from(message)

    def end(self) -> None:
        """End every process that still runs."""
        for process in self.processes:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]  # ends the process
        deadline = time.monotonic() + END_SECONDS
        for process in self.processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _cause(self, failure: _Failure, left: int) -> StudioError:
        """Return the first cause: a rank that fails makes others fail, in any order."""
        failures, deadline = [failure], time.monotonic() + CAUSE_SECONDS
        while left and min(distance for distance, _ in failures) > 1:
            late = time.monotonic() > deadline
            try:
                rank, message = self.messages.get(timeout=0 if late else POLL_SECONDS)
            except queue.Empty:
                if late:
                    break
                continue
            left -= message is None
            if (another := self._failure(rank, message)) is not None:
                failures.append(another)
        return min(failures, key=lambda failure: failure[0])[1]

    def _failure(self, rank: int, message: dict[str, Any] | None) -> _Failure | None:
        """Return the failure that a message (None: the process ended) reports, if any."""
        who = f"Process {rank + 1} of {self.size}"
        if message is not None and "error" in message:
            error = revived(message["error"])
            if type(error) is not RunError:
                return 0, error
            return 2, RunError(f"{who} failed: {error.text}")
        if message is not None or (code := self.processes[rank].wait()) == 0:
            return None
        how = f"ended with code {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return 1 if code < 0 and code != -signal.SIGABRT else 3, ProcessLost(
            f"{who} {how}, so the others were ended too. The last checkpoint is intact."
        )

    def _receive(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.messages.put((rank, json.loads(line)))
        self.messages.put((rank, None))

    def _send(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # it has ended, which `_receive` reports
            process.stdin.write(line + "\n")
            process.stdin.flush()

"""Train in several processes: what shards, starting the ranks, collecting their events.

A layer's weights are put together when it computes and dropped again after. They come from main
memory layer by layer, so that no device ever holds the base whole. Adapters are small and stay
whole on every process, so their files, checkpoints and gradients are those of any run.

Every member holds the frozen base and takes its share of each step's rows; gradients are summed
after each step, so that all members stay equal and any number of them may resume the run. They meet
through a file and talk over the loopback interface: torchrun would do the same around a store that
listens on every interface, which a studio on loopback must not have.
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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import hardware
from studio.errors import MethodError, ProcessLost, RunError, SpecError, StudioError, revived
from studio.home import Home
from studio.methods import Phase
from studio.spec import RunSpec
from studio.training.events import Event, event_from

if TYPE_CHECKING:
    import torch

    from studio.backbone import Backbone
    from studio.spec import RunSpec
    from studio.training.loop import Control


def checked(spec: RunSpec) -> None:
    """Refuse what cannot be shared out.

    Raises:
        SpecError: There is one process, or the base is in 4 bit.
        MethodError: The method trains the base itself.
    """
    if not spec.train.fsdp:
        return
    if spec.train.num_processes == 1:
        raise SpecError(
            "train.fsdp shares the base between processes: set train.num_processes to two or more.",
            field="train.fsdp",
        )
    if spec.model.quantization != "none":
        raise SpecError(
            "train.fsdp cannot share a base in 4 bit: take model.quantization=none, or nf4 without "
            "train.fsdp.",
            field="train.fsdp",
        )
    if spec.method.phase is Phase.PROMPT:
        raise MethodError(
            f"{spec.method.title} runs its prompt through the layers before the rows come, which "
            "train.fsdp has not put together then: leave train.fsdp off, or take prefix tuning."
        )
    if spec.method.phase is Phase.WEIGHTS:
        raise MethodError(
            f"{spec.method.title} moves the weights that train.fsdp would share out frozen: leave "
            "train.fsdp off, or take an adapter method."
        )


def share_base(backbone: Backbone, device: torch.device) -> None:
    """Leave each process its part of every decoder layer on its device, the rest there whole.

    Before anything is attached: what stands beside a layer would be shared out with it.

    Args:
        backbone: The base, in main memory or on the device.
        device: This process's own.
    """
    from torch.distributed.fsdp import fully_shard

    backbone.be_lean(False)  # a layer's weights are there only while the layer itself runs
    for layer in backbone.anatomy.layers():
        small = {parameter for parameter in layer.parameters() if parameter.ndim == 1}
        # Norms and biases stay whole: tuning them writes their own values into the file. The
        # default would keep a root's layers whole.
        fully_shard(layer, reshard_after_forward=True, ignored_params=small)
    backbone.model.to(device)  # embeddings, head, last norm: the layers' parts are there already


POLL_SECONDS = 0.1
END_SECONDS = 5.0
OTHERS_SECONDS = 15.0  # a member that fails makes others fail: wait for the one that began it


def train_in_team(spec: RunSpec, *, run_dir: Path, home: Home, control: Control) -> Iterator[Event]:
    """Train on `spec.train.num_processes` processes; the events are the first one's.

    Raises:
        SpecError: This machine has other devices, or fewer.
        ProcessLost: A member was killed; the others were ended, the last checkpoint is whole.
        StudioError: What a member failed with.
    """
    places = spec.train.device_names()
    checked(spec)
    with tempfile.TemporaryDirectory(prefix="studio-team-") as folder:
        order = {
            "size": len(places), "devices": places, "meeting": f"{folder}/meeting",
            "spec": spec.model_dump(mode="json"), "run_dir": str(run_dir), "home": str(home.path),
        }  # fmt: skip
        team = _Team(order)
        try:
            yield from team.events(control)
        finally:
            team.end()


# how likely it began the trouble (0 surely, for it says why; 1 killed; 2 it failed; 3 it ended)
_Fault = tuple[int, StudioError]


class _Team:
    """The members' processes, and one queue of what they say."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.size = int(order["size"])
        self.said: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        threads = max(1, hardware.threads() // self.size)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        self.members = [
            subprocess.Popen(
                (sys.executable, "-P", "-m", "studio.training.rank"), env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            )
            for _ in range(self.size)
        ]  # fmt: skip
        for rank, member in enumerate(self.members):
            self._tell(member, json.dumps(order | {"rank": rank}))
            threading.Thread(target=self._listen, args=(rank, member), daemon=True).start()

    def events(self, control: Control) -> Iterator[Event]:
        """Yield what the first member says until all have ended well."""
        left, asked = self.size, False
        while left:
            wish = control()
            if wish is not None and not (wish == "stop" and asked):
                asked = asked or wish == "stop"
                self._tell(self.members[0], wish)
            try:
                rank, said = self.said.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if said is None:
                left -= 1
            if (fault := self._fault(rank, said)) is not None:
                raise self._first(fault, left)
            if said is not None:
                yield event_from(said)

    def end(self) -> None:
        """End every member that still lives."""
        for member in self.members:
            if member.stdin:
                try:
                    member.stdin.close()  # they leave by themselves
                except OSError:
                    pass
        deadline = time.monotonic() + END_SECONDS
        for member in self.members:
            try:
                member.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()

    def _first(self, fault: _Fault, left: int) -> StudioError:
        """What began the trouble: when one fails or dies, the next to be heard may be another."""
        faults, deadline = [fault], time.monotonic() + OTHERS_SECONDS
        while left and min(likely for likely, _ in faults) > 1:
            late = time.monotonic() > deadline
            try:
                rank, said = self.said.get(timeout=0 if late else POLL_SECONDS)
            except queue.Empty:
                if late:
                    break
                continue
            left -= said is None
            if (another := self._fault(rank, said)) is not None:
                faults.append(another)
        return min(faults, key=lambda fault: fault[0])[1]

    def _fault(self, rank: int, said: dict[str, Any] | None) -> _Fault | None:
        """What is wrong with a member that said this (None: it ended), if anything is."""
        who = f"Process {rank + 1} of {self.size}"
        if said is not None and "error" in said:
            made = revived(said["error"])
            if type(made) is not RunError:
                return 0, made
            return 2, RunError(f"{who} failed: {made.text}")
        if said is not None or (code := self.members[rank].wait()) == 0:
            return None
        how = (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )
        return 1 if code < 0 and code != -signal.SIGABRT else 3, ProcessLost(
            f"{who} {how}, so the others were ended too. The last checkpoint is intact."
        )

    def _listen(self, rank: int, member: subprocess.Popen[str]) -> None:
        assert member.stdout is not None
        for line in member.stdout:
            self.said.put((rank, json.loads(line)))
        self.said.put((rank, None))

    def _tell(self, member: subprocess.Popen[str], line: str) -> None:
        assert member.stdin is not None
        try:
            member.stdin.write(line + "\n")
            member.stdin.flush()
        except OSError:
            pass  # it is gone; its end is heard

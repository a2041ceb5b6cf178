"""One rank of a distributed run, started by `distributed.py` as a process of its own.

Standard input brings the order and later the commands; the process ends when it closes. Events of
rank 0, and errors of any rank, go to standard output as JSON lines; everything printed goes to
standard error, the log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from studio.errors import StudioError, first_line
from studio.home import Home
from studio.job_request import Command
from studio.spec import RunSpec

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}  # of messages between GPUs
TIMEOUT = timedelta(hours=6)  # ranks wait while rank 0 evaluates, saves or downloads


def main() -> None:
    """Train as one rank; never returns."""
    order = json.loads(sys.stdin.readline())
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    commands: list[Command] = []
    threading.Thread(target=_receive, args=(commands,), daemon=True).start()
    try:
        _train(order, commands, output)
    except StudioError as error:
        _send(output, {"error": error.as_dict()})
        os._exit(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {first_line(error)}"
        _send(output, {"error": {"kind": "run", "text": text}})
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)  # a process group that other ranks have left may hang on close


def _train(order: dict[str, Any], commands: list[Command], output: TextIO) -> None:
    import torch

    from studio.hardware import torch_module
    from studio.training.train_run import train

    rank, size = int(order["rank"]), int(order["size"])
    device = str(order["devices"][rank])
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    if of := torch_module(device):
        of.set_device(device)
    torch.distributed.init_process_group(
        BACKENDS.get(device.partition(":")[0], "gloo"), rank=rank, world_size=size,
        init_method=f"file://{order['rendezvous']}", timeout=TIMEOUT,
    )  # fmt: skip
    spec = RunSpec.parse(order["spec"])
    spec = spec.with_parts(train={"device": device, "num_processes": size})

    def control() -> Command:
        return commands.pop(0) if commands and commands[0] != "stop" else (commands or [None])[0]

    for event in train(
        spec, run_dir=Path(order["run_dir"]), home=Home(Path(order["home"])), control=control,
        in_process_group=True,
    ):  # fmt: skip
        if rank == 0:
            _send(output, event.as_dict())


def _receive(commands: list[Command]) -> None:
    for line in sys.stdin:
        command: Any = line.strip()
        commands.append(command)
    time.sleep(0.2)  # give an end of our own the time to come first
    os._exit(1)


def _send(output: TextIO, values: dict[str, Any]) -> None:
    output.write(json.dumps(values) + "\n")
    output.flush()


if __name__ == "__main__":
    main()

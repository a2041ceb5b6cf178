"""One process of a run on several: `python -m studio.training.rank`, started by `team.py`.

Its standard input brings the order and later the wishes; when it closes, whoever started the team
is gone and this process ends at once. The first member's events, and any member's error, leave on
standard output, one JSON document a line; everything printed goes to standard error, the log.
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

from studio.errors import StudioError
from studio.home import Home
from studio.spec import RunSpec
from studio.training.loop import Wish

PATIENCE = timedelta(hours=6)  # others may evaluate, save or download meanwhile


def main() -> None:
    """Follow one order to its end; never returns."""
    order = json.loads(sys.stdin.readline())
    heard = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    wishes: list[Wish] = []
    threading.Thread(target=_listen, args=(wishes,), daemon=True).start()
    try:
        _train(order, wishes, heard)
    except StudioError as error:
        _say(heard, {"error": error.as_dict()})
        os._exit(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0][:300]
        _say(heard, {"error": {"kind": "run", "text": f"{type(error).__name__}: {first}"}})
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)  # a process group that others left may not close


def _train(order: dict[str, Any], wishes: list[Wish], heard: TextIO) -> None:
    import torch

    from studio.training.run import train

    rank, size = int(order["rank"]), int(order["size"])
    device = str(order["devices"][rank])
    on_gpu = device != "cpu"
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{order['meeting']}", rank=rank,
        world_size=size, timeout=PATIENCE,
    )  # fmt: skip
    spec = RunSpec.parse(order["spec"])
    spec = spec.with_parts(train={"device": device, "num_processes": size})

    def control() -> Wish:
        return wishes.pop(0) if wishes and wishes[0] != "stop" else (wishes or [None])[0]

    for event in train(
        spec, run_dir=Path(order["run_dir"]), home=Home(Path(order["home"])), control=control,
        in_team=True,
    ):  # fmt: skip
        if rank == 0:
            _say(heard, event.as_dict())


def _listen(wishes: list[Wish]) -> None:
    for line in sys.stdin:
        wish: Any = line.strip()
        wishes.append(wish)
    time.sleep(0.2)  # an end of its own comes first
    os._exit(1)


def _say(heard: TextIO, values: dict[str, Any]) -> None:
    heard.write(json.dumps(values) + "\n")
    heard.flush()


if __name__ == "__main__":
    main()

"""Peers in their own processes, taking turns: the parent's side of `worker.py`. Never torch.

Rounds are interleaved (ours, hf, trl, ours, hf, trl, …), so that a machine that slows down slows
everybody. The first round warms up and is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from studio.errors import InputError, RunError
from ui.bench.case import Case


class Peer:
    """One worker process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log: IO[str] = (folder / f"{name}.log").open("w+")
        self.rounds: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ui.bench.worker", name, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip

    def take_turn(self) -> None:
        """Let the peer train one round and read what it reports.

        Raises:
            RunError: The peer died; the end of its log says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith('{"tokens"'):
                self.rounds.append(json.loads(line))
                return
        self.process.wait()
        self.log.seek(0)
        raise RunError(f"The peer {self.name} stopped: {self.log.read().strip()[-400:]}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def compare(case: Case, peers: Sequence[str]) -> dict[str, Any]:
    """Run the case on every peer in turns and return the figures.

    Raises:
        InputError: A peer's library is not installed.
        RunError: A peer died.
    """
    _check_installed(peers)
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as temporary:
        folder = Path(temporary)
        made = subprocess.run(
            [sys.executable, "-m", "ui.bench.worker", "prepare", str(folder),
             json.dumps(asdict(case))],
            capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise RunError(f"The case could not be prepared: {made.stderr.strip()[-400:]}")
        peaks = [_peak(folder)]
        running = [Peer(name, folder) for name in peers]
        try:
            for _ in range(case.rounds + 1):
                for peer in running:
                    peer.take_turn()
        finally:
            for peer in running:
                peer.close()
        peaks.append(_peak(folder))
        summaries = [summarise(peer.name, peer.rounds, running[0].rounds) for peer in running]
        flops = max(r["flops_per_token"] for r in running[0].rounds)
        return {
            "case": asdict(case),
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "matmul_peak": max(peaks),
            "flops_per_token": flops,
            "share_of_peak": flops * summaries[0]["tokens_per_second"] / max(peaks),
            "peers": summaries,
        }


def _peak(folder: Path) -> float:
    """This machine's best product, measured while nobody trains."""
    done = subprocess.run(
        [sys.executable, "-m", "ui.bench.worker", "peak", str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RunError(f"The product could not be measured: {done.stderr.strip()[-400:]}")
    return float(json.loads(done.stdout)["flops"])


def summarise(
    name: str, rounds: list[dict[str, Any]], ours: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a peer's median speed, its spread, and how its numbers agree with the first peer's."""
    speeds = [r["tokens"] / r["seconds"] for r in rounds[1:]]
    first = [r["tokens"] / r["seconds"] for r in ours[1:]]
    losses = [loss for r in rounds for loss in r["losses"]]
    norms = [norm for r in rounds for norm in r["grad_norms"]]
    own_losses = [loss for r in ours for loss in r["losses"]]
    own_norms = [norm for r in ours for norm in r["grad_norms"]]
    memory, own_memory = rounds[-1]["peak_bytes"], ours[-1]["peak_bytes"]
    return {
        "name": name,
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "examples_per_second": statistics.median(r["examples"] / r["seconds"] for r in rounds[1:]),
        "ours_is_faster": statistics.median(a / b for a, b in zip(first, speeds, strict=True)),
        "peak_bytes": memory,
        "ours_memory_share": own_memory / max(memory, 1),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "loss_difference": max(abs(a - b) for a, b in zip(losses, own_losses, strict=True)),
        "grad_norm_difference": max(
            abs(a - b) / max(b, 1e-12) for a, b in zip(norms, own_norms, strict=True)
        ),
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures side by side as text."""
    head = ("peer", "tokens/s", "spread", "ours ×", "memory MB", "ours ÷", "loss first / last",
            "Δ loss", "Δ grad norm")  # fmt: skip
    lines = [head]
    for peer in result["peers"]:
        lines.append(
            (
                peer["name"],
                f"{peer['tokens_per_second']:,.0f}",
                f"{peer['slowest']:,.0f} to {peer['fastest']:,.0f}",
                f"{peer['ours_is_faster']:.2f}",
                f"{peer['peak_bytes'] / 1e6:,.0f}",
                f"{peer['ours_memory_share']:.2f}",
                f"{peer['first_loss']:.4f} / {peer['last_loss']:.4f}",
                f"{peer['loss_difference']:.1e}",
                f"{peer['grad_norm_difference']:.1e}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    share = (
        f"ours reaches {result['share_of_peak']:.0%} of the machine's best product "
        f"({result['matmul_peak'] / 1e9:,.0f} GFLOP/s; {result['flops_per_token'] / 1e6:,.0f} "
        f"MFLOP a token counted)"
    )
    rows = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return f"{rows}\n{share}"


def _check_installed(peers: Sequence[str]) -> None:
    from importlib.util import find_spec

    peft, trl = ("peft",), ("peft", "trl")
    needs = {"ours": (), "hf": peft, "hf-float32": peft, "trl": trl, "trl-best": trl}
    for name in peers:
        if name not in needs:
            raise InputError(f'There is no peer "{name}". Known: {", ".join(needs)}.')
        for library in needs[name]:
            if find_spec(library) is None:
                raise InputError(
                    f"The peer {name} needs {library}: `pip install 'adapter-studio[bench]'`."
                )

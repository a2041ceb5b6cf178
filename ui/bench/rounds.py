"""Peers in their own processes that take turns: the parent's side of `worker.py`. Never torch.

Rounds are interleaved (ours, hf, trl, ours, hf, trl, …), so that a machine that slows down slows
all of them. The first round warms up and is not timed.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from studio.errors import RunError
from ui.bench.figures import progress, round_text


class Peer:
    """One worker process and the reports of its rounds; a context manager that ends it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.rounds: list[dict[str, Any]] = []
        self._log = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            _words(name, str(folder)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def take_turn(self) -> None:
        """Let the peer train one round and read its report.

        Raises:
            RunError: The process ended; the text has the end of its log.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"tokens"'):
                self.rounds.append(json.loads(line))
                return
        self._process.wait()
        self._log.seek(0)
        raise RunError(f"The peer {self.name} stopped: {self._log.read().strip()[-400:]}")


def take_turns(peers: dict[str, Peer], rounds: int, failures: dict[str, str] | None = None) -> None:
    """Let all peers train `rounds` rounds and one to warm up, in turns.

    Args:
        peers: By the name that is shown; one that fails is removed.
        rounds: Rounds that are timed.
        failures: Collects the errors of peers; None lets the first one end the bench.

    Raises:
        RunError: A peer's process ended.
    """
    for number in range(rounds + 1):
        for name, peer in list(peers.items()):
            progress(round_text(name, number, rounds))
            try:
                peer.take_turn()
            except RunError as error:
                if failures is None:
                    raise
                failures[name] = error.text
                del peers[name]


def run_worker(*words: str) -> str:
    """Run a worker to its end and return what it prints.

    Raises:
        RunError: It failed; the text has the end of its log.
    """
    done = subprocess.run(_words(*words), capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"The worker {words[0]} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _words(*words: str) -> list[str]:
    return [sys.executable, "-m", "ui.bench.worker", *words]


def differences(ones: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """Return how far losses (absolute) and gradient norms (relative) of two runs are apart."""
    pairs = list(zip(ones, others, strict=True))
    return {
        "loss_difference": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "grad_norm_difference": max(
            abs(a["grad_norm"] - b["grad_norm"]) / max(b["grad_norm"], 1e-12) for a, b in pairs
        ),
    }


def steps_of(rounds: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return loss and gradient norm of every step of a peer's rounds."""
    return [
        {"loss": loss, "grad_norm": norm}
        for one in rounds
        for loss, norm in zip(one["losses"], one["grad_norms"], strict=True)
    ]

"""Child processes of a bench: commands, the page, and peers that take turns. Never torch.

Everything that is measured runs in a process of its own. Rounds of peers are interleaved (ours, hf,
trl, ours, hf, trl, …), so that a machine that slows down slows all of them; the first round warms
up and is not timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError

import psutil

from studio.errors import RunError
from ui.bench.bench_figures import progress, round_text

PATIENCE_SECONDS = 120
WORKER = ("-m", "ui.bench.peer_trainers")


def run(*words: str, home: Path | None = None) -> str:
    """Run a child process of Python with some arguments to its end and return what it prints.

    Raises:
        RunError: It failed; the text has the end of its output.
    """
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=_environment(home)
    )
    if done.returncode:
        words_shown, end = " ".join(words)[:60], (done.stderr or done.stdout).strip()[-400:]
        raise RunError(f"The process {words_shown} failed: {end}")
    return done.stdout


def command(home: Path, *words: str) -> str:
    """Run a command of the studio as a child process on a home and return what it prints."""
    return run("-m", "ui.cli.main", *words, home=home)


def ask(address: str, body: Any = None) -> Any:
    """GET or POST JSON from a child process; return its last line parsed, None if empty."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        lines = answer.read().splitlines()
    return json.loads(lines[-1]) if lines else None


def wait_until(there: Callable[[], Any], what: str) -> Any:
    """Wait for a child process: return the first true result of `there`.

    Raises:
        RunError: It does not come within `PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := there()):
        if time.monotonic() > deadline:
            raise RunError(f"No {what} within {PATIENCE_SECONDS} s.")
        time.sleep(0.02)
    return found


@dataclass(frozen=True, slots=True)
class ServedPage:
    """A page that answers: its process, its address, and the time until its first answer."""

    process: psutil.Process
    url: str
    seconds: float


@contextlib.contextmanager
def serving(home: Path) -> Iterator[ServedPage]:
    """Start the studio as a child process and yield its page when it answers; end it afterwards.

    Raises:
        RunError: It ended, or does not answer within `PATIENCE_SECONDS`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, started = f"http://127.0.0.1:{port}/", time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ui.cli.main", "serve", "--port", str(port), "--no-browser"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment(home), text=True,
    )  # fmt: skip

    def answers() -> bool:
        if process.poll() is not None:
            assert process.stderr is not None
            raise RunError(f"The page did not start: {process.stderr.read().strip()[-300:]}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.read())
        except (URLError, ConnectionError, TimeoutError):
            return False

    try:
        wait_until(answers, "page")
        yield ServedPage(psutil.Process(process.pid), url, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()
        command(home, "stop")


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor time that a child process has used."""
    return float(sum(process.cpu_times()[:2]))


BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(99999))\n"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep some cores busy with a child process each, which ends with this one."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


class Peer:
    """One worker process and the reports of its rounds; a context manager that ends it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.rounds: list[dict[str, Any]] = []
        self._log = (folder / f"{name}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, *WORKER, name, str(folder)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, text=True,
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
    """Let the child processes of all peers train `rounds` rounds, in turns, after a warm-up.

    Args:
        peers: By the name that is shown; one that fails is removed.
        rounds: Rounds that are timed.
        failures: Collects the errors of peers; None lets the first one end the bench.

    Raises:
        RunError: A peer's process ended.
    """
    took: dict[str, float] = {}
    for number in range(rounds + 1):
        for place, (name, peer) in enumerate(list(peers.items())):
            left = (rounds - number) * sum(took.values()) + sum(list(took.values())[place:])
            progress(round_text(name, number, rounds, left if number else 0.0))
            try:
                peer.take_turn()
                took[name] = peer.rounds[-1]["seconds"]
            except RunError as error:
                if failures is None:
                    raise
                failures[name] = error.text
                _ = peers.pop(name), took.pop(name, None)


def _environment(home: Path | None) -> dict[str, str]:
    return {**os.environ, **({"STUDIO_HOME": str(home)} if home else {})}

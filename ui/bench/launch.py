"""Start the studio in a home of its own, reach it over HTTP, and stop it: shared by the benches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.errors import RunError

PATIENCE_SECONDS = 120


@contextmanager
def serving(home: Path) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """Yield a page's process, its address, and when it was started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*_words(home, "serve"), "--port", str(port), "--no-browser"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment(home), text=True,
    )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}/", started
    finally:
        process.terminate()
        process.wait()
        stop(home)


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the studio on a home to its end."""
    return subprocess.run(
        _words(home, *words), capture_output=True, env=_environment(home), text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def stop(home: Path) -> None:
    """End the queue and the chat host of a home."""
    command(home, "stop")


def ask(address: str, body: Any = None) -> Any:
    """GET, or POST a body as JSON; return the parsed answer, None when it is empty."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        lines = answer.read().splitlines()
    return json.loads(lines[-1]) if lines else None


def wait_until(there: Callable[[], Any], what: str) -> Any:
    """Return the first true result of `there`.

    Raises:
        RunError: It does not come within `PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := there()):
        if time.monotonic() > deadline:
            raise RunError(f"No {what} within {PATIENCE_SECONDS} s.")
        time.sleep(0.02)
    return found


def _words(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ui.cli.main", *words, "--home", str(home)]


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "STUDIO_HOME": str(home)}

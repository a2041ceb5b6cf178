"""A real studio in its own process: the page, its queue and its chat, in a private home."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.actions.home import stop
from jobs.job_queue import JobStore
from jobs.supervisor import living
from studio.home import Home

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Served:
    """A running studio."""

    address: str
    home: Path
    pid: int

    def json(self, path: str, body: Any = None) -> Any:
        """GET, or POST a body, and read JSON; an empty answer is None."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs as pages list them, newest first."""
        found: list[dict[str, Any]] = self.json("/api/live")["jobs"]["items"]
        return found


@contextlib.contextmanager
def served(home: Path, *words: str, **variables: str) -> Iterator[Served]:
    """Start `studio serve` on a free port; end the page, the queue and the chat afterwards.

    Args:
        home: The home folder.
        words: More words of the command.
        variables: More of its environment.
    """
    environment = os.environ | {"STUDIO_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment |= variables
    log = home.with_suffix(".serve.log")
    with log.open("wb") as errors:
        page = subprocess.Popen(
            [sys.executable, "-m", "ui.cli.main", "serve", "--port", "0", "--no-browser", *words],
            stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=ROOT, text=True,
        )  # fmt: skip
    try:
        assert page.stdout is not None
        line = page.stdout.readline()
        assert "http://" in line, f"the studio did not start: {line} {log.read_text()}"
        address = next(word for word in line.split() if word.startswith("http://"))
        deadline = time.monotonic() + 60
        while living(Home(home)) is None and time.monotonic() < deadline:
            time.sleep(0.05)  # a stop in the meantime would leave it behind
        yield Served(address=address, home=home, pid=page.pid)
    finally:
        try:
            with contextlib.closing(JobStore(Home(home))) as store:
                stop(store)
        finally:
            page.terminate()
            page.communicate(timeout=60)

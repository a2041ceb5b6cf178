"""A real studio in its own process: the page, its queue and its chat, in a private home."""

import contextlib
import json
import os
import re
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
from tests.jobs.nursery import Nursery

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"http://\S+")


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
def served(
    home: Path, *words: str, nursery: Nursery | None = None, **variables: str
) -> Iterator[Served]:
    """Start `studio serve` on a free port; end the page, the queue and the chat afterwards.

    Args:
        home: The home folder.
        words: More words of the command.
        nursery: Forks the studio's processes, without their time to start.
        variables: More of the environment of a program of its own.
    """
    options = ["--home", str(home), "--port", "0", "--no-browser", *words]
    command = [sys.executable, "-m", "ui.cli.main", "serve", *options]
    log = home.with_suffix(".serve.log")
    log.unlink(missing_ok=True)  # of an earlier one, with its address
    if nursery:
        page = nursery.spawn(command, log)
    else:
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        with log.open("wb") as output:
            page = subprocess.Popen(command, stdout=output, stderr=output, env=environment,
                                    cwd=ROOT)  # fmt: skip
    deadline = time.monotonic() + 60
    try:
        while not (found := ADDRESS.search(log.read_text())):
            late = page.poll() is not None or time.monotonic() > deadline
            assert not late, f"the studio did not start: {log.read_text()}"
            time.sleep(0.02)
        while living(Home(home)) is None and time.monotonic() < deadline:
            time.sleep(0.02)  # a stop in the meantime would leave it behind
        yield Served(address=found[0], home=home, pid=page.pid)
    finally:
        try:
            with contextlib.closing(JobStore(Home(home))) as store:
                stop(store)
        finally:
            page.terminate()
            page.wait()

"""How long a person waits: for the page, and for the first loss after Train. Never torch.

Everything is measured from outside through processes, as a person would meet it, in a home of its
own. A browser adds its own time to the page; `tests/browser` measures that.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from studio.errors import RunError

PATIENCE_SECONDS = 120


def startup(rounds: int = 3) -> list[dict[str, Any]]:
    """Return the figures, best and median of `rounds`, with their bars."""
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as temporary:
        home = Path(temporary)
        pages = [_page(home / f"page-{i}") for i in range(rounds)]
        steps = [_first_step(home / f"run-{i}") for i in range(rounds)]
    return [
        _figure("studio to HTTP 200 of /", "s", [p["seconds"] for p in pages], 5.0),
        _figure("web process resident", "MB", [p["bytes"] / 1e6 for p in pages], 400.0),
        _figure("train command to first loss, cold", "s", [s["first"] for s in steps], 6.0),
        _figure("of which inside the runner", "s", [s["inside"] for s in steps], None),
    ]


def _figure(name: str, unit: str, values: list[float], bar: float | None) -> dict[str, Any]:
    ordered = sorted(values)
    return {
        "name": name, "unit": unit, "best": ordered[0], "median": ordered[len(ordered) // 2],
        "bar": bar, "met": bar is None or ordered[len(ordered) // 2] <= bar,
    }  # fmt: skip


def _page(home: Path) -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "studio.cli", "serve", "--home", str(home), "--port", str(port),
         "--no-browser"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment(home), text=True,
    )  # fmt: skip
    try:
        while time.perf_counter() - started < PATIENCE_SECONDS:
            if process.poll() is not None:
                assert process.stderr is not None
                raise RunError(f"The page did not start: {process.stderr.read().strip()[-300:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    answer.read()
                seconds = time.perf_counter() - started
                return {"seconds": seconds, "bytes": psutil.Process(process.pid).memory_info().rss}
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.02)
        raise RunError(f"The page did not answer within {PATIENCE_SECONDS} s.")
    finally:
        process.terminate()
        process.wait()
        _stop(home)


def _first_step(home: Path) -> dict[str, float]:
    """Time from the command to the first loss in the database, as the page's poll sees it."""
    from jobs.store import JobStore
    from studio.home import open_home

    opened = open_home(home)
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "studio.cli", "train", "--home", str(home), "--set",
         "train.max_steps=3", "--detach", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(home), text=True,
    )  # fmt: skip
    try:
        answer, complaint = process.communicate(timeout=PATIENCE_SECONDS)
        if process.returncode:
            raise RunError(f"The run did not start: {(complaint or answer).strip()[-300:]}")
        job_id = int(json.loads(answer)["id"])
        store = JobStore(opened)
        while time.time() - started < PATIENCE_SECONDS:
            job = store.get(job_id)
            if job.step >= 1:
                now = time.time()
                inside = now - (job.started or started)
                return {"first": now - started, "inside": inside}
            if job.error_text:
                raise RunError(job.error_text)
            time.sleep(0.02)
        raise RunError(f"No first step within {PATIENCE_SECONDS} s.")
    finally:
        _stop(home)


def _stop(home: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "studio.cli", "stop", "--home", str(home)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment(home), timeout=60,
    )  # fmt: skip


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "STUDIO_HOME": str(home)}

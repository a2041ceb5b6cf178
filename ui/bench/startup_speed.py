"""`studio bench startup`: time to the page and to the first loss, cost of an open page.

Everything is measured from outside through processes, in a home of its own. Never torch. A browser
adds its own time to the page; `tests/browser` measures that.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from studio import hardware
from studio.errors import RunError
from ui.bench.bench_figures import Figure, figure, progress
from ui.bench.child_processes import ask, command, processor_seconds, serving, wait_until

if TYPE_CHECKING:
    from jobs.job_queue import JobStore

SPARE_SECONDS = 8  # in which a spare imports torch
PAGE_TURNS, TURN_SECONDS, ASK_SECONDS = 5, 6.0, 0.7


def bench_startup(home: Path, rounds: int = 3) -> list[Figure]:
    """Return the figures, best and median of `rounds`, with their bars."""
    pages, steps = [], []
    for number in range(rounds):
        progress(f"page, round {number + 1} of {rounds}")
        with serving(home / f"page-{number}") as page:
            pages.append((page.seconds, page.process.memory_info().rss / 1e6))
    for number in range(rounds):
        progress(f"first loss, round {number + 1} of {rounds}")
        steps.append(_first_steps(home / f"run-{number}"))
    progress("an open page beside a run")
    cost = _page_cost(home / "cost")
    return [
        _median("studio to HTTP 200 of /", "s", [seconds for seconds, _ in pages], 5.0),
        _median("web process resident", "MB", [megabytes for _, megabytes in pages], 400.0),
        _median("train command to first loss, cold", "s", [s["first"] for s in steps], 6.0),
        _median("of which inside the runner", "s", [s["inside"] for s in steps], 0),
        _median("with a warm spare", "s", [s["warm"] for s in steps], 3.0),
        _median("an open page takes of the processor", "%", [cost["processor"]], 2.0),
        _median("an open page costs in steps/s", "%", [cost["speed"]], 2.0),
    ]


def _median(name: str, unit: str, values: list[float], bar: float) -> Figure:
    value = statistics.median(values)
    return figure(name, value, unit, bar, best=min(values), met=not bar or value <= bar)


def _first_steps(home: Path) -> dict[str, float]:
    """Time from the command to the first loss in the database: cold, then with a spare waiting."""
    from jobs.job_queue import JobStore
    from studio.home import open_home

    store = JobStore(open_home(home))
    try:
        first, inside = _first_loss(home, store)
        wait_until(lambda: any(row["role"] == "spare" for row in store.processes()), "spare runner")
        time.sleep(SPARE_SECONDS)  # it is there before it has imported everything
        warm, _ = _first_loss(home, store)
    finally:
        command(home, "stop")
    return {"first": first, "inside": inside, "warm": warm}


def _first_loss(home: Path, store: JobStore) -> tuple[float, float]:
    started = time.time()
    job_id = _submit(home, 3)
    wait_until(
        lambda: store.get(job_id).step >= 1 or bool(store.get(job_id).error_text), "first step"
    )
    now, job = time.time(), store.get(job_id)
    if job.error_text:
        raise RunError(job.error_text)
    return now - started, now - (job.started or started)


def _submit(home: Path, steps: int) -> int:
    done = command(home, "train", "--set", f"train.max_steps={steps}", "--detach", "--json")
    return int(json.loads(done)["id"])


def _page_cost(home: Path) -> dict[str, float]:
    """Return what an open page costs a run, in percent: it polls in turns with pauses.

    `speed`: of the run's steps a second, as noisy as the machine. `processor`: the web process's
    share of all cores while it answers, which bounds what it can take from others. The poll is as
    frequent as an open page's; drawing is the browser's share.
    """
    from jobs.job_queue import JobStore
    from studio.home import open_home

    store = JobStore(open_home(home))
    with serving(home) as page:
        busy = 0.0
        job_id = _submit(home, 100_000)
        wait_until(lambda: store.get(job_id).step >= 20, "20 steps")
        speeds: dict[bool, list[float]] = {True: [], False: []}
        cursors: dict[str, Any] = {"after": 0}
        for turn in range(2 * PAGE_TURNS):
            asking, before, until = turn % 2 == 0, store.get(job_id), time.time() + TURN_SECONDS
            start, used = time.time(), processor_seconds(page.process)
            while time.time() < until:
                if asking:
                    _ask(page.url, job_id, cursors)
                time.sleep(ASK_SECONDS)
            steps = store.get(job_id).step - before.step
            speeds[asking].append(steps / (time.time() - start))
            took = processor_seconds(page.process) - used
            busy += asking * took / (time.time() - start)
        store.cancel(job_id)
    ratios = [on / off for on, off in zip(speeds[True], speeds[False], strict=True)]
    cores = hardware.physical_cores()
    return {
        "speed": 100 * (1 - statistics.median(ratios)),
        "processor": 100 * busy / PAGE_TURNS / cores,
    }


def _ask(url: str, job_id: int, cursors: dict[str, Any]) -> None:
    """Ask as an open run page does, with the cursors of the answer before; they are moved on."""
    asked = {"runs": job_id, "names": "loss,eval_loss", "detail": job_id, **cursors}
    news = ask(f"{url}api/live?{urlencode(asked)}") or {}
    for cursor, part, key in (
        ("after", "metrics", "seq"), ("jobs", "jobs", "digest"), ("seen", "detail", "digest")
    ):  # fmt: skip
        if news.get(part):
            cursors[cursor] = news[part][key]

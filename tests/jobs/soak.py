"""Hours of use in minutes: thousands of runs and page loads in one process, and what they leave.

`python -m tests.jobs.soak --runs 2000` prints figures: memory, handles and sizes after a warm-up
and at the end. Runs are claimed, measured and finished as a runner would, without a process each;
pages are asked for through the same routes as a browser's. `test_soak.py` runs a short one.
"""

import argparse
import gc
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.run_curves import Progress
from studio.home import open_home
from studio.spec import RunSpec
from tests.jobs.conftest import take
from ui.queue_routes import queue_routes

STEPS_A_REPORT, REPORTS_A_RUN, POLLS_A_RUN, KEPT_RUNS = 20, 12, 6, 200
# Until the list is as long as it gets, and every tab's listing that is kept is of that length, what
# grows is what is kept.
WARM_RUNS = KEPT_RUNS + 100


def soak(folder: Path, *, runs: int, seed: int = 0) -> dict[str, Any]:
    """Run it and return the figures."""
    home = open_home(folder)
    store, dice = JobStore(home), random.Random(seed)
    app = FastAPI()
    app.include_router(queue_routes(home, store))
    page = TestClient(app)
    cursors: dict[str, Any] = {}
    begun, warm, warm_at, worst, done = time.monotonic(), {}, 0, 0.0, []
    for number in range(runs):
        if number == max(runs // 4, min(WARM_RUNS, runs // 2)):
            warm, warm_at = _facts(home.path), number
        job = _one_run(store, dice, number, page, cursors, done)
        worst = max(worst, job)
        if len(done) > KEPT_RUNS:
            store.delete(done.pop(dice.randrange(len(done))))
    end, events = _facts(home.path), runs * STEPS_A_REPORT * REPORTS_A_RUN
    store.close()
    grown = end["rss_mb"] - warm["rss_mb"]
    rows_since = (runs - warm_at) * STEPS_A_REPORT * REPORTS_A_RUN
    return {
        "runs": runs, "metric_rows": events, "page_polls": runs * POLLS_A_RUN,
        "seconds": round(time.monotonic() - begun, 1), "warm": warm, "end": end,
        "rss_mb_per_100k_rows": round(grown / (rows_since / 1e5), 3),
        "slowest_poll_ms": round(worst * 1e3, 1),
    }  # fmt: skip


def _one_run(
    store: JobStore, dice: random.Random, number: int, page: TestClient,
    cursors: dict[str, Any], done: list[int],
) -> float:  # fmt: skip
    job = store.submit(RunSpec(name=f"soak {number}")).id
    claim = take(store, "cpu")
    assert claim is not None and claim.job == job
    store.claims.register(claim, me())
    worst, poll_at = 0.0, set(dice.sample(range(REPORTS_A_RUN), POLLS_A_RUN))
    for report in range(REPORTS_A_RUN):
        first = report * STEPS_A_REPORT
        rows = [("loss", first + n + 1, dice.random(), 0.0) for n in range(STEPS_A_REPORT)]
        step = first + STEPS_A_REPORT
        store.claims.report(claim, Progress(metrics=rows, step=step, total_steps=240))
        if report in poll_at:
            before = time.perf_counter()
            asked = {"runs": str(job), "names": "loss", "detail": str(job), "view": "history"}
            news = page.get("/api/live", params=asked | cursors)
            worst = max(worst, time.perf_counter() - before)
            if news.status_code == 200 and dice.random() < 0.8:  # else a fresh tab
                body = news.json()
                cursors["jobs"] = body.get("jobs", {}).get("digest", cursors.get("jobs", ""))
                cursors["after"] = body.get("metrics", {}).get("seq", cursors.get("after", 0))
            else:
                cursors.clear()
    state = dice.choice(["succeeded", "succeeded", "failed"])
    error = ("run", "because") if state == "failed" else None
    store.claims.finish(claim, state, error=error, result={"seconds": 1.0})  # type: ignore[arg-type]
    done.append(job)
    return worst


def _facts(home: Path) -> dict[str, float]:
    gc.collect()
    process = psutil.Process()
    size = {path.name: path.stat().st_size for path in home.glob("studio.db*")}
    return {
        "rss_mb": round(process.memory_info().rss / 2**20, 1),
        "handles": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        "threads": threading.active_count(),
        "database_mb": round(size["studio.db"] / 2**20, 2),
        "log_mb": round(size.get("studio.db-wal", 0) / 2**20, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(soak(Path(place), **vars(options))))

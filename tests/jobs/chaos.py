"""A queue of short runs while a controller kills supervisor, runners and readers at random.

A reader stands for the web server: it announces itself, polls the queue and its curves, and moves
waiting jobs; that is all a page does to the queue.

`python -m tests.jobs.chaos --kills 1000 --jobs 120` runs the long storm by hand and prints its
figures, every process a program of its own; with `--forked`, and in `test_chaos.py`, they come from
a nursery, which is several times as quick.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from jobs.job_queue import JobStore
from jobs.runner_processes import environment
from jobs.supervisor import living
from studio.home import Home, open_home
from studio.spec import RunSpec
from tests.jobs.conftest import curve
from tests.jobs.fake_runner import fake_loss
from tests.jobs.nursery import AVAILABLE, Born, Nursery

STEPS, SAVE, PACE = 30, 5, "0.01"
READER = "import sys; from tests.jobs.workers import read_and_reorder as r; r(sys.argv[1:])"
Process = subprocess.Popen[bytes] | Born


def storm(
    home: Home, *, kills: int, jobs: int, seed: int, seconds: float = 3600, forked: bool = False
) -> dict[str, object]:
    """Run it and return the figures; asserts that nothing was lost, doubled or torn.

    Args:
        home: A private home.
        kills: So many, unless the time is over before.
        jobs: So many runs at first; more follow while kills are left.
        seed: Of every choice.
        seconds: After this no more kills: what is left must end by itself.
        forked: Take processes from a nursery, where this system has what it needs.
    """
    nursery = Nursery.start("fake", FAKE_PACE=PACE) if forked and AVAILABLE else None
    store, dice = JobStore(home), random.Random(seed)
    ids = [store.submit(_spec(number)).id for number in range(jobs)]
    begun, killed, child, reader = time.monotonic(), Counter[str](), None, None
    while True:
        failed = store.list(["failed"])
        assert not failed, failed[0].error_text
        stormy = killed.total() < kills and time.monotonic() - begun < seconds
        if _all_done(store, len(ids)):
            if not stormy:
                break
            ids.append(store.submit(_spec(len(ids))).id)
        if child is None or child.poll() is not None:
            child = _start(home, "supervisor", nursery)
        if reader is None or reader.poll() is not None:
            reader = _start(home, "reader", nursery)
        time.sleep(dice.uniform(0.01, 0.15 if nursery else 0.25))
        if stormy:
            _kill(store, home, dice, killed, reader)
    for process in (child, reader):
        assert process is not None
        process.terminate()
        process.wait()
    if nursery is not None:
        nursery.close()
    figures = _judge(store, ids) | {
        "kills": killed.total(), **killed, "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    store.close()
    return figures


def _spec(number: int) -> RunSpec:
    return RunSpec.parse(
        {"name": f"job {number}", "seed": number, "train": {"max_steps": STEPS, "save_steps": SAVE}}
    )


def _start(home: Home, what: str, nursery: Nursery | None) -> Process:
    words = (
        [str(home.path)] if what == "reader" else ["--home", str(home.path), "--tries", "1000000"]
    )
    if nursery is not None:
        name = "jobs.supervisor" if what == "supervisor" else what
        return nursery.born([name, *words], home.path / "state" / f"{what}.log")
    script = Path(__file__).with_name("fake_supervisor.py")
    program = (
        [sys.executable, str(script)] if what == "supervisor" else [sys.executable, "-c", READER]
    )
    return subprocess.Popen(
        [*program, *words], env=environment() | {"FAKE_PACE": PACE}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _kill(
    store: JobStore, home: Home, dice: random.Random, killed: "Counter[str]",
    reader: Process,
) -> None:  # fmt: skip
    supervisor = living(home)
    runners = [job.pid for job in store.list(["running", "stopping"]) if job.pid]
    # A supervisor is mostly left alone until a run is under way: else few runs would ever be hit.
    weights = {
        "supervisor": (40 if runners else 12) * (supervisor is not None),
        "runner": 40 * bool(runners), "both": 10 * bool(supervisor and runners), "reader": 6,
        "nobody": 28 * (not runners),
    }  # fmt: skip
    choice = dice.choices(list(weights), list(weights.values()))[0]
    if choice == "nobody":
        return
    if choice == "reader":
        reader.kill()
        reader.wait()
        killed["readers"] += 1
        return
    if choice != "runner" and supervisor is not None:
        os.kill(supervisor.pid, signal.SIGKILL)
        killed["supervisors"] += 1
    if choice != "supervisor":
        for pid in runners:
            try:
                os.kill(pid, signal.SIGKILL)
                killed["runners"] += 1
            except ProcessLookupError:
                continue


def _all_done(store: JobStore, jobs: int) -> bool:
    return store.counts().get("succeeded", 0) == jobs


def _judge(store: JobStore, ids: list[int]) -> dict[str, object]:
    resumed = redone = 0
    for number, job in enumerate(ids):
        events = [event["dst"] for event in store.events(job)]
        assert events.count("succeeded") == 1, (job, events)
        assert events.count("starting") == store.get(job).attempt
        series = curve(store, job)
        assert series["y"] == [fake_loss(number, step) for step in range(1, STEPS + 1)]
        assert not (store.home.run(job) / "OVERLAP").exists(), "two processes on one run"
        attempts = store.attempts(job)
        resumed += sum(1 for one in attempts if one["from_step"] > 0)
        redone += len(attempts) - 1
    left = [*store.home.runs.rglob(".tmp-*"), *store.home.runs.rglob(".old-*")]
    assert left == [], left
    with store.database.reading() as db:
        assert db.conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    return {
        "jobs": len(ids), "lost": 0, "doubled": 0, "corrupted": 0,
        "attempts_more": redone, "resumed_from_checkpoint": resumed,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--forked", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = open_home(folder)
        print(json.dumps(storm(place, **vars(options))))

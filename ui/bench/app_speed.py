"""`studio bench startup`, `idle` and `queue`: what the studio itself costs, without any training.

Startup: time to the page and to the first loss, cost of an open page. A browser adds its own time
to the page; `tests/browser` measures that.

Idle: wake-ups and processor share of page, supervisor, warm spare and a chat host that has loaded
the starter; first with no page open, then with one open in headless Chromium (or a simulated poll
where there is none). A wake-up is a context switch of any thread, voluntary or not.

Queue: claims, queries and curves of a full queue.

Everything is measured in a home of its own, and never with torch in this process.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil

from jobs.claims import Slot
from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.run_curves import Progress
from jobs.supervisor import Supervisor
from studio import hardware
from studio.errors import RunError
from studio.home import Home, open_home
from ui.bench.bench_figures import Figure, figure, median_ms, progress, seconds
from ui.bench.child_processes import (
    ServedPage,
    ask,
    command,
    processor_seconds,
    serving,
    wait_until,
)
from ui.window import BROWSERS

SPARE_SECONDS = 8  # in which a spare imports torch
PAGE_TURNS, TURN_SECONDS, ASK_SECONDS = 5, 6.0, 0.7


def bench_startup(home: Path, rounds: int) -> list[Figure]:
    """Return the figures of `studio bench startup`: best and median of `rounds`."""
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


ROLES = ("web", "supervisor", "spare", "chat")
WAKEUPS_BAR, SHARE_BAR, OPEN_SHARE_BAR = 25.0, 1.0, 2.0
POLL_SECONDS = 2.5  # of an open page while no job runs
SETTLED_SHARE, SETTLE_SECONDS = 15.0, 3.0
PROMPT = {
    "id": "idle",
    "lanes": [
        {
            "model": "starter",
            "messages": [{"role": "user", "content": "Hello"}],
            "sampling": {"max_new_tokens": 4},
        }
    ],
}


def bench_idle(folder: Path, seconds: float) -> list[Figure]:
    """Return the figures of `studio bench idle`: each process and their sum, in each state."""
    progress("starting page, supervisor, spare and chat host")
    with serving(folder / "home") as page:
        ask(f"{page.url}api/chat/generate", PROMPT)
        processes = wait_until(lambda: _all_there(page.url), "supervisor, spare and chat host")
        _settle(processes)
        progress(f"no page open, {seconds:g} s")
        figures = _figures(measured(processes, seconds), "no page", WAKEUPS_BAR, SHARE_BAR)
        with _open_page(page, folder / "profile") as kind:
            _settle(processes)
            progress(f"{kind}, {seconds:g} s")
            return figures + _figures(measured(processes, seconds), kind, 0, OPEN_SHARE_BAR)


def measured(
    processes: dict[str, psutil.Process], seconds: float
) -> dict[str, tuple[float, float]]:
    """Return wake-ups per second and percent of one core of each process of the app."""
    before = {role: (switches(one), processor_seconds(one)) for role, one in processes.items()}
    started = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - started
    return {
        role: (
            sum(count - switched.get(thread, 0) for thread, count in switches(one).items()) / took,
            100 * (processor_seconds(one) - used) / took,
        )
        for (role, one), (switched, used) in zip(processes.items(), before.values(), strict=True)
    }


def switches(process: psutil.Process) -> dict[str, int]:
    """Return the context switches of each thread of a process of the app since it began."""
    threads = Path(f"/proc/{process.pid}/task")
    if not threads.is_dir():
        return {"": sum(process.num_ctx_switches())}
    counts = {}
    for status in threads.glob("*/status"):
        with suppress(OSError):  # the thread has ended
            lines = status.read_bytes().splitlines()
            counts[status.parent.name] = sum(
                int(line.split()[1]) for line in lines if b"ctxt_switches" in line
            )
    return counts


def _figures(
    found: dict[str, tuple[float, float]], state: str, wakeups_bar: float, share_bar: float
) -> list[Figure]:
    total = tuple(sum(values) for values in zip(*found.values(), strict=True))
    rows = [(*one, 0.0, 0.0) for one in found.values()] + [(*total, wakeups_bar, share_bar)]
    return [
        figure(f"{role}, {state}: {what}", value, unit, bar)
        for role, row in zip([*found, "together"], rows, strict=True)
        for what, value, unit, bar in (
            ("wake-ups", row[0], "/s", row[2]), ("processor", row[1], "%", row[3])
        )
    ]  # fmt: skip


def _all_there(url: str) -> dict[str, psutil.Process] | None:
    pids = {row["role"]: row["pid"] for row in ask(f"{url}api/system")["processes"]}
    return {role: psutil.Process(pids[role]) for role in ROLES} if set(ROLES) <= set(pids) else None


def _settle(processes: dict[str, psutil.Process]) -> None:
    """Wait until nothing is being imported, loaded or drawn any more."""

    def calm() -> bool:
        found = measured(processes, SETTLE_SECONDS).values()
        return sum(share for _, share in found) < SETTLED_SHARE

    wait_until(calm, "rest")


@contextmanager
def _open_page(page: ServedPage, profile: Path) -> Iterator[str]:
    """Keep the Runs page open while the block runs; yield how."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        with _polling(page.url):
            yield "simulated page"
        return
    process = subprocess.Popen(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
         f"--user-data-dir={profile}", f"{page.url}runs"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: any(one.raddr for one in page.process.net_connections()), "open page")
        yield "open page"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _polling(url: str) -> Iterator[None]:
    closed = threading.Event()

    def poll() -> None:
        digest = ""
        while True:
            news = ask(f"{url}api/live?jobs={digest}")
            digest = news["jobs"]["digest"] if news else digest
            if closed.wait(POLL_SECONDS):
                return

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


NO_RUNNER = (sys.executable, "-S", "-c", "raise SystemExit(1)")  # it fails, and frees the slot


def bench_queue(folder: Path) -> list[Figure]:
    """Return the figures of `studio bench queue`, measured in an empty folder."""
    return measure(open_home(folder))


def measure(
    home: Home, *, many: int = 10_000, points: int = 100_000, claimed: int = 1000, writes: int = 100
) -> list[Figure]:
    """Return the speed of the queue in an empty home, as figures.

    Args:
        many: Queued jobs for the queries of the pages.
        points: Points of the curve.
        claimed: Jobs for eight claimers.
        writes: How often 20 rows are written beside four readers, ten times per second.
    """
    with closing(JobStore(home)) as store:
        progress("from submission to claim")
        figures = _handover(home, store)
        submit = median_ms(lambda: store.submit({"name": ""}), times=50)
        figures.append(figure("submit one job, median", submit, "ms"))
        progress(f"eight claimers over {claimed:,} jobs")
        figures += _claims(home, store, jobs=claimed)
        progress(f"a curve of {points:,} points")
        figures += _curves(store, points, writes)
        progress(f"queries over {many:,} queued jobs")
        fill(store, many)
        return figures + _queries(home, store, f"{many:,} queued jobs")


def fill(store: JobStore, count: int) -> None:
    """Queue many small jobs for `studio bench queue`."""
    store.submit_many({"name": f"job {os.urandom(6).hex()}"} for _ in range(max(0, count)))


def _handover(home: Home, store: JobStore, times: int = 15) -> list[Figure]:
    """From the submission to the claim of a supervisor that has nothing else to do."""
    waited = []
    with _supervising(home):
        for _ in range(times):
            begun = time.perf_counter()
            job = store.submit({"name": ""}).id
            while store.get(job).state == "queued":
                time.sleep(0.001)
            waited.append(time.perf_counter() - begun)
            while store.get(job).active:
                time.sleep(0.005)
    return [
        figure("submit to claimed, median", statistics.median(waited) * 1e3, "ms", 300),
        figure("submit to claimed, slowest", max(waited) * 1e3, "ms", 300),
    ]


@contextmanager
def _supervising(home: Home) -> Iterator[None]:
    running = Supervisor(home, slots=["cpu"], command=NO_RUNNER, spare=False)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield
    finally:
        running.stop()
        thread.join()


def _claims(home: Home, store: JobStore, workers: int = 8, jobs: int = 1000) -> list[Figure]:
    waited = []
    for _ in range(20):
        store.submit({"name": ""})
        begun = time.perf_counter()
        claim = store.claims.claim_next([Slot("cpu")], owner=me())
        waited.append(time.perf_counter() - begun)
        assert claim is not None
        store.claims.register(claim, me())
        store.claims.finish(claim, "succeeded")
    fill(store, jobs - store.counts().get("queued", 0))
    taken: list[int] = []

    def work(number: int) -> None:
        with closing(JobStore(home)) as own:
            while claim := own.claims.claim_next([Slot(f"slot {number}")], owner=me()):
                own.claims.register(claim, me())
                own.claims.finish(claim, "succeeded")
                taken.append(claim.job)

    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    took = time.perf_counter() - begun
    return [
        figure("claim, median", statistics.median(waited) * 1e3, "ms", 300),
        figure(f"{workers} claimers over {jobs:,} jobs", took, "s"),
        figure("jobs given out twice", float(len(taken) - len(set(taken))), ""),
    ]


def _curves(store: JobStore, points: int, times: int) -> list[Figure]:
    store.submit({"name": "curve"})
    claim = store.claims.claim_next([Slot("cpu")], owner=me())
    assert claim is not None
    job = claim.job
    store.claims.register(claim, me())
    for first in range(0, points, 5000):
        rows = [("loss", step, 1.0 / (step + 1), 0.0) for step in range(first, first + 5000)]
        store.claims.report(claim, Progress(metrics=rows))
    whole = median_ms(lambda: store.metrics([job], ["loss"]), times=5)
    seq = store.metrics([job], ["loss"])["seq"]
    tail = median_ms(lambda: store.metrics([job], ["loss"], after_seq=seq - 20), times=50)
    reads, done = [], threading.Event()

    def read() -> None:
        while not done.wait(0.25):
            reads.append(seconds(lambda: store.metrics([job], ["loss"], after_seq=seq)))

    writes = []
    with ThreadPoolExecutor(4) as readers:
        for _ in range(4):
            readers.submit(read)
        for number in range(times):  # 20 rows ten times a second: 200 rows a second
            rows = [("loss", points + 20 * number + n, 1.0, 0.0) for n in range(20)]
            report = Progress(metrics=rows)
            writes.append(seconds(partial(store.claims.report, claim, report)))
            time.sleep(0.1)
        done.set()
    store.claims.finish(claim, "succeeded")
    return [
        figure(f"snapshot of a curve of {points:,} points", whole, "ms"),
        figure("what is new in it", tail, "ms", 50),
        figure("write 20 rows beside 4 readers, p99", _p99(writes), "ms", 50),
        figure("a reader meanwhile, p99", _p99(reads), "ms", 50),
    ]


def _queries(home: Home, store: JobStore, among: str) -> list[Figure]:
    """The queries of pages and commands, and what an open Runs page asks once a second."""
    from ui.queue_routes import Listing

    last = store.list(limit=1)[0].id
    listing = Listing(home, store)
    first = listing.since("")
    assert first is not None
    return [
        figure(f"{name}, {among}", median_ms(query), "ms", 50)
        for name, query in {
            "first 100 of the list": lambda: store.list(limit=100),
            "first 100 of the queue": lambda: store.queue(limit=100),
            "search": lambda: store.list(limit=100, search="curv"),
            "counts": store.counts,
            "run next": lambda: store.run_next(last),
            "a new tab's list of jobs": lambda: listing.since(""),
            "an open tab's poll": lambda: listing.since(first["digest"]),
        }.items()
    ]


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))] * 1e3

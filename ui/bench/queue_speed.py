"""`studio bench queue`: claims, queries and curves of a full queue, with their bars."""

import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from jobs.claims import Slot
from jobs.job_queue import JobStore
from jobs.processes import me
from jobs.run_curves import Progress
from jobs.supervisor import Supervisor
from studio.home import Home, open_home
from ui.bench.bench_figures import Figure, figure, median_ms, progress, seconds

MANY = 10_000
POINTS = 100_000
NO_RUNNER = (sys.executable, "-S", "-c", "raise SystemExit(1)")  # it fails, and frees the slot


def bench_queue(folder: Path, many: int = MANY) -> list[Figure]:
    """Measure in an empty folder and return the figures."""
    return measure(open_home(folder), many=many)


def measure(
    home: Home, *, many: int = MANY, points: int = POINTS, claimed: int = 1000, writes: int = 100
) -> list[Figure]:
    """Return the figures of an empty home.

    Args:
        home: An empty home.
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
    """Queue many small jobs."""
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

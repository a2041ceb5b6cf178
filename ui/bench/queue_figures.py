"""How quick the queue is on this disk: the figures of `studio bench queue`, each with its bar."""

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from jobs.curves import Progress
from jobs.processes import me
from jobs.store import JobStore
from jobs.supervisor import Supervisor
from studio.home import Home

MANY = 10_000
POINTS = 100_000


Figure = dict[str, object]
NO_RUNNER = (sys.executable, "-S", "-c", "raise SystemExit(1)")  # it fails, and frees the slot


def measure(
    home: Home, *, many: int = MANY, points: int = POINTS, claimed: int = 1000, writes: int = 100
) -> list[Figure]:
    """Return the figures: name, value, unit, bar (0 where there is none).

    Args:
        home: An empty home.
        many: So many queued jobs for the pages' queries.
        points: So long a curve.
        claimed: So many jobs for eight claimers.
        writes: So many times 20 rows beside four readers, ten times a second.
    """
    with closing(JobStore(home)) as store:
        figures = _handover(home, store)
        figures.append(figure("submit one job, median", _submit(store), "ms", 0))
        figures += _claims(home, store, jobs=claimed)
        figures += _curves(store, points, writes)
        fill(store, many)
        for name, query in _pages(store).items():
            figures.append(figure(f"{name}, {many:,} queued jobs", median_ms(query), "ms", 50))
        return figures


def fill(store: JobStore, count: int) -> None:
    """Queue many small jobs."""
    store.submit_many({"name": f"job {os.urandom(6).hex()}"} for _ in range(max(0, count)))


def _submit(store: JobStore) -> float:
    return median_ms(lambda: store.submit({"name": ""}), times=50)


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
        claim = store.claims.claim("cpu", owner=me())
        waited.append(time.perf_counter() - begun)
        assert claim is not None
        store.claims.register(claim, me())
        store.claims.finish(claim, "succeeded")
    fill(store, jobs - sum(store.counts().get(state, 0) for state in ("queued",)))
    taken: list[int] = []

    def work(number: int) -> None:
        with closing(JobStore(home)) as own:
            while claim := own.claims.claim(f"slot {number}", owner=me()):
                own.claims.register(claim, me())
                own.claims.finish(claim, "succeeded")
                taken.append(claim.job)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    return [
        figure("claim, median", statistics.median(waited) * 1e3, "ms", 300),
        figure(f"{workers} claimers over {jobs:,} jobs", seconds, "s", 0),
        figure("jobs given out twice", float(len(taken) - len(set(taken))), "", 0),
    ]


def _curves(store: JobStore, points: int, times: int) -> list[Figure]:
    store.submit({"name": "curve"})
    claim = store.claims.claim("cpu", owner=me())
    assert claim is not None
    store.claims.register(claim, me())
    for first in range(0, points, 5000):
        rows = [("loss", step, 1.0 / (step + 1), 0.0) for step in range(first, first + 5000)]
        store.claims.report(claim, Progress(metrics=rows))
    whole = median_ms(lambda: store.metrics([claim.job], ["loss"]), times=5)
    seq = store.metrics([claim.job], ["loss"])["seq"]
    tail = median_ms(lambda: store.metrics([claim.job], ["loss"], after_seq=seq - 20), times=50)
    writes, reads, done = [], [], threading.Event()

    def read() -> None:
        while not done.is_set():
            begun = time.perf_counter()
            store.metrics([claim.job], ["loss"], after_seq=seq)
            reads.append(time.perf_counter() - begun)
            time.sleep(0.25)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(times):  # 20 rows ten times a second: 200 rows a second
        rows = [("loss", points + 20 * number + n, 1.0, 0.0) for n in range(20)]
        begun = time.perf_counter()
        store.claims.report(claim, Progress(metrics=rows))
        writes.append(time.perf_counter() - begun)
        time.sleep(0.1)
    done.set()
    for reader in readers:
        reader.join()
    store.claims.finish(claim, "succeeded")
    return [
        figure(f"snapshot of a curve of {points:,} points", whole, "ms", 0),
        figure("what is new in it", tail, "ms", 50),
        figure("write 20 rows beside 4 readers, p99", _p99(writes), "ms", 50),
        figure("a reader meanwhile, p99", _p99(reads), "ms", 50),
    ]


def _pages(store: JobStore) -> dict[str, Callable[[], object]]:
    last = store.list(limit=1)[0].id
    return {
        "first 100 of the list": lambda: store.list(limit=100),
        "first 100 of the queue": lambda: store.queue(limit=100),
        "search": lambda: store.list(limit=100, search="curv"),
        "counts": store.counts,
        "run next": lambda: store.run_next(last),
    }


def median_ms(call: Callable[[], object], *, times: int = 15) -> float:
    """Return the median of several calls."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e3


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))] * 1e3


def figure(name: str, value: float, unit: str, bar: float) -> Figure:
    """Return one figure as it is printed."""
    return {"name": name, "value": round(value, 3), "unit": unit, "bar": bar}

"""`studio bench queue`: how quick the queue is on this disk, with its budgets beside it."""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from jobs.metrics import Progress
from jobs.processes import me
from jobs.store import JobStore
from studio.errors import InputError
from studio.home import Home, open_home

MANY = 10_000
POINTS = 100_000


def bench_queue(arguments: Sequence[str]) -> int:
    """Measure in a temporary home, print a table or, with `--json`, one document.

    Raises:
        InputError: An option nobody knows.
    """
    unknown = [word for word in arguments if word != "--json"]
    if unknown:
        raise InputError(f"`studio bench queue` knows --json only, not {unknown[0]}.")
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        figures = measure(open_home(folder))
    if "--json" in arguments:
        print(json.dumps(figures))
        return 0
    for figure in figures:
        bar = f"  (bar {figure['bar']:g})" if figure["bar"] else ""
        print(f"{figure['name']:<44} {figure['value']:>10.2f} {figure['unit']:<6}{bar}")
    return 0


def measure(home: Home, *, many: int = MANY, points: int = POINTS) -> list[dict[str, object]]:
    """Return the figures: name, value, unit, bar."""
    with closing(JobStore(home)) as store:
        figures = [_figure("submit one job, median", _submit(store), "ms", 0)]
        figures += _claims(home, store)
        figures += _curves(store, points)
        _fill(store, many)
        for name, query in _pages(store).items():
            figures.append(_figure(f"{name}, {many:,} queued jobs", _median(query), "ms", 50))
        return figures


def _submit(store: JobStore) -> float:
    return _median(lambda: store.submit({"name": ""}), times=50)


def _claims(
    home: Home, store: JobStore, workers: int = 8, jobs: int = 1000
) -> list[dict[str, object]]:
    waited = []
    for _ in range(20):
        store.submit({"name": ""})
        begun = time.perf_counter()
        claim = store.claims.claim("cpu", owner=me())
        waited.append(time.perf_counter() - begun)
        assert claim is not None
        store.claims.register(claim, me())
        store.claims.finish(claim, "succeeded")
    _fill(store, jobs - sum(store.counts().get(state, 0) for state in ("queued",)))
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
        _figure("claim, median", statistics.median(waited) * 1e3, "ms", 300),
        _figure(f"{workers} claimers over {jobs:,} jobs", seconds, "s", 0),
        _figure("jobs given out twice", float(len(taken) - len(set(taken))), "", 0),
    ]


def _curves(store: JobStore, points: int) -> list[dict[str, object]]:
    store.submit({"name": "curve"})
    claim = store.claims.claim("cpu", owner=me())
    assert claim is not None
    store.claims.register(claim, me())
    for first in range(0, points, 5000):
        rows = [("loss", step, 1.0 / (step + 1), 0.0) for step in range(first, first + 5000)]
        store.claims.report(claim, Progress(metrics=rows))
    whole = _median(lambda: store.metrics([claim.job], ["loss"]), times=5)
    seq = store.metrics([claim.job], ["loss"])["seq"]
    tail = _median(lambda: store.metrics([claim.job], ["loss"], after_seq=seq - 20), times=50)
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
    for number in range(100):  # 20 rows ten times a second: 200 rows a second
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
        _figure(f"snapshot of a curve of {points:,} points", whole, "ms", 0),
        _figure("what is new in it", tail, "ms", 50),
        _figure("write 20 rows beside 4 readers, p99", _p99(writes), "ms", 50),
        _figure("a reader meanwhile, p99", _p99(reads), "ms", 50),
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


def _fill(store: JobStore, count: int) -> None:
    store.submit_many({"name": f"job {os.urandom(6).hex()}"} for _ in range(max(0, count)))


def _median(call: Callable[[], object], *, times: int = 15) -> float:
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e3


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))] * 1e3


def _figure(name: str, value: float, unit: str, bar: float) -> dict[str, object]:
    return {"name": name, "value": round(value, 3), "unit": unit, "bar": bar}

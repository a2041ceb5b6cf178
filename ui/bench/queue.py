"""`studio bench queue`: the queue and its page on this disk, each figure beside its bar.

It times the house whole, so it calls upstairs, inside functions only, and loads no torch.
"""

import tempfile
from contextlib import closing

from studio.home import Home, open_home

MANY = 10_000


def bench_queue(many: int = MANY) -> list[dict[str, object]]:
    """Measure in a temporary home and return the figures."""
    from ui.bench import queue_figures

    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        home = open_home(folder)
        return queue_figures.measure(home, many=many) + page_figures(home, many=many)


def page_figures(home: Home, *, many: int) -> list[dict[str, object]]:
    """Return what an open Runs page asks once a second, of a home that has `many` jobs queued."""
    from jobs.store import JobStore
    from ui.bench.queue_figures import figure, median_ms
    from ui.live import Listing

    with closing(JobStore(home)) as store:
        listing = Listing(home, store)
        told = listing.since("")
        assert told is not None
        return [
            figure(f"{name}, {many:,} queued jobs", median_ms(ask), "ms", 50)
            for name, ask in (
                ("a new tab's list of jobs", lambda: listing.since("")),
                ("an open tab's poll", lambda: listing.since(told["digest"])),
            )
        ]

"""`studio bench queue`: the queue and its page on this disk, each figure beside its bar.

It times the house whole, so it calls upstairs, inside functions only, and loads no torch.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import closing

from studio.errors import InputError
from studio.home import Home, open_home

MANY = 10_000


def bench_queue(arguments: Sequence[str]) -> int:
    """Measure in a temporary home, print a table or, with `--json`, one document.

    Raises:
        InputError: An option nobody knows.
    """
    from jobs import bench

    unknown = [word for word in arguments if word != "--json"]
    if unknown:
        raise InputError(f"`studio bench queue` knows --json only, not {unknown[0]}.")
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        home = open_home(folder)
        figures = bench.measure(home, many=MANY) + page_figures(home, many=MANY)
    if "--json" in arguments:
        print(json.dumps(figures))
        return 0
    for figure in figures:
        bar = f"  (bar {figure['bar']:g})" if figure["bar"] else ""
        print(f"{figure['name']:<46} {figure['value']:>10.2f} {figure['unit']:<6}{bar}")
    return 0


def page_figures(home: Home, *, many: int) -> list[dict[str, object]]:
    """Return what an open Runs page asks once a second, of a home that has `many` jobs queued."""
    from jobs.bench import figure, median_ms
    from jobs.store import JobStore
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

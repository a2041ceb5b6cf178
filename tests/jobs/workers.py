"""Small programs that tests start several of at once: `python workers.py <name> <home> …`.

They import as little as possible, because on a small machine their start is most of the test.
"""

import contextlib
import json
import sys
import time
from collections.abc import Sequence

from jobs.claims import Slot
from jobs.job_queue import JobStore
from jobs.processes import me
from studio.errors import StudioError
from studio.home import open_home


def claim_all(store: JobStore, slot: str) -> list[int]:
    """Claim and finish until nothing is queued."""
    taken = []
    while claim := store.claims.claim_next([Slot(slot)], owner=me()):
        store.claims.register(claim, me())
        store.claims.finish(claim, "succeeded")
        taken.append(claim.job)
    return taken


def open_and_submit(store: JobStore, count: str) -> int:
    """Open the home again and again, submitting something each time."""
    for _ in range(int(count)):
        again = JobStore(store.home)
        again.submit({"name": ""})
        again.close()
    return int(count)


def read_and_reorder(arguments: Sequence[str]) -> None:
    """Do for ever what a page does: announce itself, poll queue and curves, move waiting jobs."""
    store, seq = JobStore(open_home(arguments[0])), 0
    store.announce("web")
    while True:
        jobs = store.list(limit=500)
        seq = store.metrics([job.id for job in jobs[:5]], ["loss"], after_seq=seq)["seq"]
        waiting = [job.id for job in jobs if job.state == "queued"]
        with contextlib.suppress(StudioError):
            if waiting:
                store.run_next(waiting[0])
        time.sleep(0.05)


if __name__ == "__main__":
    name, home, *rest = sys.argv[1:]
    opened = JobStore(open_home(home))
    print(json.dumps(globals()[name](opened, *rest)))
    opened.close()

"""Ten thousand queued jobs: every question stays quick, by the processor's time it takes.

Processor time, because the tests of a busy machine wait for one another; `studio bench queue`
measures by the clock.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import plans
from jobs.processes import me
from jobs.store import JobStore
from studio.home import open_home

MANY, MOST_SECONDS = 10_000, 0.05


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStore]:
    folder: Path = tmp_path_factory.mktemp("many") / "home"
    store = JobStore(open_home(folder))
    spec = {"method": {"name": "lora"}, "train": {"max_steps": 10}}
    store.submit_many({**spec, "name": f"run {number:05}"} for number in range(MANY))
    yield store
    store.close()


def seconds(call: Callable[[], object]) -> float:
    """The best of three, in processor time."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return min(taken)


ASK: dict[str, Callable[[JobStore], object]] = {
    "newest": lambda s: s.list(limit=100),
    "a page far behind": lambda s: s.list(limit=100, offset=9000),
    "front of the queue": lambda s: s.queue(limit=200),
    "a search": lambda s: s.list(limit=100, search="run 0999"),
    "a search without a hit": lambda s: s.list(limit=100, search="nothing"),
    "counts": lambda s: s.counts(),
    "one by name": lambda s: s.get("run 05000"),
    "run next": lambda s: s.run_next("run 09999"),
    "move between": lambda s: s.move("run 09998", before="run 00005"),
    "shift": lambda s: plans.shift(s, "run 05000", 3),
    "submit without a name": lambda s: s.submit({"name": ""}),
    "settle": plans.settle,
    "what lacks memory": lambda s: s.claims.waiting_for_memory(1000),
    "a claim that fits nothing": lambda s: s.claims.claim("x", owner=me(), wanted=["x"]),
}


@pytest.mark.parametrize("question", ASK)
def test_a_question_to_a_long_queue_is_quick(crowded: JobStore, question: str) -> None:
    assert seconds(lambda: ASK[question](crowded)) < MOST_SECONDS


def test_a_claim_from_a_long_queue_is_quick(crowded: JobStore) -> None:
    def claim_and_end() -> None:
        claim = crowded.claims.claim("cpu", owner=me())
        assert claim is not None
        crowded.claims.register(claim, me())
        crowded.claims.finish(claim, "succeeded")

    assert seconds(claim_and_end) < MOST_SECONDS

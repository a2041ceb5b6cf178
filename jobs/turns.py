"""Which slot claims first: the one whose next job stands furthest in front.

Slots ask one after the other, and a job on several devices takes them from slots that have not been
asked yet. Were these asked in a fixed order, it could pass an older job that wants one of them.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator

Turn = tuple[float, int]
"""A job's place in the queue, and its number."""


def in_turn(slots: Iterable[str], turn: Callable[[str], Turn | None]) -> Iterator[str]:
    """Yield the slot that is to claim next, each at most once, while any has a job to start.

    Args:
        slots: Those that may claim.
        turn: Asked what a slot would claim now. The caller claims before it takes the next slot;
            devices only get fewer, so that what a slot was told before is never too late a turn.
    """
    waiting = [(found, n, slot) for n, slot in enumerate(slots) if (found := turn(slot))]
    heapq.heapify(waiting)
    while waiting:
        _, number, slot = heapq.heappop(waiting)
        found = turn(slot)
        if found is None:
            continue
        if waiting and (found, number) > waiting[0][:2]:
            heapq.heappush(waiting, (found, number, slot))
        else:
            yield slot

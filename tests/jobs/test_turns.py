"""Slots claim in the order of the jobs they would start; of several for one job, the first."""

from jobs.placement import Turn, in_queue_order


def _claimed(jobs: dict[int, set[str]], slots: str) -> list[tuple[int, str]]:
    """Claim as a supervisor does: a job takes every slot it names, or any one where it names none.

    Args:
        jobs: The slots that each job names, by its place in the queue.
        slots: One letter each.
    """
    free, claimed = set(slots), []

    def turn(slot: str) -> Turn | None:
        fits = (n for n, named in sorted(jobs.items())
                if slot in free and named <= free and (not named or slot in named))  # fmt: skip
        return next(((float(n), n) for n in fits), None)

    for slot in in_queue_order(slots, turn):
        found = turn(slot)
        assert found is not None
        free -= jobs.pop(found[1]) or {slot}
        claimed.append((found[1], slot))
    return claimed


def test_an_older_job_is_not_passed_and_jobs_for_any_slot_take_the_first_ones():
    assert _claimed({1: {"b", "c"}, 2: {"a", "c"}, 3: set()}, "abc") == [(1, "b"), (3, "a")]
    assert _claimed({1: {"b"}, 2: set(), 3: set()}, "abcd") == [(1, "b"), (2, "a"), (3, "c")]


def test_nothing_to_start_asks_each_slot_once():
    asked: list[str] = []
    assert list(in_queue_order("abc", asked.append)) == []
    assert asked == ["a", "b", "c"]

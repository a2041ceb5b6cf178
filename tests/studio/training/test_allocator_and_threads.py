"""Threads beside other work: measured where cores are short, untouched on a quiet machine."""

import pytest

from studio.training.allocator_and_threads import STEPS, Threads


class Machine:
    """Eight cores; a step's speed follows from its threads and the cores that others use."""

    def __init__(self, others: float, penalty: float) -> None:
        self.others, self.penalty, self.seconds = others, penalty, 0.0
        self.threads = Threads(
            8, cores=8, others=lambda: self.others, use=lambda number: None,
            clock=lambda: self.seconds,
        )  # fmt: skip

    def run(self, measurements: int) -> list[str]:
        said = []
        for _ in range(measurements * STEPS):
            self.seconds += 1
            crowded = self.threads.now + self.others > 8.4
            said.append(self.threads.after_step(self.threads.now / (self.penalty * crowded or 1)))
        return [text for text in said if text]


@pytest.mark.parametrize(
    ("others", "penalty", "chosen"),
    [(0.2, 2.0, 8), (1.0, 2.0, 7), (1.0, 1.05, 8), (6.1, 8.0, 2), (20.0, 2.0, 8)],
    ids=["quiet", "one core lost", "sharing costs little", "nearly full", "all share"],
)
def test_the_faster_number_is_kept(others, penalty, chosen):
    machine = Machine(others, penalty)
    said = machine.run(4)
    assert machine.threads.now == chosen
    assert [text[:30] for text in said] == ["Training beside other programs"] * (others >= 1)


def test_all_threads_come_back_when_the_machine_is_quiet_again():
    machine = Machine(2.0, 2.0)
    machine.run(3)
    assert machine.threads.now == 6
    machine.others = 0.0
    assert machine.run(3) == ["Training"]
    assert machine.threads.now == 8

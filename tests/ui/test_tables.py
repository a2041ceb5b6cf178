"""Tables of the command line at every width of a terminal."""

import pytest

from ui.cli.terminal_tables import fitted

HEAD = ["ID", "Name", "State", "Steps", "Loss", "Eval loss", "Time"]
ROWS = [
    ["1", "a very long name of a run that nobody wants to read", "succeeded", "114 / 114", "0.2501",
     "0.3127", "1 min 04 s"],
    ["22", "short", "failed", "3 / 114", "–", "–", "2.1 s"],
    ["3", "The model has no biases to train: use norm tuning, or create zero biases."],
]  # fmt: skip


@pytest.mark.parametrize("width", [10**6, 120, 80, 60, 40])
def test_a_table_is_never_wider_than_the_terminal_and_breaks_no_word(width):
    lines = fitted(HEAD, ROWS, width)
    assert max(map(len, lines)) <= width
    shown = lines[0].split("  ")
    head = [word.strip() for word in shown if word.strip()]
    assert head == HEAD[: len(head)] and len(head) >= 2, "columns go from the last"
    assert len(lines) == 4 + (len(head) < len(HEAD)), "a row is a line"
    assert ("Left out" in lines[-1]) is (len(head) < len(HEAD))
    words = {word for row in ROWS for cell in row for word in cell.split()} | set(HEAD)
    for line in lines[1:4]:
        assert all(w in words or w.endswith("…") or w == "loss" for w in line.split()), line
    assert "a very long name of a run that nobody wants to read" in lines[1] or width < 120


def test_the_first_cell_of_a_short_row_is_whole():
    assert fitted(["A", "B", "C"], [["first", "why"]], 80) == ["A      B  C", "first  why"]

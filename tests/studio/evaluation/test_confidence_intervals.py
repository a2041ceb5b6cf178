"""Intervals: the quantile of Student's t is that of the tables."""

import pytest

from studio.evaluation.confidence_intervals import half_width, student_t


def test_the_quantile_is_that_of_published_tables():
    known = {
        1: 12.706,
        2: 4.303,
        4: 2.776,
        5: 2.571,
        8: 2.306,
        9: 2.262,
        12: 2.179,
        30: 2.042,
        120: 1.980,
    }
    assert {n: round(student_t(n), 3) for n in known} == known
    assert half_width([1.0]) is None
    assert half_width([0.0, 1.0] * 15) == pytest.approx(2.0452 * 0.5085 / 30**0.5, rel=1e-3)

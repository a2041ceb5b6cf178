"""Numbers of saved reports: no exponent of large ones, no two marks of an axis that read alike."""

import math

import pytest

from studio.evaluation.html_page import chart, text_of


@pytest.mark.parametrize("value, words", [
    (12345.6, "12\u202f346"), (9999.7, "10\u202f000"), (999.96, "1000"), (0.00002, "2e-05"),
    (-20000.5, "-20\u202f000"), (1234567, "1\u202f234\u202f567"), (math.nan, "nan"),
    (math.inf, "inf"), (None, "–"), ("12345.6", "12345.6"), (True, "yes"),
])  # fmt: skip
def test_a_large_number_has_its_digits(value, words):
    assert text_of(value) == words


@pytest.mark.parametrize("low, high", [(100_100.0, 100_500.0), (2.30010, 2.30019), (0.0, 60_000.0)])
def test_marks_of_an_axis_differ_and_have_no_exponent(low, high):
    made = chart("Tokens per second", {"a": [(0, low), (1, high)]})
    assert made is not None
    marks = [words for _, words in made["y"]]
    assert len(set(marks)) == len(marks) >= 3 and not any("e" in words for words in marks)

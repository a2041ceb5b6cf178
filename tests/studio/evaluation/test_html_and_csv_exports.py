"""Reports hold what was said as text: no formula in a csv, no element in a page."""

import csv
import io
import json
import math

import pytest

from studio.errors import ChatError
from studio.evaluation.html_and_csv_exports import (
    chart,
    form_of,
    suite_as,
    text_of,
    title,
    votes_as,
)

EVIL = '=HYPERLINK("x")<script>hit()</script>'
VOTES = [{"id": 1, "created": 1.0, "prompt": EVIL, "lanes": ["starter", "starter~a%20b:0.5"],
          "winner": 1, "bad": 0, "blind": 1, "answers": [EVIL, "-1"]}]  # fmt: skip
BOARD = {
    "votes": 1, "lanes": VOTES[0]["lanes"], "wins": [[0, 0], [1, 0]],
    "standings": [{"lane": "starter", "score": 1000.0, "low": 900.0, "high": 1100.0, "wins": 0,
                   "losses": 1, "ties": 0, "bad": 0, "group": 0}],
}  # fmt: skip
ANSWER = {"text": EVIL, "reason": "stop", "error": None, "exact_match": None, "tokens": 3.0}
ROWS = [{"case": 0, "prompt": EVIL, "expected": None, "pattern": None, "answers": [ANSWER]}]
SUMMARY = {"lanes": ["starter"], "means": [{"lane": "starter", "tokens": 3.0}], "wins": [[0]],
           "cases": 1}  # fmt: skip


def test_a_csv_holds_no_formula():
    for text in (votes_as("csv", VOTES, BOARD), suite_as("csv", "s", SUMMARY, ROWS, {})):
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert f"'{EVIL}" in cells
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]


def test_a_page_holds_no_script_and_needs_nothing_from_outside():
    curves = {"run 1 <b>": [(0.0, 3.0), (10.0, 1.0)]}
    for page in (votes_as("html", VOTES, BOARD), suite_as("html", EVIL, SUMMARY, ROWS, curves)):
        assert "<script" not in page and "&lt;script&gt;" in page
        assert "http" not in page.replace("http-equiv", "") and "src=" not in page
        assert "<b>" not in page


def test_jsonl_is_the_rows_a_lane_is_named_for_people_and_another_ending_is_refused():
    assert json.loads(votes_as("jsonl", VOTES, BOARD)) == VOTES[0]
    assert title("/models/big~a%20b:0.5+c:1") == "big + a b × 0.5 + c"
    assert title("/models/a~b~%2Fadapters%2Fpirate:0.5") == "a~b + pirate × 0.5"
    assert title("starter~a:99") == "starter~a:99"
    assert title("~nobody-of-this-name/a") == "starter + a"
    assert form_of("x.html") == "html"
    with pytest.raises(ChatError, match="must end in"):
        form_of("x.pdf")


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

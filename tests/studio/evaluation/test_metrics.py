import pytest

from studio.errors import SpecError
from studio.evaluation.metrics import exact_match, rouge_l, scorers, valid_json


def test_exact_match_forgives_only_spaces():
    assert exact_match(" a  b\n", "a b") == 1
    assert exact_match("A b", "a b") == 0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # "the cat sat" in order within both: 3 words; 2 * 3 / (4 + 5)
    assert rouge_l("the black cat sat", "the cat sat on mats") == pytest.approx(2 * 3 / 9)
    assert rouge_l("a b c", "A, b; c!") == 1
    assert rouge_l("", "a") == 0


def test_json_is_an_object_or_array_alone_or_fenced():
    assert valid_json('{"a": 1}', "") == valid_json("```json\n[1]\n```", "") == 1
    assert valid_json('here: {"a": 1}', "") == valid_json("12", "") == valid_json("{", "") == 0


def test_the_pattern_must_be_there_and_be_one():
    assert scorers(["regex"], r"\d+")["regex"]("in 1984", "") == 1
    with pytest.raises(SpecError, match="needs a pattern"):
        scorers(["regex"])
    with pytest.raises(SpecError, match="not a valid regular expression"):
        scorers(["regex"], "(")
    with pytest.raises(SpecError, match='Unknown score "bleu"'):
        scorers(["bleu"])

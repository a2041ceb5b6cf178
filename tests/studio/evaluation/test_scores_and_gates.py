import json

import pytest

from studio.errors import SpecError
from studio.evaluation.scores_and_gates import (
    contains,
    equal_number,
    exact_match,
    rouge_l,
    scorers,
    valid_json,
    weights_in,
)


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


def test_contains_takes_whole_words_in_one_piece():
    assert contains("Egypt has Cairo as its capital.", "cairo.") == 1
    assert contains("It is New York City", "new york") == 1
    assert contains("concatenate", "cat") == contains("York, New", "new york") == 0
    assert contains("anything", "...") == 0


@pytest.mark.parametrize(
    ("answer", "expected", "there"),
    [
        ("法国的首都是巴黎。", "巴黎", 1), ("パリです", "パリ", 1), ("파리입니다", "파리", 1),
        ("เมืองหลวงคือปารีส", "ปารีส", 1), ("法国的首都是巴黎。", "柏林", 0), ("vue中文2版", "vue", 1),
        ("भाषा हिन्दी है", "हिन्दी", 1), ("भाषा हिन्दी है", "हिन", 0), ("naïveté", "naïve", 0),
    ],
)  # fmt: skip
def test_words_are_found_in_scripts_without_spaces(answer, expected, there):
    assert contains(answer, expected) == there
    # 4 of 8 and 4 characters, in order: 2 * 4 / (8 + 5)
    assert rouge_l("法国的首都是巴黎", "首都在巴黎") == pytest.approx(2 * 4 / 13)


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("7 plus 5 is 12.", "#### 12", 1), ("It costs $1,234.50", "1234.5", 1),
        ("-3", "\u22123", 1), ("10-3", "3", 1), ("(5)-3", "3", 1), ("1.2e3", "1200", 1),
        ("so 12, not 13", "12", 0), ("twelve", "12", 0), ("12", "twelve", 0), ("1,23", "23", 1),
        ("It is .5", "0.5", 1), ("-.5", "-0.5", 1), ("wait...5", "5", 1), ("v1.2.3", "3", 1),
    ],
)  # fmt: skip
def test_the_last_number_counts(answer, expected, same):
    assert equal_number(answer, expected) == same


def test_a_schema_is_checked_without_network_and_with_limited_patterns():
    schema = json.dumps({
        "type": "object", "required": ["name"], "additionalProperties": False,
        "properties": {"name": {"pattern": "^(a+)+$"}, "n": {"type": "integer", "minimum": 1}},
    })  # fmt: skip
    fits = scorers(["json_schema"], schema=schema)["json_schema"]
    assert fits('```json\n{"name": "aa", "n": 2}\n```', "") == 1
    for wrong in ('{"name": "b"}', '{"name": "a", "n": 0}', '{"x": 1}', "{", "name: a"):
        assert fits(wrong, "") == 0
    away = scorers(["json_schema"], schema='{"$ref": "http://127.0.0.1:9/none.json"}')
    assert away["json_schema"]("{}", "") == 0
    for bad, words in (("", "needs a json schema"), ("{", "not valid JSON"),
                       ('{"type": "text"}', 'invalid at "type"')):  # fmt: skip
        with pytest.raises(SpecError, match=words):
            scorers(["json_schema"], schema=bad)


def test_weights_are_read_and_mistakes_named():
    assert weights_in("number: 1, pattern:-0.2,json") == {
        "number": 1, "pattern": -0.2, "json": 1,
    }  # fmt: skip
    for text, words in ((" , ", "names no score"), ("json:big", 'weight "big"'),
                        ("json:0", "other than 0"), ("regex, pattern", "twice")):  # fmt: skip
        with pytest.raises(SpecError, match=words):
            weights_in(text)

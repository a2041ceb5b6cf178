"""Suites: what a person writes is read, answers are scored, and a lane that is better wins."""

import csv
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openpyxl import Workbook

from studio.chat.lanes import Delta, LaneSettings, Stats
from studio.chat.thought_and_tool_parser import Piece
from studio.errors import ChatError, SpecError
from studio.evaluation import suites
from studio.evaluation.judge import JudgeRequest
from studio.evaluation.scores_and_gates import match_pattern
from studio.evaluation.suites import (
    RESULTS,
    SuiteRequest,
    parse_cases,
    read_cases,
    read_results,
    summarise,
)
from tests.ui.conftest import put_adapter


@pytest.mark.parametrize(
    ("line", "case"),
    [
        ("What is 2 + 2?", {"prompt": "What is 2 + 2?", "expected": None}),
        ("Capital of France? => Paris", {"prompt": "Capital of France?", "expected": "Paris"}),
        (r"Count =~ \d+", {"prompt": "Count", "pattern": r"\d+"}),
        ('{"prompt": "5 - 5?", "expected": 0}', {"prompt": "5 - 5?", "expected": "0"}),
        (
            '{"prompt": "a", "expected": "b"}',
            {"prompt": "a", "expected": "b"},
        ),
        (
            '{"prompt": "a", "json_schema": {"type": "array"}}',
            {"prompt": "a", "json_schema": '{"type": "array"}'},
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, '
            '{"role": "assistant", "content": "b"}]}',
            {"prompt": "a", "expected": "b"},
        ),
        (
            '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, '
            '{"role": "assistant", "content": "b", "weight": 0}, '
            '{"role": "user", "content": "c"}]}',
            {"prompt": "c", "before": [
                {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}]},
        ),
        ("one\u2028line\x0band\x85more => yes", {"prompt": "one\u2028line\x0band\x85more",
                                                 "expected": "yes"}),
    ],
)  # fmt: skip
def test_a_line_is_a_case(line, case):
    assert parse_cases(f"\n{line}\n") == [case]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" \n", "no prompts"),
        ('ok\n{"prompt": 3}', "Line 2"),
        ("ok\n\nWhy? =~ (photo", 'Line 3 cannot be used: "\\(photo" is not a valid'),
        ('{"messages": []}', "Line 1"),
        ('{"messages": [{"role": "assistant", "content": "b"}]}', "Line 1"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}',
            "Line 1",
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "Line 1"),
        ("{broken", "Line 1"),
        ("x\n" * 2001, "at most 2,000"),
    ],
)
def test_what_is_no_suite_is_refused(text, sentence):
    with pytest.raises(ChatError, match=sentence):
        parse_cases(text)


QUIZ = [{"prompt": "Do you sell\nseeds?", "expected": "Yes."}, {"prompt": "7 plus 5?",
                                                                 "expected": "12"}]  # fmt: skip


def save_table(path, columns):
    """Write columns as the kind of file that the name says."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([[*columns], *zip(*columns.values(), strict=True)])
    elif path.suffix == ".xlsx":
        book = Workbook()
        for row in [[*columns], *zip(*columns.values(), strict=True)]:
            book.active.append(row)
        book.save(path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({k: [*map(str, v)] for k, v in columns.items()}), path)
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("names", [("prompt", "expected"), ("question", "answer")])
@pytest.mark.parametrize("name", ["q.csv", "q.xlsx", "q.parquet", "q.jsonl"])
def test_what_data_reads_is_a_suite(tmp_path, name, names):
    prompts = [case["prompt"] for case in QUIZ]
    save_table(tmp_path / name, dict(zip(names, (prompts, ["Yes.", 12]), strict=True)))
    found = read_cases(tmp_path / name)
    assert found == (QUIZ, [])
    SuiteRequest.parse({"lanes": [{}], "cases": found.cases})


def test_rows_that_ask_nothing_are_left_out_by_name_and_a_question_needs_no_answer(tmp_path):
    (tmp_path / "q.csv").write_text("question,answer\nHi?,Yes.\n,Lost\nWhy?,\n")
    found = read_cases(tmp_path / "q.csv")
    assert found.cases == [{"prompt": "Hi?", "expected": "Yes."}, {"prompt": "Why?"}]
    assert found.left_out == [{"line": 3, "text": '"question" is empty.'}]
    (tmp_path / "e.csv").write_text('prompt,expected\n" ",x\n')
    with pytest.raises(ChatError, match=r"e\.csv: The suite has no prompts"):
        read_cases(tmp_path / "e.csv")
    (tmp_path / "long.csv").write_text("prompt,pattern\n" + "a,b\n" * 2001)
    with pytest.raises(ChatError, match="at most 2,000"):
        read_cases(tmp_path / "long.csv")


def test_text_files_hold_a_prompt_in_each_line_in_any_encoding(tmp_path):
    (tmp_path / "q.txt").write_text("Größe? => groß\nTell.\n", encoding="utf-16")
    cases = [{"prompt": "Größe?", "expected": "groß"}, {"prompt": "Tell.", "expected": None}]
    assert read_cases(tmp_path / "q.txt").cases == cases


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("q.png", b"\x89PNG\r\n\x1a\n" + bytes(90), "q.png is a PNG picture"),
        ("q.txt", b"\x00\x01\x02\x03" * 50, "q.txt: It holds binary"),
        ("q.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "q.jsonl: Line 2 is not a case"),
        ("q.csv", b"size,weight\n1,2\n3,4\n", 'q.csv: .*"size", "weight"'),
        ("none", b"", "There is no file"),
    ],
    ids=["picture", "binary", "line", "columns", "missing"],
)
def test_a_file_without_prompts_is_refused_in_one_sentence(tmp_path, name, data, words):
    if data:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ChatError, match=words):
        read_cases(tmp_path / name)


def test_a_lane_is_written_as_in_the_address():
    lane = LaneSettings.model_validate({"stack": [{"name": "a b", "weight": 0.5}]})
    assert lane.name == "starter~a%20b:0.5"


def test_a_pattern_that_is_none_is_refused_before_anything_runs():
    wrong = {"prompt": "b", "pattern": "("}
    for cases in ([{"prompt": "a"}, wrong], [wrong]):
        with pytest.raises(SpecError) as error:
            SuiteRequest.parse({"lanes": [{"model": "starter"}], "cases": cases})
        assert error.value.text == '"(" is not a valid regular expression: missing ) at position 1.'
    with pytest.raises(SpecError, match="cases is .*: input should be a list of 1 or more"):
        SuiteRequest.parse({"lanes": [{"model": "starter"}], "cases": []})
    verdict, why = match_pattern(r"^(?:a|aa)+$", "a" * 60 + "b", seconds=0.05)
    assert verdict is None and "longer than" in why, "one that never ends costs its limit"


def fake_stream(lanes):
    for place, _ in enumerate(lanes):
        text = "Paris" if place else "London"
        yield Delta(lane=place, text=text)
        yield Delta(lane=place, done=True, reason="stop", stats=Stats(tokens=2, seconds=1.0))


def test_a_bare_lane_is_looked_up_at_the_revision_of_the_lane_beside_it(home, monkeypatch):
    put_adapter(home.adapters / "a", "a", base={"path": "org/model", "revision": "v1"})
    asked = []
    monkeypatch.setattr(suites, "facts", asked.append)
    lanes = [{"model": "org/model"}, {"model": "org/model", "stack": [{"name": "a"}]}]
    SuiteRequest.parse({"lanes": lanes, "cases": [{"prompt": "a"}]}).checked(home)
    assert [one.revision for one in asked] == ["v1", "v1"]


def test_a_thought_is_kept_apart_and_neither_scored_nor_judged(tmp_path, home, monkeypatch):
    def stream(lanes):
        for place, _ in enumerate(lanes):
            said = [("mark", "<think>"), ("thought", "Paris?"), ("mark", "</think>")]
            pieces = [Piece(*one) for one in [*said, ("text", '\n\n{"a": '), ("text", "1}")]]
            text = "".join(piece.text for piece in pieces)
            yield Delta(lane=place, text=text, pieces=tuple(pieces))
            yield Delta(lane=place, done=True, reason="stop", stats=Stats(tokens=2, seconds=1.0))

    monkeypatch.setattr(
        "studio.chat.resident_models.ResidentModels",
        lambda *_, **__: SimpleNamespace(stream=stream),
    )
    cases = [{"prompt": "a", "pattern": "^{"}, {"prompt": "b", "expected": "Paris"}]
    request = SuiteRequest.parse({"lanes": [{}, {"system": "b"}], "cases": cases})
    list(request.perform(home, home.run(1)))
    (first, *_), (second, *_) = (row["answers"] for row in read_results(home.run(1)))
    assert (first["text"], first["thought"]) == ('{"a": 1}', "Paris?")
    assert (first["json"], first["pattern"], second["contains"]) == (1.0, 1.0, 0.0)
    pairs = JudgeRequest(suite=1, lanes=("a", "b")).pairs(home)
    assert pairs[0].answers == ('{"a": 1}', '{"a": 1}')


def test_a_case_is_asked_after_the_turns_before_it(tmp_path, home, monkeypatch):
    asked = []

    def stream(lanes):
        asked.extend(lanes)
        return fake_stream(lanes)

    monkeypatch.setattr(
        "studio.chat.resident_models.ResidentModels",
        lambda *_, **__: SimpleNamespace(stream=stream),
    )
    turns = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "a"},
             {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
             {"role": "assistant", "content": "d"}]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f"}}]
    cases = parse_cases(json.dumps({"messages": turns, "tools": tools}))
    request = SuiteRequest.parse({"lanes": [{}, {"system": "Shout."}], "cases": cases})
    list(request.perform(home, tmp_path))
    assert asked[0].conversation() == turns[:-1] and list(asked[0].tools) == tools
    own = {"role": "system", "content": "Shout."}
    assert asked[1].conversation() == [own, *turns[1:-1]]  # the lane's own system prompt
    (row,) = read_results(tmp_path)
    assert (row["prompt"], row["expected"]) == ("c", "d")
    again = parse_cases(json.dumps({key: row[key] for key in ("prompt", "expected", "before")}))
    assert again[0]["before"] == cases[0]["before"]  # as the page writes it into the form


def test_answers_are_scored_and_kept_and_a_stopped_suite_goes_on(tmp_path, home, monkeypatch):
    monkeypatch.setattr(
        "studio.chat.resident_models.ResidentModels",
        lambda *_, **__: SimpleNamespace(stream=fake_stream),
    )
    request = SuiteRequest.parse({
        "lanes": [{}, {"stack": [{"name": "x"}]}],
        "cases": [{"prompt": "a", "expected": "Paris"}, {"prompt": "b", "pattern": "^L"},
                  {"prompt": "c", "json_schema": "{\"type\": \"object\"}"},
                  {"prompt": "d", "expected": "it is 3"}],
    })  # fmt: skip
    wishes = iter([None, "stop"])

    assert list(request.perform(home, tmp_path, lambda: next(wishes)))[-1].reason == "stopped"
    assert len(read_results(tmp_path)) == 1
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"half": ')  # a kill in the middle of a line
    with (tmp_path / RESULTS).open("ab") as file:
        file.write("é".encode()[:1])  # and of a character
    assert list(request.perform(home, tmp_path))[-1].reason == "completed"

    rows = read_results(tmp_path)
    assert [row["case"] for row in rows] == [0, 1, 2, 3]
    assert [answer["exact_match"] for answer in rows[0]["answers"]] == [0.0, 1.0]
    assert [answer["pattern"] for answer in rows[1]["answers"]] == [1.0, 0.0]
    assert rows[0]["answers"][1]["contains"] == 1.0 and rows[0]["answers"][1]["number"] is None
    assert rows[2]["answers"][0]["exact_match"] is None
    assert rows[2]["answers"][0]["json_schema"] == 0.0 == rows[3]["answers"][0]["number"]
    summary = summarise([lane.name for lane in request.lanes], rows)
    # Each lane is better on one case, and equal on two: half a win each.
    assert summary["wins"] == [[0, 2], [2, 0]]
    assert summary["means"][1]["exact_match"] == 0.5
    assert summary["means"][0]["tokens"] == 2
    json.dumps(summary)

"""Pairs and judged answers of every shape become records with one prompt; what cannot is said."""

import json

import pytest

from studio.data.conversation_records import (
    Judged,
    Pair,
    Problem,
    Row,
    content_hash,
    num_shared,
    prompt_hash,
)
from studio.data.dataset_report import RowCounter
from studio.data.find_dataset import find
from studio.data.import_dataset import check_file
from studio.data.prepare_run_data import prepare
from studio.data.recognise_format import recognise
from studio.data.row_converters import converter, record_converter
from studio.data.tokenise_rows import preferences
from studio.data.xray import xray
from studio.errors import DataError
from studio.spec import DataSource
from tests.studio.data.conftest import assert_same, write_rows

Q, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}
FIRST = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def parts(text, weight):
    role = "user" if text == "q" else "assistant"
    return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}


def records(row, **how):
    guess = recognise([Row(1, row)])
    return guess.mapping.format, record_converter(guess.mapping, **how)(Row(1, row))


def said(messages):
    return [(message["role"], message["content"]) for message in messages]


SCORED = [{"response": "bad", "overall_score": 2}, {"response": "so so", "overall_score": "5.5"},
          {"response": "good", "overall_score": 8.5}]  # fmt: skip
PAIRS = {
    "explicit prompt": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "explicit, messages": {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]},
    "implicit, messages": {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "prompt beside whole conversations": {
        "prompt": "q", "chosen": [Q, GOOD], "rejected": [Q, BAD], "score_chosen": 9.0,
        "score_rejected": 3.0,
    },
    "implicit, texts": {"chosen": "q good", "rejected": "q bad"},
    "transcript": {
        "chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"
    },
    "ShareGPT": {
        "conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "bad"}
    },
    "Alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "Alpaca, older": {"instruction": "q", "input": "", "output": ["good", "bad"]},
    "content parts": {
        "chosen_messages": [parts("q", 0.0), parts("good", 1.0)],
        "rejected_messages": [parts("q", 0.0), parts("bad", 1.0)],
    },
    "scored objects": {"instruction": "q", "completions": SCORED},
    "ranked": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "bad", "rank": 2.0}, {"answer": "good", "rank": 1.0}],
    },
    "scored texts": {"prompt": "q", "responses": ["so so", "good", "bad"], "scores": [1, 2, 0.5]},
    "repaired by hand": {
        "input": "q", "output": {"output": "bad", "rating": None},
        "repaired_output": {"output": "good"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_shape_have_one_prompt_and_two_answers(name):
    _, made = records(PAIRS[name])

    assert isinstance(made, list), made
    (pair,) = made
    assert isinstance(pair, Pair) and num_shared(pair) == 1
    assert said(pair.chosen.messages) == [("user", "q"), ("assistant", "good")]
    assert said(pair.rejected.messages) == [("user", "q"), ("assistant", "bad")]
    plain = converter(recognise([Row(1, PAIRS[name])]).mapping)(Row(1, PAIRS[name]))
    assert plain.messages == pair.chosen.messages  # what plain training reads


def test_an_answer_or_a_prompt_that_is_json_is_a_text():
    users = '[{"name": "A"}]'
    asked = [{"role": "user", "content": "q"}]
    for row in ({"prompt": users, "chosen": users, "rejected": "no"},
                {"prompt": "[{} as CSV please", "chosen": users, "rejected": "[{"},
                {"prompt": "q", "completion": users, "label": True},
                {"prompt": asked, "completion": users}):  # fmt: skip
        _, (made,) = records(row)
        talk = getattr(made, "chosen", getattr(made, "conversation", made))
        assert said(talk.messages) in (
            [("user", row["prompt"]), ("assistant", users)], [("user", "q"), ("assistant", users)],
        )  # fmt: skip
    _, made = records({"prompt": '[{"role": "user", "cont', "chosen": "a", "rejected": "b"})
    assert made.text == '"prompt" is text that is not valid JSON.'


CHAT = {
    "meta": {"message_id": "c"}, "data": {"rating": 1},
    "snapshot": {"chat": {"chat": {"history": {"currentId": "d", "messages": {
        "a": {"id": "a", "parentId": None, "role": "user", "content": "q", "childrenIds": ["c"]},
        "c": {"id": "c", "parentId": "a", "role": "assistant", "content": "good"},
        "d": {"id": "d", "parentId": "a", "role": "assistant", "content": "another"},
    }}}}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "path", "bad"),
    [
        ({"messages": [Q, GOOD], "label": True}, ["label"], False),
        ({"conversations": [HUMAN, GPT], "kto_tag": True}, ["kto_tag"], False),
        ({"prompt": "q", "completion": "good", "label": True}, ["label"], "no"),
        ({"input": "q", "output": {"output": "good", "rating": {"type": "five_star", "value": 4}}},
         ["output", "rating", "value"], 3),
        (CHAT, ["data", "rating"], -1),
    ],
)  # fmt: skip
def test_judged_answers_of_every_shape_keep_their_verdict(row, path, bad):
    format, (made,) = records(row)
    other = json.loads(json.dumps(row))
    inner = other
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = bad
    mapping = recognise([Row(1, row)]).mapping
    (worse,) = record_converter(mapping)(Row(1, other))

    assert format == "judged" and isinstance(made, Judged)
    assert said(made.conversation.messages) == [("user", "q"), ("assistant", "good")]
    assert (made.good, worse.good) == (True, False)
    assert prompt_hash(made) == prompt_hash(worse) and content_hash(made) != content_hash(worse)


def test_a_folder_of_rated_runs_is_read_whole(tmp_path):
    for number, stars in enumerate((5, 2, None)):
        rating = {"type": "five_star", "value": stars} if stars else None
        run = {"input": f"q{number}", "output": {"output": "a", "rating": rating}, "tags": []}
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "task_run.kiln").write_text(json.dumps(run, indent=1))
    (tmp_path / "task.kiln").write_text(json.dumps({"name": "t", "instruction": "i"}))

    report = check_file(tmp_path)

    assert (report.format, report.rows.read, report.rows.kept) == ("judged", 3, 2)
    assert report.problems[0].text == '"output.rating" is empty: the answer is not judged.'


def test_answers_in_the_shared_prompt_carry_no_loss():
    _, (pair,) = records({"chosen": [*FIRST, Q, GOOD], "rejected": [*FIRST, Q, BAD]})
    _, (one,) = records({"messages": [*FIRST, Q, GOOD], "label": False})

    assert pair.chosen.muted == pair.rejected.muted == one.conversation.muted == (0,)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": " "}, "empty_rejected"),
        ({"prompt": "q", "chosen": "good", "rejected": None}, "empty_rejected"),
        ({"prompt": "q", "chosen": "good", "rejected": "good "}, "equal_pair"),
        ({"chosen": "Paris", "rejected": "London"}, "no_prompt"),
        ({"chosen": [Q, GOOD], "rejected": [FIRST[0], BAD]}, "no_prompt"),
        ({"chosen": [Q, GOOD], "rejected": [Q, GOOD, FIRST[0], BAD]}, "no_prompt"),
        ({"chosen": [Q, GOOD, Q, BAD], "rejected": [Q, GOOD, FIRST[0], BAD]}, "no_prompt"),
        ({"instruction": "q", "completions": [*SCORED[:1], SCORED[0] | {"response": "x"}]},
         "margin"),
    ],
)  # fmt: skip
def test_what_is_not_a_pair_is_dropped_with_its_reason(row, kind):
    made = records(row)[1]

    assert isinstance(made, Problem) and made.kind == kind


def test_scored_answers_give_the_extremes_or_all_pairs_above_a_margin():
    row = PAIRS["scored objects"]

    made = records(row, pairs="all", margin=3)[1]
    answers = [(p.chosen.messages[-1]["content"], p.rejected.messages[-1]["content"]) for p in made]

    assert answers == [("good", "so so"), ("good", "bad"), ("so so", "bad")]
    assert (
        len(records(row, pairs="all", margin=3.4)[1]) == 2
    )  # 8.5 - 5.5 is too little, 5.5 - 2 not
    assert len(records(PAIRS["scored texts"], pairs="all")[1]) == 3


def test_the_report_counts_each_reason_and_warns_of_the_length(tmp_path):
    rows = [
        {"prompt": f"q{i % 12}", "chosen": f"{i} good" * 9, "rejected": f"{i}"} for i in range(20)
    ]
    rows += [{"prompt": "q", "chosen": "same", "rejected": "same"}] * 2
    rows += [{"prompt": "q", "chosen": "good", "rejected": ""}, rows[0]]

    report = check_file(write_rows(tmp_path / "rows.jsonl", rows))

    assert (report.rows.kept, report.rows.dropped, report.duplicates) == (21, 3, 1)
    assert "Chosen and rejected are equal: 2 rows are dropped." in report.warnings
    assert "The rejected answer is empty: 1 row is dropped." in report.warnings
    assert any("chosen answers are" in w and "times as long" in w for w in report.warnings)
    assert any(w.startswith("21 pairs; plain training") for w in report.warnings)


def test_a_loss_of_verdicts_takes_judged_rows_and_both_sides_of_pairs(tmp_path):
    def given(rows, **how):
        source = DataSource(path=write_rows(tmp_path / "rows.jsonl", rows))
        return [*preferences(find(source), source, RowCounter(), **how)]

    both = given([PAIRS["explicit prompt"]] * 2, verdicts=True)
    assert [(number, one.good) for number, one in both] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    assert [one for _, one in given([PAIRS["explicit prompt"]])] == [
        records(PAIRS["explicit prompt"])[1][0]
    ]
    judged = [{"messages": [Q, GOOD], "label": True}]
    with pytest.raises(DataError, match="is judged as good: this loss needs good and bad"):
        given(judged, verdicts=True)
    for rows in (judged, [{"messages": [Q, GOOD]}]):
        with pytest.raises(DataError, match=r"needs pairs .*train\.loss=sft"):
            given(rows)


def test_the_xray_shows_both_sides_with_their_masks_and_the_tokens_that_they_share(
    tmp_path, byte_backend
):
    rows = [{"chosen": [*FIRST, Q, GOOD], "rejected": [*FIRST, Q, {**GOOD, "content": "gone"}]}]
    source = DataSource(path=write_rows(tmp_path / "rows.jsonl", rows))
    backend = byte_backend(["</s>"])

    chosen, rejected = xray(source, backend, context_length=99, count=1)
    (plain,) = xray(source, backend, context_length=99, count=1, plain=True)

    def trained(row):
        return "".join(token.text for token in row.tokens if token.state == "trained")

    assert (chosen.side, rejected.side) == ("chosen", "rejected")
    assert "good" in trained(chosen) and "gone" in trained(rejected)
    both = trained(chosen) + trained(rejected)
    assert "b" not in both  # the earlier answer is part of the prompt
    assert "b" in trained(plain) and plain.tokens[0] == chosen.tokens[0]
    assert chosen.shared == rejected.shared
    assert "".join(t.text for t in chosen.tokens[: chosen.shared]).endswith("go")


def test_the_xray_of_pairs_has_the_tokens_and_labels_that_are_trained(tmp_path, byte_backend):
    rows = [{"prompt": "q" * n, "chosen": "good", "rejected": "b" * n} for n in (3, 30, 60)]
    source = DataSource(
        path=write_rows(tmp_path / "rows.jsonl", rows), max_length=48, validation_fraction=0
    )
    backend = byte_backend(["</s>"], eos="</s>")

    trained = prepare(source, backend, context_length=99, seed=0, rows="pairs").train
    shown = xray(source, backend, context_length=99, rows=[1, 2, 3])

    assert len(trained) == len(shown) == 6
    assert_same(shown, trained)


@pytest.mark.parametrize("rows", ["pairs", "judged"])
def test_prompts_of_compared_answers_carry_no_loss_whatever_is_trained(
    tmp_path, byte_backend, rows
):
    made = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
    path, backend = write_rows(tmp_path / "rows.jsonl", made), byte_backend(["</s>"], eos="</s>")
    how = {"context_length": 99, "seed": 0, "rows": rows}
    usual, whole = (
        prepare(DataSource(path=path, train_on=name), backend, **how)
        for name in ("assistant", "all")
    )
    assert [r.labels.tolist() for r in whole.train] == [r.labels.tolist() for r in usual.train]
    assert [text for text in whole.report.warnings if text not in usual.report.warnings] == [
        "Only answers carry loss where they are compared: data.train_on=all has no effect."
    ]
    shown = xray(DataSource(path=path, train_on="all"), backend, context_length=99, count=1)
    assert {token.state for token in shown[0].tokens} > {"trained"}


def test_the_real_preference_files_are_read_whole(real):
    data = real / "data"
    reports = {name: check_file(data / name) for name in
               ("dpo_zh_demo.json", "v1_dpo_demo.jsonl", "kto_en_demo.json")}  # fmt: skip

    assert [(r.format, r.rows.read, r.rows.kept) for r in reports.values()] == [
        ("preference", 160, 160), ("preference", 10, 10), ("judged", 160, 160)
    ]  # fmt: skip
    assert "86 answers are judged as good and 74 as bad." in reports["kto_en_demo.json"].warnings

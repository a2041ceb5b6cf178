"""Weights of answers in the loss: from a key of the message to the weight of each token."""

import json

import numpy as np
import pytest

from studio.data.conversation_records import Row
from studio.data.import_dataset import _plain
from studio.data.prepare_run_data import prepare
from studio.data.recognise_format import recognise
from studio.data.row_converters import converter, record_converter
from studio.data.xray import xray
from studio.spec import DataSource
from ui.cli import print_library

ASK = {"role": "user", "content": "q"}
THREE = [ASK, {"role": "assistant", "content": "half", "loss_weight": 0.5},
         ASK, {"role": "assistant", "content": "none", "weight": 0},
         ASK, {"role": "assistant", "content": "twice", "weight": 2}]  # fmt: skip
PLAIN = [ASK, {"role": "assistant", "content": "plain"}]


@pytest.fixture
def backend(byte_backend):
    return byte_backend(["</s>"], eos="</s>")


@pytest.fixture
def source(tmp_path):
    def write(*rows, **how):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        return DataSource(path=str(path), validation_fraction=0, **how)

    return write


def weighed(backend, example):
    """Return the trained texts of an example with the weight of each."""
    weights = np.ones(len(example.labels)) if example.weights is None else example.weights
    found: list[list] = []
    for at, label in enumerate(example.labels.tolist()):
        if label < 0:
            continue
        if not found or at != found[-1][2] or weights[at] != found[-1][1]:
            found.append([[], float(weights[at]), at])
        found[-1][0].append(label)
        found[-1][2] = at + 1
    return [(backend.core.decode(ids, skip_special_tokens=False), w) for ids, w, _ in found]


@pytest.mark.parametrize("at_home", [True, False])
def test_every_token_of_an_answer_has_its_weight_and_the_report_says_so(
    backend, source, home, at_home
):
    made = prepare(source(PLAIN, THREE, PLAIN), backend, context_length=512, seed=0,
                   home=home if at_home else None)  # fmt: skip

    assert [weighed(backend, made.train[i]) for i in (0, 2)] == [[("plain</s>", 1.0)]] * 2
    assert weighed(backend, made.train[1]) == [("half</s>", 0.5), ("twice</s>", 2.0)]
    assert "2 answers have a loss weight of their own in the file, from 0.5 to 2." in (
        made.report.warnings
    )


def test_rows_without_weights_have_none_and_no_file_of_them(backend, source, home):
    made = prepare(source(PLAIN), backend, context_length=512, seed=0, home=home)

    assert made.train[0].weights is None
    assert not [*home.datasets.glob(".tokens/*/weights*")]


@pytest.mark.parametrize(("limit", "left"), [(20, [("half</s>", 0.5)]), (9, [("twic", 2.0)])])
def test_a_row_that_is_cut_keeps_the_weights_of_what_is_left(backend, source, limit, left):
    rows = source(THREE if limit == 20 else [ASK, {**THREE[-1], "content": "twice" * 9}])
    example = prepare(rows, backend, context_length=limit, seed=0).train[0]

    assert len(example.weights) == len(example.input_ids) == limit
    got = weighed(backend, example)
    assert [(text[:4] if limit == 9 else text, weight) for text, weight in got][:1] == left


@pytest.mark.parametrize(
    ("train_on", "texts"),
    [
        ("last", [("twice</s>", 2.0)]),
        ("all", [("half</s>", 0.5), ("none</s>", 0.0), ("twice</s>", 2.0)]),
    ],
)
def test_a_weight_is_that_of_its_answer_whatever_else_is_trained(backend, source, train_on, texts):
    rows = source(THREE, train_on=train_on)
    example = prepare(rows, backend, context_length=512, seed=0).train[0]

    assert [one for one in weighed(backend, example) if one[1] != 1] == texts


def test_the_xray_shows_the_weights(backend, source, capsys):
    [row] = xray(source(THREE), backend, context_length=512)

    texts = ["".join(t.text for t in row.tokens[w.start : w.stop]) for w in row.weights]
    assert texts == ["half</s>", "twice</s>"]
    assert [w.weight for w in row.weights] == [0.5, 2.0]
    print_library.xray([row.model_dump(mode="json")])
    first = row.weights[0]
    shown = capsys.readouterr().out
    assert f"tokens {first.start + 1} to {first.stop}: loss weight 0.5" in shown


@pytest.mark.parametrize("weight", [-1, 101, "0.5", float("nan"), [1]])
def test_a_weight_that_is_no_usable_number_is_refused(weight):
    row = Row(1, {"messages": [ASK, {**PLAIN[1], "loss_weight": weight}]})

    made = converter(recognise([row]).mapping)(row)

    assert made.text == f"Message 2 has the loss_weight {weight}: use a number from 0 to 100."


@pytest.mark.parametrize(
    ("train", "muted", "unread"),
    [(False, (0,), ()), (0, (0,), ()), (0.0, (0,), ()), ("false", (0,), ()), (True, (), ()),
     (1, (), ()), (None, (), ()), ("gsm8k", (), ("train",))],
)  # fmt: skip
def test_an_answer_that_is_marked_as_not_trained_is_muted_or_the_mark_named(train, muted, unread):
    row = Row(1, {"messages": [ASK, {**PLAIN[1], "train": train}]})

    made = converter(recognise([row]).mapping)(row)

    assert (made.muted, made.unread) == (muted, unread)


def test_a_mix_keeps_weights():
    row = Row(1, {"messages": THREE})
    talk = converter(recognise([row]).mapping)(row)

    again = Row(1, _plain(talk)[1])
    assert converter(recognise([again]).mapping)(again).weights == talk.weights == (
        (0, 0.5), (2, 2.0),
    )  # fmt: skip


def test_losses_of_preferences_refuse_them():
    sides = {"chosen": {**PLAIN[1], "loss_weight": 0.5}, "rejected": {**PLAIN[1], "content": "b"}}
    row = Row(1, {"prompt": [ASK], **{side: [one] for side, one in sides.items()}})

    made = record_converter(recognise([row]).mapping)(row)

    assert made.kind == "weight" and "0.5" in made.text

"""Held-out rows: what belongs together is on one side, a stored split holds, draws are seeded."""

import numpy as np
import pytest

from studio.data.curate_dataset import Split, apply_step
from studio.data.import_dataset import Source, import_dataset, mix
from studio.data.prepare_run_data import MAX_VALIDATION, drawn, prepare
from studio.data.xray import xray
from studio.evaluation.forgetting import MAX_ROWS, general_set
from studio.models.loading import load
from studio.spec import DataSource, ModelSource
from tests.studio.data.conftest import write_rows
from tests.studio.data.families import FAMILIES, answer, user


@pytest.fixture
def backend(byte_backend):
    return byte_backend(["</s>"], eos="</s>")


def pairs(count, start=0):
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(start, start + count)]


def chats(count, name=""):
    thought = answer("Yes.") | {"reasoning_content": "So it is."}
    return [{"messages": [user(f"{name} {i}?"), thought, user("Sure?"), thought, user("Really?"),
                          thought]} for i in range(count)]  # fmt: skip


def rows_of(examples):
    return {example.row for example in examples}


@pytest.mark.parametrize("fraction", [0.05, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_turns_of_one_conversation_are_on_one_side(
    home, tmp_path, byte_backend, mixed, fraction
):
    name = write_rows(tmp_path / "a.jsonl", chats(12, "a"))
    if mixed:
        other = write_rows(tmp_path / "b.jsonl", chats(12, "b"))
        name = mix(home, [Source(name, 1), Source(other, 1)]).meta.name
    source = DataSource(path=name, thoughts="turns", validation_fraction=fraction)

    made = prepare(source, FAMILIES["Qwen 3"].backend(byte_backend), context_length=256, seed=0,
                   home=home)  # fmt: skip

    assert not rows_of(made.train) & rows_of(made.validation)
    assert len(made.train) + len(made.validation) == 3 * (24 if mixed else 12)
    assert len(made.validation) % 3 == 0 and made.validation


@pytest.mark.parametrize(("count", "apart"), [(40, True), (3, False)])
def test_windows_of_a_text_are_on_one_side_where_a_whole_text_can_be_held_out(
    tmp_path, backend, count, apart
):
    texts = [" ".join(f"the word {i}.{n}" for n in range(30)) for i in range(count)]
    path = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])

    made = prepare(DataSource(path=path), backend, context_length=8, seed=0)

    assert made.validation and len(made.validation) <= max(1, 0.1 * len(made.train))
    assert bool(rows_of(made.train) & rows_of(made.validation)) != apart


@pytest.fixture
def split(home, tmp_path):
    """A dataset of forty rows, of which ten are held out by a stored split; their numbers."""
    import_dataset(home, DataSource(path=write_rows(tmp_path / "a.jsonl", pairs(40))), name="whole")
    made = apply_step(home, "whole", Split(count=10, seed=1), new_name="split")
    return {row.number for row in made.rows() if row.part == "validation"}


def test_a_stored_split_holds_where_other_rows_evaluate(home, tmp_path, backend, split):
    other = write_rows(tmp_path / "b.jsonl", pairs(5, start=100))

    made = prepare(DataSource(path="split", validation_path=other), backend, context_length=64,
                   seed=0, home=home)  # fmt: skip

    assert rows_of(made.train) == {*range(1, 41)} - split
    assert len(made.validation) == 5
    assert any("10 rows are held out by the dataset's own split" in w for w in made.report.warnings)


def test_a_validation_file_with_a_split_evaluates_on_its_held_out_rows(
    home, tmp_path, backend, split
):
    train = write_rows(tmp_path / "b.jsonl", pairs(50, start=100))
    for path, count in ((train, 50), ("split", 30)):
        made = prepare(DataSource(path=path, validation_path="split"), backend, context_length=64,
                       seed=0, home=home)  # fmt: skip
        assert rows_of(made.validation) == split and len(made.train) == count
        assert made.report.overlap == 0


def test_without_a_split_every_row_is_there(home, backend, split):
    made = prepare(DataSource(path="split"), backend, context_length=64, seed=0, home=home,
                   split=False)  # fmt: skip

    assert (len(made.train), len(made.validation)) == (40, 0)
    assert not any("no evaluation loss" in warning for warning in made.report.warnings)
    shown = xray(DataSource(path="split"), backend, context_length=64, home=home, pick="longest",
                 count=40)  # fmt: skip
    assert {row.row for row in shown} == {*range(1, 41)}
    general = general_set(load(ModelSource(), "cpu"), home, "split")
    assert len(general.rows) == 40


def test_too_many_evaluation_rows_are_drawn_by_the_seed_with_a_note(tmp_path, backend):
    train = write_rows(tmp_path / "a.jsonl", pairs(20))
    other = write_rows(tmp_path / "b.jsonl", pairs(1000, start=100))
    held = []
    for seed in (1, 1, 2):
        made = prepare(DataSource(path=train, validation_path=other), backend, context_length=64,
                       seed=seed)  # fmt: skip
        held.append([example.row for example in made.validation])

    assert held[0] == held[1] != held[2]
    assert len(held[0]) == MAX_VALIDATION and max(held[0]) > 900, "not the first ones"
    assert "The evaluation takes 256 of 1,000 rows, drawn by the seed." in made.report.warnings


def test_the_first_held_out_rows_are_a_sample_of_all_of_them(tmp_path, backend):
    path = write_rows(tmp_path / "a.jsonl", pairs(2000))

    made = prepare(DataSource(path=path), backend, context_length=64, seed=0)

    topics = {example.row // 500 for example in made.validation[:16]}
    assert topics == {0, 1, 2, 3}, "a file sorted by topic"


def test_a_draw_keeps_pairs_together_and_takes_each_source_of_a_mix_in_turn(
    home, tmp_path, backend
):
    sides = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(50)]
    path = write_rows(tmp_path / "p.jsonl", sides)
    made = prepare(DataSource(path=path), backend, context_length=64, seed=0, rows="pairs",
                   split=False)  # fmt: skip
    few = drawn(made.train, 7, 0, made.rows_per_example)
    assert [example.good for example in few] == [True, False] * 3
    assert [few[i].row for i in (0, 2, 4)] == [few[i].row for i in (1, 3, 5)]

    a, b = (write_rows(tmp_path / f"{n}.jsonl", pairs(count, start)) for n, count, start in
            (("a", 90, 0), ("b", 10, 500)))  # fmt: skip
    mix(home, [Source(a, 9), Source(b, 1)], name="both")
    both = prepare(DataSource(path="both"), backend, context_length=64, seed=0, home=home,
                   split=False)  # fmt: skip
    sources = [example.source for example in drawn(both.train, 8, 0)]
    assert sources.count(a) == sources.count(b) == 4


def test_general_texts_of_a_dataset_are_drawn_from_all_of_it(home, tmp_path):
    path = write_rows(tmp_path / "g.jsonl", pairs(500))

    general = general_set(load(ModelSource(), "cpu"), home, path)

    assert len(general.rows) == MAX_ROWS and max(row.row for row in general.rows) > 400


def test_held_out_lines_of_a_text_are_in_no_window_that_trains(home, tmp_path, backend):
    lines = [f"line-{i}-of-the-book" for i in range(5000)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    import_dataset(home, DataSource(path=str(tmp_path / "book.txt")), name="book")
    made = apply_step(home, "book", Split(count=500, seed=1), new_name="split")
    held = [row.values["text"] for row in made.rows() if row.part == "validation"]

    made = prepare(DataSource(path="split"), backend, context_length=64, seed=0, home=home)

    for part, expected in (
        (made.train, [line for line in lines if line not in {*held}]),
        (made.validation, held),
    ):
        tokens, order = part.tokens, np.sort(part.order)
        ids = np.concatenate([tokens.ids[tokens.starts[i] : tokens.starts[i + 1]] for i in order])
        assert backend.core.decode(ids.tolist(), skip_special_tokens=True).split("\n") == expected

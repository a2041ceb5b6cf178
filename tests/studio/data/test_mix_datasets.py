"""Parts and mixes: the same seed gives the same rows, shares hold, no row is repeated."""

import json
import re
import shutil
from collections import Counter

import pytest

from studio.data.curate_dataset import Drop, Split, apply_step
from studio.data.find_dataset import find
from studio.data.import_dataset import Source, import_dataset, mix, read_sources
from studio.data.prepare_run_data import prepare
from studio.data.recognise_format import guess_origin
from studio.data.row_converters import record_converter
from studio.data.snapshots import open_snapshot
from studio.errors import DataError
from studio.models.loading import tokenizer_at
from studio.spec import DataSource
from studio.starter import MODEL_DIR


def rows(tmp_path, name, items):
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(file)


def questions(tmp_path, name, count):
    items = [{"question": f"{name} {i}?", "answer": f"yes {i}"} for i in range(count)]
    return rows(tmp_path, name, items)


def lines(snapshot):
    return [row.line for row in snapshot.rows()]


def test_a_part_is_the_first_rows_or_drawn_by_seed_in_their_order(home, tmp_path):
    source = DataSource(path=questions(tmp_path, "q", 100))
    first = import_dataset(home, source, name="first", num_rows=7).snapshot
    assert lines(first) == [1, 2, 3, 4, 5, 6, 7]
    assert first.meta.step == {"kind": "part", "pick": "first", "rows": 7, "seed": 0}
    drawn = [
        lines(
            import_dataset(home, source, name=f"d{n}", num_rows=7, pick="random", seed=n).snapshot
        )
        for n in (1, 2)
    ]
    assert drawn[0] == sorted(set(drawn[0])) and len(drawn[0]) == 7 and drawn[0] != drawn[1]
    again = import_dataset(home, source, num_rows=7, pick="random", seed=1)
    assert again.already and again.snapshot.meta.name == "d1"
    assert import_dataset(home, source, name="all").snapshot.meta.rows == 100


@pytest.mark.parametrize(("pick", "read"), [("first", 19), ("random", 25)])
def test_a_part_counts_the_rows_that_cannot_be_read(home, tmp_path, pick, read):
    good = [json.dumps({"question": f"q {i}?", "answer": f"yes {i}"}) for i in range(15)]
    file = tmp_path / "half.jsonl"
    file.write_text("".join(f"{line}\n{{broken\n" for line in good))
    made = import_dataset(home, DataSource(path=str(file)), num_rows=10, pick=pick).snapshot.meta
    counts = made.findings.rows
    assert (counts.read, counts.kept, counts.dropped) == (read, 10, read - 10)
    assert any("rows are dropped" in warning for warning in made.findings.warnings)


def test_a_mix_counts_the_rows_of_each_source_that_cannot_be_used(home, tmp_path):
    empty = [{"question": f"e {i}?", "answer": ""} for i in range(4)]
    good = [{"question": f"g {i}?", "answer": f"yes {i}"} for i in range(6)]
    a, b = rows(tmp_path, "a", good + empty), questions(tmp_path, "b", 6)
    meta = mix(home, [Source(a, 1), Source(b, 1)]).meta
    assert [(one["of"], one["dropped"]) for one in meta.step["sources"]] == [(6, 4), (6, 0)]
    (warning,) = [one for one in meta.findings.warnings if "left out" in one]
    assert warning.startswith("4 rows of ") and "a.jsonl" in warning


def test_a_mix_keeps_shares_and_own_mappings_and_repeats_no_row(home, tmp_path):
    messages = [{"messages": [{"role": "user", "content": f"m{i}"},
                              {"role": "assistant", "content": f"a{i}"}]}
                for i in range(30)]  # fmt: skip
    chats = rows(tmp_path, "chats", messages)
    sources = [Source(questions(tmp_path, "q", 100), 2), Source(chats, 1)]
    made = mix(home, sources, name="both", seed=3)
    assert made.meta.rows == 90  # 30 of the smaller one are a third
    counts = {one["rows"] for one in made.meta.step["sources"]}
    assert counts == {60, 30} and made.meta.findings.rows.kept == 90
    values = [row.values for row in made.rows()]
    assert Counter(one["source"] for one in values) == {sources[0].name: 60, chats: 30}
    assert len({json.dumps(one["messages"]) for one in values}) == 90
    assert values != sorted(values, key=lambda one: one["source"])  # shuffled
    other = mix(home, sources, name="again", seed=3)
    assert [row.values for row in other.rows()] == values and other.meta.hash == made.meta.hash


@pytest.mark.parametrize(("weights", "wanted", "counts"), [
    ((1, 1), 5, [3, 2]), ((1, 1), 7, [4, 3]), ((1, 1, 1), 10, [4, 3, 3]), ((2, 1), 4, [3, 1]),
])  # fmt: skip
def test_a_mix_has_the_number_of_rows_that_is_asked_for(home, tmp_path, weights, wanted, counts):
    sources = [Source(questions(tmp_path, f"s{i}", 20), w) for i, w in enumerate(weights)]

    made = mix(home, sources, num_rows=wanted)

    assert [one["rows"] for one in made.meta.step["sources"]] == counts
    with pytest.raises(DataError, match="less than one row"):
        mix(home, [sources[0], Source(sources[1].name, 0.01)], num_rows=9)


def prepared(home, name, fraction=0.1, seed=0):
    source = DataSource(path=name, validation_fraction=fraction)
    return prepare(source, tokenizer_at(MODEL_DIR), context_length=64, seed=seed, home=home)


def test_each_source_of_a_mix_holds_out_its_share(home, tmp_path):
    a, b = questions(tmp_path, "large", 400), questions(tmp_path, "small", 20)
    mix(home, [Source(a, 20), Source(b, 1)], name="both")
    for name in ("both", apply_step(home, "both", Drop(rows=[1])).meta.name):
        made = prepared(home, name)
        assert {one.source for one in made.validation[:2]} == {a, b}, "the first of each in turn"
        held = Counter(one.source for one in made.validation)
        assert held[b] == 2 and held[a] == 40
        trained = Counter(one.source for one in made.train)
        assert made.sources == {one: (trained[one], held[one]) for one in (a, b)}
    assert prepared(home, a).sources == {} and prepared(home, a).train[0].source == ""


def test_a_row_of_two_sources_is_held_out_of_both(home, tmp_path):
    a, b = questions(tmp_path, "q", 40), str(tmp_path / "copy.jsonl")
    shutil.copy(a, b)
    mix(home, [Source(a, 1), Source(b, 1)], name="twice")
    made = prepared(home, "twice")
    held = {one.input_ids.tobytes() for one in made.validation}
    assert held and not held & {one.input_ids.tobytes() for one in made.train}


def test_pairs_are_mixed_with_pairs_only(home, tmp_path):
    pairs = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    a, b = rows(tmp_path, "a", pairs), rows(tmp_path, "b", pairs[:3])
    made = mix(home, [Source(a, 1), Source(b, 1)])
    assert made.meta.rows == 6 and made.meta.mapping.format == "preference"
    with pytest.raises(DataError, match="rows of one kind"):
        mix(home, [Source(a, 1), Source(questions(tmp_path, "q", 4), 1)])


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def talk(*contents):
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": talk("q", "a"), "tools": TOOLS},
        {"prompt": talk("q"), "chosen": talk("q", "a")[1:], "rejected": talk("q", "b")[1:],
         "tools": TOOLS},
        {"messages": talk("q", "a", "r", "b"), "label": True, "tools": TOOLS},
    ],
)  # fmt: skip
def test_a_mix_keeps_every_record_as_its_source_has_it(home, tmp_path, row):
    few = [{**row, "tools": None}] * 300 + [row]  # the first rows have no tools
    a, b = rows(tmp_path, "a", few), rows(tmp_path, "b", few)
    made = mix(home, [Source(a, 1), Source(b, 1)])

    def records(name):
        source = DataSource(path=name)
        origin = find(source, home)
        convert = record_converter(guess_origin(origin, source).mapping)
        found = (convert(item)[0] for item in origin.rows())
        return Counter(re.sub(r"line=\d+", "", repr(one)) for one in found)

    assert records(made.meta.name) == records(a) + records(b)


def test_a_text_file_is_not_mixed_line_by_line(home, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    with pytest.raises(DataError, match="is one long text, and a mix is made of rows"):
        mix(home, [Source(str(tmp_path / "a.txt"), 1), Source(questions(tmp_path, "q", 4), 1)])


def split_dataset(home, tmp_path, count=60):
    import_dataset(home, DataSource(path=questions(tmp_path, "q", count)), name="whole")
    made = apply_step(home, "whole", Split(count=10), new_name="split")
    return made, {row.values["question"] for row in made.rows() if row.part == "validation"}


def test_held_out_rows_stay_out_of_a_mix_which_says_so(home, tmp_path):
    _, held = split_dataset(home, tmp_path)
    made = mix(home, [Source("split", 1), Source(questions(tmp_path, "r", 50), 1)])
    asked = {row.values["messages"][0]["content"] for row in made.rows()}
    assert made.meta.rows == 100 and not asked & held
    assert any(
        '10 held-out rows of "split" are left out' in one for one in made.meta.findings.warnings
    )


@pytest.mark.parametrize("how", [{}, {"num_rows": 50}, {"num_rows": 50, "pick": "random"}])
def test_an_import_of_a_dataset_keeps_its_split_and_its_sources(home, tmp_path, how):
    _, held = split_dataset(home, tmp_path)
    again = import_dataset(home, DataSource(path="split"), name="again", **how).snapshot
    kept = {row.values["question"] for row in again.rows() if row.part == "validation"}
    assert kept == held & {row.values["question"] for row in again.rows()} and kept
    mix(home, [Source("split", 1), Source(questions(tmp_path, "r", 50), 1)], name="mixed")
    part = import_dataset(home, DataSource(path="mixed"), name="part", **how).snapshot
    assert part.meta.sources == open_snapshot(home, "mixed").meta.sources != ()
    assert len(part.sources().of_row) == part.meta.rows


def test_rows_of_several_files_are_drawn_in_their_order(home, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        questions(folder, name, 30)
    made = import_dataset(home, DataSource(path=str(folder)), num_rows=40, pick="random").snapshot
    first = [row.values["question"][0] for row in made.rows()]
    assert first == sorted(first)


def test_too_many_rows_name_the_source_and_what_is_possible(home, tmp_path):
    sources = [Source(questions(tmp_path, "q", 40), 3), Source(questions(tmp_path, "r", 5), 1)]
    with pytest.raises(DataError, match=r"5 usable rows.* need 10 of it: at most 20 rows"):
        mix(home, sources, num_rows=40)


@pytest.mark.parametrize("text", ["a", "a:0,b", ":2,b"])
def test_what_is_no_mix_is_refused(text):
    with pytest.raises(DataError):
        read_sources([text])


def test_sources_may_have_colons_in_their_names():
    assert read_sources(["starter:pirate:2", "b:0.5"]) == [("starter:pirate", 2.0), ("b", 0.5)]
    assert read_sources(["a:²,b"]) == [("a:²", 1.0), ("b", 1.0)]
    assert read_sources(["starter:pirate,b"]) == [("starter:pirate", 1.0), ("b", 1.0)]

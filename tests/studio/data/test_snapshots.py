"""Imported datasets: immutable, recognised, paged, with a way back to their parents."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from studio.data.column_mapping import Mapping
from studio.data.curate_dataset import (
    Deduplicate,
    Drop,
    Filter,
    Remap,
    Split,
    apply_step,
    parse_step,
)
from studio.data.find_dataset import find, origin_of
from studio.data.import_dataset import check_file, import_dataset
from studio.data.prepare_run_data import prepare
from studio.data.snapshots import (
    delete_snapshot,
    export_rows,
    open_snapshot,
    restore_snapshot,
    snapshots,
)
from studio.errors import DataError
from studio.home import is_whole, publishing
from studio.spec import DataSource


@pytest.fixture
def numbers(tmp_path):
    """Ten rows, of which the last two repeat the first two."""
    rows = [{"q": f"what is {i}?", "a": f"it is {i}", "topic": f"t{i % 3}", "n": i}
            for i in range(8)]  # fmt: skip
    rows += [dict(rows[0]), dict(rows[1])]
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MAPPING = Mapping(format="question_answer", columns={"question": "q", "answer": "a"})


def brought_in(home, path, **kwargs):
    return import_dataset(home, DataSource(path=str(path)), mapping=MAPPING, **kwargs).snapshot


def test_a_snapshot_holds_the_rows_the_mapping_and_where_they_came_from(home, numbers):
    snapshot = brought_in(home, numbers)

    meta = open_snapshot(home, "numbers").meta
    assert (meta.rows, meta.mapping, meta.original.name) == (10, MAPPING, "numbers.jsonl")
    assert meta.findings.rows.kept == 10 and meta.findings.duplicates == 2
    assert [r.values["n"] for r in snapshot.rows()] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert is_whole(snapshot.folder)


def test_the_same_file_twice_is_recognised_whatever_its_name(home, numbers, tmp_path):
    first = brought_in(home, numbers)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(numbers.read_bytes())

    again = import_dataset(home, DataSource(path=str(copy)), mapping=MAPPING)

    assert again.already and again.snapshot.meta.hash == first.meta.hash
    assert len(snapshots(home)) == 1
    swapped = Mapping(format="question_answer", columns={"question": "a", "answer": "q"})
    other = import_dataset(home, DataSource(path=str(numbers)), mapping=swapped).snapshot
    assert other.meta.hash != first.meta.hash, "another mapping"
    copy.write_text('{"question": "q", "answer": ""}\n')
    with pytest.raises(DataError):
        import_dataset(home, DataSource(path=str(copy)))
    assert len(list(home.datasets.iterdir())) == 2, "a refused file leaves nothing behind"


def test_two_imports_at_once_take_two_names(home, numbers):
    with ThreadPoolExecutor(1) as pool:
        writing, go_on = threading.Event(), threading.Event()

        def first() -> None:
            with publishing(home.datasets / "numbers"):
                writing.set()
                go_on.wait(20)

        done = pool.submit(first)
        writing.wait(20)
        assert brought_in(home, numbers).meta.name == "numbers-2"
        go_on.set()
        done.result()
    assert {one.name for one in home.datasets.iterdir()} == {"numbers", "numbers-2"}


def test_pages_read_any_part_of_the_rows(home, numbers):
    snapshot = brought_in(home, numbers)

    assert [r.number for r in snapshot.page(3, 4)] == [4, 5, 6, 7]
    assert [r.values["n"] for r in snapshot.page(8, 99)] == [0, 1]
    assert snapshot.page(10, 5) == []


def test_a_run_trains_on_the_snapshot_and_names_its_hash(home, numbers, byte_backend):
    snapshot = brought_in(home, numbers)
    numbers.unlink()

    made = prepare(DataSource(path="numbers"), byte_backend(["</s>"], eos="</s>"),
                   context_length=64, seed=0, home=home)  # fmt: skip

    assert made.data_hash == snapshot.meta.hash
    assert (made.report.rows.kept, made.report.format) == (10, "question_answer")


def test_a_stored_split_is_the_one_that_is_used(home, numbers, byte_backend):
    brought_in(home, numbers)
    split = apply_step(home, "numbers", Split(count=3, group_by="topic", seed=1))

    made = prepare(DataSource(path=split.meta.name), byte_backend(["</s>"], eos="</s>"),
                   context_length=64, seed=5, home=home)  # fmt: skip

    held = {e.row for e in made.validation}
    stored = {r.number for r in split.rows() if r.part == "validation"}
    assert held == stored and 0 < len(held) <= 3
    topics = {r.values["topic"] for r in split.rows() if r.part == "validation"}
    assert all((r.values["topic"] in topics) == (r.part == "validation") for r in split.rows())


def test_each_step_makes_a_new_snapshot_that_names_its_parent(home, numbers):
    first = brought_in(home, numbers)
    unique = apply_step(home, "numbers", Deduplicate(), new_name="unique")
    small = apply_step(home, "unique", Filter(column="n", operator="less", value="4"))
    picked = apply_step(home, small.meta.name, Drop(rows=(1, 3), keep=True))

    assert [s.meta.rows for s in (first, unique, small, picked)] == [10, 8, 4, 2]
    assert [r.values["n"] for r in picked.rows()] == [0, 2]
    parents = [s.meta.parent for s in (unique, small, picked)]
    assert [one.hash for one in parents] == [s.meta.hash for s in (first, unique, small)]
    assert open_snapshot(home, "numbers").meta.rows == 10
    assert picked.meta.step == {"kind": "drop", "rows": [1, 3], "keep": True}


def test_steps_refuse_what_cannot_be(home, numbers):
    brought_in(home, numbers)

    with pytest.raises(DataError, match='no column "m"'):
        apply_step(home, "numbers", Filter(column="m"))
    with pytest.raises(DataError, match="no row 11"):
        apply_step(home, "numbers", Drop(rows=(11,)))
    with pytest.raises(DataError, match="between 1 and 9 rows"):
        apply_step(home, "numbers", Split(count=10))
    with pytest.raises(DataError, match='The filter keeps none of the 10 rows of "numbers"'):
        apply_step(home, "numbers", Filter(min_characters=10_000))
    with pytest.raises(DataError, match='no step "explode". Known: dedupe, drop, filter'):
        parse_step({"kind": "explode"})
    with pytest.raises(
        DataError, match="operator is 'odd': input should be 'equals', 'not_equals'"
    ):
        parse_step({"kind": "filter", "operator": "odd"})
    assert len(snapshots(home)) == 1


def test_near_duplicates_are_dropped_when_asked(home, tmp_path):
    story = "the quick brown fox jumps over the lazy dog and runs far away into the deep dark wood"
    clause = "春天来了，山上的桃花都开了，孩子们在河边放风筝，老人坐在树下下棋"
    rows = [story, story.replace("deep dark wood", "deep dark forest"), "something else entirely",
            clause, clause.replace("下棋", "下茶")]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    import_dataset(home, DataSource(path=str(path)))

    assert apply_step(home, "a", Deduplicate()).meta.rows == 5
    assert apply_step(home, "a", Deduplicate(near=True)).meta.rows == 3


SYSTEM = {"role": "system", "content": " ".join(f"You keep rule {n}." for n in range(400))}


def asked(question, reply, *more, **keys):
    return {"messages": [SYSTEM, {"role": "user", "content": question},
                         {"role": "assistant", "content": reply, **keys}, *more]}  # fmt: skip


def called(city):
    call = {"function": {"name": "weather", "arguments": {"city": city, "day": f"{city}day"}}}
    return {"tool_calls": [{"id": f"call_{city}", **call}]}


@pytest.mark.parametrize(
    ("rows", "repeats"),
    [
        ([asked(f"What is {word}?", f"It is a {word} of {word}s.")
          for word in ("fig", "rose", "pear", "oak")], 0),
        ([asked("Look.", "", **called(city)) for city in ("Oslo", "Rome", "Bern")], 0),
        ([asked("Look.", "", **called("Oslo"))] * 3, 2),
        ([asked("Tell me all about the red fox.", "It is a red fox in a wood.")] * 3, 2),
        ([{"question": f"q{n} is what it is about?", "answer": answer}
          for n, answer in enumerate(["ok then", "", " ", ""])], 0),
        ([{"question": "?", "answer": answer} for answer in ("!", "…", "🙂", "🙂")], 1),
    ],
)  # fmt: skip
def test_near_duplicates_are_alike_in_what_is_asked_and_answered(home, tmp_path, rows, repeats):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = import_dataset(home, DataSource(path=str(path))).snapshot

    assert made.meta.findings.near_duplicates == repeats
    assert apply_step(home, "a", Deduplicate(near=True)).meta.rows == len(rows) - repeats


@pytest.mark.parametrize(
    ("column", "operator", "value", "kept"),
    [
        ("flag", "equals", "true", [0]), ("flag", "equals", "True", [0]),
        ("flag", "not_equals", "true", [1, 2]), ("flag", "contains", "fal", [1]),
        ("n", "equals", "4", [0, 2]), ("n", "equals", "4.0", [0, 2]), ("n", "greater", "4", [1]),
        ("n", "not_equals", "four", [0, 1, 2]), ("tags", "contains", '["a","b"]', [0]),
    ],
)  # fmt: skip
def test_filters_compare_values_and_not_how_python_writes_them(
    home, tmp_path, column, operator, value, kept
):
    cells = [{"flag": True, "n": 4, "tags": ["a", "b"]}, {"flag": False, "n": 4.5}, {"n": 4.0}]
    rows = [{"question": f"q{n}", "answer": "a", **cell} for n, cell in enumerate(cells)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_dataset(home, DataSource(path=str(path)))
    made = apply_step(home, "a", Filter(column=column, operator=operator, value=value))

    assert [int(row.values["question"][1:]) for row in made.rows()] == kept


def test_a_column_may_appear_late(home, tmp_path):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(300)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "topic": "t"}]))
    import_dataset(home, DataSource(path=str(path)))

    assert apply_step(home, "a", Filter(column="topic")).meta.rows == 1


def test_a_corrected_mapping_is_a_step_too(home, numbers):
    brought_in(home, numbers)
    mapping = Mapping(
        format="labelled",
        columns={"label": "topic"},
        templates={"text": "{q} ({n})"},
        constants={"system": "Sort."},
    )

    made = apply_step(home, "numbers", Remap(mapping=mapping))

    assert made.meta.mapping == mapping and made.meta.findings.format == "labelled"


def test_csv_export_neutralises_formulas(home, tmp_path):
    path = tmp_path / "a.jsonl"
    large = 123456789012345678901234567890
    row = {"question": "=1+1", "answer": "-1+x", "n": large, "a": -1, "b": "-0.5", "c": ["中"]}
    path.write_text(json.dumps(row) + "\n")
    snapshot = import_dataset(home, DataSource(path=str(path))).snapshot

    assert export_rows(snapshot, tmp_path / "out.csv") == 1
    assert (tmp_path / "out.csv").read_text("utf-8").splitlines() == [
        "question,answer,n,a,b,c", f"""'=1+1,'-1+x,{large},-1,-0.5,"[""中""]\""""
    ]  # fmt: skip
    export_rows(snapshot, tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == json.loads(path.read_text())
    with pytest.raises(DataError, match=r"\.jsonl or \.csv"):
        export_rows(snapshot, tmp_path / "out.exe")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".", "A B", "nope"])
def test_names_cannot_leave_the_home(home, name):
    with pytest.raises(DataError, match="no imported dataset"):
        delete_snapshot(home, name)


def test_a_deleted_dataset_is_restored_and_its_name_never_means_one_of_the_hub(home, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    import_dataset(home, DataSource(path=str(path)))
    gone = delete_snapshot(home, "mine")
    assert snapshots(home) == [] and origin_of("mine", home).kind == "missing"
    with pytest.raises(DataError, match='dataset "mine" was deleted.*`studio data undo mine`'):
        find(DataSource(path="mine"), home)
    assert restore_snapshot(home).meta.rows == 1 and origin_of("mine", home).kind == "dataset"

    gone = delete_snapshot(home, "mine")
    assert origin_of("mine", home).kind == "missing" and origin_of("other", home).kind == "hub"
    shutil.rmtree(home.trash / gone.token)  # the trash is emptied
    assert origin_of("mine", home).kind == "hub"
    with pytest.raises(DataError, match="nothing to restore"):
        restore_snapshot(home, "mine")
    import_dataset(home, DataSource(path=str(path)))
    gone = delete_snapshot(home, "mine")
    import_dataset(home, DataSource(path=str(path)))
    with pytest.raises(DataError, match="another one has that name"):
        restore_snapshot(home, gone.token)


def test_an_imported_text_file_stays_one_text(home, tmp_path, byte_backend):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    import_dataset(home, DataSource(path=str(path)))
    backend = byte_backend(["</s>"], eos="</s>")

    from_file = prepare(DataSource(path=str(path)), backend, context_length=64, seed=0)
    imported = prepare(DataSource(path="a"), backend, context_length=64, seed=0, home=home)

    assert from_file.train[0].input_ids.tolist() == imported.train[0].input_ids.tolist()
    assert check_file("a", home=home).rows.kept == 3

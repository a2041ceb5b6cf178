"""Folders with splits: only the split that was asked for is read, as on the hub."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.job_inputs import admit
from studio.data.dataset_requests import ImportRequest
from studio.data.find_dataset import find
from studio.data.prepare_run_data import prepare
from studio.errors import DataError
from studio.home import open_home
from studio.spec import DataSource, RunSpec

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: parts/fit-*
  - split: validation
    path: ["parts/check.jsonl"]
- config_name: small
  data_files: "parts/small/**"
---
# A dataset
"""


def write(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"{name}?", "answer": f"{name}."} for name in names]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions(folder, **options):
    origin = find(DataSource(path=str(folder), **options))
    return [row.values["question"] for row in origin.rows()], origin.notes


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train.jsonl", "validation.jsonl"),
        ("train/a.jsonl", "valid/a.jsonl"),
        ("my_train_v2.jsonl", "my_dev_v2.jsonl"),
        ("rows.jsonl", "val.jsonl"),
    ],
)
def test_only_the_split_that_was_asked_for_is_read(tmp_path, names):
    for name, text in zip(names, ("train", "held"), strict=True):
        write(tmp_path / name, text)

    assert questions(tmp_path)[0] == ["train?"]
    assert questions(tmp_path, split="validation")[0] == ["held?"]
    assert "data.validation_split=validation" in questions(tmp_path)[1][0]
    with pytest.raises(DataError, match="its splits are train, validation"):
        questions(tmp_path, split="test")


def test_files_whose_names_tell_no_split_are_all_read(tmp_path):
    for name in ("a.jsonl", "contest.jsonl", "data-00000-of-00001.jsonl"):
        write(tmp_path / name, name)

    found, notes = questions(tmp_path)

    assert len(found) == 3 and not notes


def test_files_beside_a_named_split_are_left_out_with_a_note(tmp_path):
    write(tmp_path / "train.jsonl", "train")
    write(tmp_path / "extra.jsonl", "extra")

    assert questions(tmp_path) == (
        ["train?"], ("1 file of the folder belong to no split and are not read.",)
    )  # fmt: skip


def test_a_dataset_card_names_the_files_of_each_split(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    for name in ("fit-1", "fit-2", "check", "other"):
        write(tmp_path / "parts" / f"{name}.jsonl", name)
    write(tmp_path / "parts/small/deep/a.jsonl", "small")

    assert questions(tmp_path)[0] == ["fit-1?", "fit-2?"]
    assert questions(tmp_path, split="validation")[0] == ["check?"]
    assert questions(tmp_path, subset="small")[0] == ["small?"]
    with pytest.raises(DataError, match='no configuration "large".*default, small'):
        questions(tmp_path, subset="large")


def test_a_card_with_several_configurations_asks_for_one(tmp_path):
    (tmp_path / "README.md").write_text(CARD.replace("default", "large"))
    write(tmp_path / "parts/fit-1.jsonl", "a")

    with pytest.raises(DataError, match=r"several configurations: set data.subset.*large, small"):
        questions(tmp_path)


def test_a_card_cannot_reach_outside_its_folder(tmp_path):
    write(tmp_path / "secret.jsonl", "secret")
    inside = tmp_path / "set"
    write(inside / "train.jsonl", "train")
    card = "---\nconfigs:\n- config_name: default\n  data_files: ../secret.jsonl\n---\n"
    (inside / "README.md").write_text(card)

    assert questions(inside)[0] == ["train?"]


def test_folders_of_save_to_disk_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"{i}?", "answer": "."} for i in range(5)]
    whole = datasets.Dataset.from_list(rows)
    whole.select([3, 1]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([0])).save_to_disk(tmp_path / "two")

    assert questions(tmp_path / "one")[0] == ["3?", "1?"]
    assert len(questions(tmp_path / "two")[0]) == 5
    assert questions(tmp_path / "two", split="test")[0] == ["0?"]


def test_another_split_evaluates_and_is_never_trained(tmp_path, byte_backend):
    write(tmp_path / "train.jsonl", "a", "b")
    write(tmp_path / "test.jsonl", "c")
    source = DataSource(path=str(tmp_path), validation_split="test")

    made = prepare(source, byte_backend(["<e>"], eos="<e>"), context_length=99, seed=0)

    assert [len(made.train), len(made.validation)] == [2, 1]


def test_a_single_file_has_no_splits(tmp_path):
    write(tmp_path / "a.jsonl", "a")

    with pytest.raises(DataError, match=r'a\.jsonl has no split "test"'):
        questions(tmp_path / "a.jsonl", split="test")


def test_a_split_that_is_missing_is_refused_before_the_run(tmp_path):
    home = open_home(tmp_path / "home")
    write(tmp_path / "data/train.jsonl", "a")
    data = {"path": str(tmp_path / "data"), "validation_split": "test"}

    with pytest.raises(DataError, match='no split "test"'):
        admit(RunSpec.parse({"data": data}), home)
    write(tmp_path / "data/test.jsonl", "b")
    assert admit(RunSpec.parse({"data": data}), home).data.validation_split == "test"


@pytest.mark.parametrize("card", [
    "date: 2024-13-45", f"number: {'1' * 5000}", f"configs: {'[' * 3000}",
    "configs: 5", "configs:\n- data_dir: gone",
    'configs:\n- data_dir: "a\\0b"', "configs:\n- data_dir: [1]",
])  # fmt: skip
def test_a_card_that_says_nothing_leaves_the_files_as_they_are(tmp_path, card):
    write(tmp_path / "train.jsonl", "a")
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    assert questions(tmp_path)[0] == ["a?"]


@pytest.mark.parametrize(
    "saved", ['{"splits": ["train", "gone"]}', '{"splits": ["test"]}', "[" * 6000]
)
def test_saved_splits_without_files_are_not_there(tmp_path, saved):
    write(tmp_path / "test.jsonl", "a")
    (tmp_path / "dataset_dict.json").write_text(saved)
    (tmp_path / "test").mkdir()
    (tmp_path / "test/state.json").write_text('{"_data_files": 5}')
    (tmp_path / "test/dataset_info.json").write_text("{}")
    assert questions(tmp_path, split="test")[0] == ["a?"]


def test_an_import_of_a_split_does_not_ask_for_another(tmp_path, home):
    write(tmp_path / "data/test.jsonl", "b")
    data = DataSource(path=str(tmp_path / "data"), split="test")
    assert ImportRequest(data=data).checked(home).data == data


def test_links_of_the_hub_cache_are_read_and_others_are_counted_in_a_note(tmp_path):
    cache = tmp_path / "datasets--org--rows"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1f").write_text('{"question": "q", "answer": "a"}\n')
    (snapshot / "train.jsonl").symlink_to("../../blobs/1f")
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"question": "secret", "answer": "a"}\n')
    (tmp_path / "more").mkdir()

    origin = find(DataSource(path=str(snapshot)))
    assert [item.values["question"] for item in origin.rows()] == ["q"] and not origin.notes

    (snapshot / "other.jsonl").symlink_to(secret)
    (snapshot / "folder").symlink_to(tmp_path / "more")
    origin = find(DataSource(path=str(snapshot)))
    assert [item.values["question"] for item in origin.rows()] == ["q"]
    assert any("Links that lead out of the folder are not read: 2" in note for note in origin.notes)
    (snapshot / "train.jsonl").unlink()
    with pytest.raises(DataError, match="only links that lead out of it"):
        find(DataSource(path=str(snapshot)))

"""Before and inside a runner: what may enter the queue, and one attempt."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.device_placement import needed_bytes
from jobs.job_inputs import admit
from jobs.runner import as_studio_error
from studio.data.dataset_files import SMALL_BYTES, hash_files
from studio.data.import_dataset import import_dataset
from studio.data.model_tokenizer import backend_from_folder
from studio.data.prepare_run_data import first_report, prepare
from studio.errors import DataError, SpecError, Unreached
from studio.models.find_model import facts
from studio.spec import DataSource, RunSpec


def written(folder: Path, rows: list[dict]) -> RunSpec:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunSpec(data=DataSource(path=str(file), format="prompt_completion"))


def test_nothing_to_train_on_is_refused_and_one_row_is_enough(home, tmp_path):
    empty = [{"prompt": "a question", "completion": " "}] * 500
    with pytest.raises(DataError, match="None of the 500 rows"):
        admit(written(tmp_path, empty), home)
    spec = written(tmp_path, [*empty, {"prompt": "a question", "completion": "an answer"}])
    report = first_report(admit(spec, home), home)
    assert report is not None and report.rows.kept == 1


def test_an_imported_dataset_is_admitted_by_name(home, tmp_path, monkeypatch):
    import_dataset(home, DataSource(path="starter:pirate"), name="pirate")
    (tmp_path / "pirate").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of that name does not stand in its way
    spec = admit(RunSpec(data=DataSource(path="pirate")), home)
    assert spec.data.path == "pirate"
    report = first_report(spec, home)
    assert report is not None and report.trained_token_share > 0.5


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The bytes of each read of the data file of `written`."""
    counts: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            counts.append(super().readinto(buffer) or 0)
            return counts[-1]

    plain = Path.open

    def opened(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if self == tmp_path / "rows.jsonl" and mode == "rb":
            return io.BufferedReader(Counting(self))
        return plain(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", opened)
    return counts


def test_a_click_reads_the_first_rows_and_the_run_reads_the_bytes_twice(home, tmp_path, read):
    unused = "x" * 20_000
    spec = written(tmp_path, [{"prompt": "a", "completion": "b", "unused": unused}] * 1000)
    size, before = (tmp_path / "rows.jsonl").stat().st_size, time.time() - 60
    os.utime(tmp_path / "rows.jsonl", (before, before))
    read.clear()

    spec = admit(spec, home)
    assert needed_bytes(spec, home) > 0
    assert sum(read) < size / 2
    assert not (home.datasets / ".tokens").exists(), "the runner tokenises, not the page"
    read.clear()

    backend = backend_from_folder(facts(spec.model).path)
    found = prepare(spec.data, backend, context_length=512, seed=0, home=home)
    assert len(found.train) > 900
    assert 2 * size <= sum(read) < 2.3 * size, "once for the hash, once for the tokens"
    read.clear()

    again = prepare(spec.data, backend, context_length=512, seed=0, home=home)
    assert again.data_hash == found.data_hash
    assert sum(read) < size / 10, "neither is read again"


def test_a_file_that_changed_is_hashed_again(home, tmp_path, read):
    file, before = tmp_path / "rows.jsonl", time.time() - 60
    file.write_bytes(b"a" * SMALL_BYTES * 2)
    os.utime(file, (before, before))
    first = hash_files([file], home)
    read.clear()
    assert hash_files([file], home) == first == hash_files([file])
    assert sum(read) == file.stat().st_size, "only the call without a home read it"
    file.write_bytes(b"b" * SMALL_BYTES * 2)
    second = hash_files([file], home)
    assert second != first
    file.write_bytes(b"a" * SMALL_BYTES * 2)  # within the clock's precision, perhaps
    assert hash_files([file], home) == first
    (home.state / "file-hashes.json").write_text('{"broken": [1]}')
    assert hash_files([file], home) == first


def test_a_run_that_is_packed_may_need_more_processes_than_this_machine_has(home):
    many = RunSpec().with_values({"train.num_processes": 64, "train.fsdp": True})
    with pytest.raises(SpecError, match="num_processes is 64, but this machine has"):
        admit(many, home)
    assert admit(many, home, here=False).train.num_processes == 64
    with pytest.raises(SpecError, match="set train.num_processes to two or more"):
        admit(many.with_values({"train.num_processes": 1}), home, here=False)


@pytest.mark.parametrize("path", ["README", "nobody/nothing"])
def test_a_dataset_that_nobody_has_is_refused_at_the_door(home, tmp_path, monkeypatch, path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    spec = RunSpec(data=DataSource(path=path))
    with pytest.raises(Unreached, match=f'no file or folder "{path}", and the hub cannot be'):
        admit(spec, home)
    (tmp_path / "cache" / path.replace("/", "___")).mkdir(parents=True)  # of an earlier run
    assert admit(spec, home).data.path == path


def test_only_a_run_that_trains_is_told_of_its_checkpoint():
    odd = NotADirectoryError(20, "Not a directory")
    assert "resume it from there" in as_studio_error(odd, kind="train").text
    full = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "Halve the batch size" in as_studio_error(full, kind="train").text
    for kind in ("merge", "mix", "gguf", "evaluate"):
        assert "use a smaller model" in as_studio_error(full, kind=kind).text
        text = as_studio_error(odd, kind=kind).text
        assert text.startswith("The job stopped") and text.endswith("The log holds the details.")

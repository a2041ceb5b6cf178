"""A run without one trained token is refused before it is queued."""

import json
from pathlib import Path

import pytest

from jobs.admission import admit
from studio.data.importing import import_dataset
from studio.data.trainable import first_report
from studio.errors import DataError, Unreached
from studio.home import Home
from studio.spec import DataSource, RunSpec


def written(folder: Path, rows: list[dict]) -> RunSpec:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunSpec(data=DataSource(path=str(file), format="prompt_completion"))


def test_nothing_to_train_on_is_refused_at_the_door(home: Home, tmp_path: Path) -> None:
    spec = written(tmp_path, [{"prompt": "a question", "completion": " "}] * 100)
    with pytest.raises(DataError, match="None of the 100 rows"):
        admit(spec, home)


def test_one_row_after_many_empty_ones_is_enough(home: Home, tmp_path: Path) -> None:
    empty = [{"prompt": "a question", "completion": ""}] * 500
    spec = written(tmp_path, [*empty, {"prompt": "a question", "completion": "an answer"}])
    report = first_report(admit(spec, home), home)
    assert report is not None and report.kept == 1


def test_an_imported_dataset_is_admitted_by_name(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_dataset(home, DataSource(path="starter:pirate"), name="pirate")
    (tmp_path / "pirate").mkdir()
    monkeypatch.chdir(tmp_path)  # a folder of that name does not stand in its way
    spec = admit(RunSpec(data=DataSource(path="pirate")), home)
    assert spec.data.path == "pirate"
    report = first_report(spec, home)
    assert report is not None and report.trained_token_share > 0.5


@pytest.mark.parametrize("path", ["README", "nobody/nothing"])
def test_a_dataset_that_nobody_has_is_refused_at_the_door(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    spec = RunSpec(data=DataSource(path=path))
    with pytest.raises(Unreached, match=f'no file or folder "{path}", and the hub cannot be'):
        admit(spec, home)
    (tmp_path / "cache" / path.replace("/", "___")).mkdir(parents=True)  # of an earlier run
    assert admit(spec, home).data.path == path

"""Trackers, written by their own libraries and read back; what fails never reaches the run."""

import json
import logging
import sys
import types

import pytest

from studio.errors import SpecError
from studio.spec import RunSpec
from studio.training import trackers
from studio.training.trackers import LiveTrackers, TrackedRun, opened


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "7" / "trackers"
    folder.mkdir(parents=True)
    config = {"model": "starter", "train.max_steps": 3}
    return TrackedRun(key="mine-7", name="mine", folder=folder, config=config)


def write(name: str, run: TrackedRun, steps=range(1, 4)) -> None:
    tracker = opened(name, run)
    for step in steps:
        tracker.log(step, {"loss": 6 / step, "learning_rate": 0.1}, 1000.0 + step)
    tracker.close("succeeded")


def scalars(run: TrackedRun) -> list[tuple[int, float]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = reader.EventAccumulator(str(run.folder / "tensorboard"))
    read.Reload()
    return [(one.step, one.value) for one in read.Scalars("loss")]


def test_tensorboard_reads_back_what_was_written_and_a_resume_replaces_steps(run):
    write("tensorboard", run)
    assert scalars(run) == [(1, 6.0), (2, 3.0), (3, 2.0)]
    again = TrackedRun(key=run.key, name=run.name, folder=run.folder, config={}, first_step=1)
    write("tensorboard", again, steps=range(2, 5))
    assert [step for step, _ in scalars(run)] == [1, 2, 3, 4]


def test_mlflow_reads_back_and_a_resumed_run_is_the_same(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    write("mlflow", run)
    write("mlflow", run, steps=[4])
    client = mlflow.MlflowClient(tracking_uri=trackers.mlflow_address(tmp_path))
    experiment = client.get_experiment_by_name(trackers.PROJECT).experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED" and found.data.params["model"] == "starter"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 6.0), (2, 3.0), (3, 2.0), (4, 1.5)]


def test_wandb_writes_offline_into_the_folder_of_the_run(run, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write("wandb", run)
    wandb.teardown()  # its service writes the rest
    (file,) = (run.folder / "wandb").glob("offline-run-*-mine-7/*.wandb")
    assert b"learning_rate" in file.read_bytes()


def test_trackio_keeps_the_run_in_its_own_database(run, tmp_path):
    pytest.importorskip("trackio")
    import os
    import subprocess

    place = tmp_path / "trackio"  # read from the environment at import: a process of its own
    script = (
        "import json,sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from tests.studio.training.test_trackers import write\n"
        "from studio.training.trackers import TrackedRun\n"
        "run = TrackedRun(key='mine-7', name='mine', folder=Path(sys.argv[1]), config={'r': 8})\n"
        "write('trackio', run)\n"
        "fresh = replace(run, key='mine-7-exported', fresh=True)\n"
        "write('trackio', fresh), write('trackio', fresh)\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "for name in ('mine-7', 'mine-7-exported'):\n"
        "    rows = SQLiteStorage.get_logs('adapter-studio', name)\n"
        "    print('\\n' + json.dumps([[r['step'], r['loss']] for r in rows]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.folder)], capture_output=True, text=True,
        timeout=120, env=os.environ | {"TRACKIO_DIR": str(place), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert lines == 2 * [[[1, 6.0], [2, 3.0], [3, 2.0]]], "exported twice, and no step is twice"


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_a_tracker_that_fails_is_left_out_with_a_warning_without_its_secret(run, monkeypatch):
    class Broken:
        def __init__(self, _):
            self.calls = 0

        def log(self, *_):
            raise SystemExit("no route to https://jane:hunter2@example.org with s3cr3t-value")

        def close(self, _):
            raise AssertionError("a dropped tracker is not closed")

    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    monkeypatch.setattr(trackers, "Wandb", Broken)
    log, seen = logging.Logger("run"), Log()
    log.addHandler(seen)
    live = LiveTrackers(["wandb", "tensorboard"], run, log)
    for step in (1, 2):
        live.record(step, {"loss": 1.0})
    live.close("succeeded")
    (warning,) = [line for line in seen.lines if "left out" in line]
    assert warning.startswith("wandb failed") and "the run goes on" in warning
    assert "hunter2" not in warning and "s3cr3t" not in warning
    assert scalars(run) == [(1, 1.0), (2, 1.0)]  # the other one is whole


def test_a_tracker_that_hangs_does_not_hold_the_run(run, monkeypatch):
    import threading

    never = threading.Event()

    class Hanging:
        def __init__(self, _):
            never.wait(30)

    monkeypatch.setattr(trackers, "Wandb", Hanging)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    log, seen = logging.Logger("run"), Log()
    log.addHandler(seen)
    live = LiveTrackers(["wandb"], run, log)
    live.record(1, {"loss": 1.0})
    live.close("succeeded")
    never.set()
    assert "did not answer" in seen.lines[-1]


def test_names_are_checked_and_a_missing_library_is_a_sentence(monkeypatch):
    spec = RunSpec().with_values({"train.report_to": " TensorBoard, wandb,tensorboard "})
    assert spec.train.report_to == "tensorboard,wandb"
    assert RunSpec().with_values({"train.report_to": ["none"]}).train.report_to == "none"
    with pytest.raises(SpecError, match='"wandbb".*Did you mean "wandb"'):
        RunSpec().with_values({"train.report_to": "wandbb"})
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match="pip install mlflow-skinny"):
        trackers.check("mlflow")
    trackers.check("none")


def test_a_stand_in_gets_no_key(run, monkeypatch):
    got = {}

    class Run:
        def log(self, values, step):
            got[step] = values

        def finish(self, **how):
            got["finish"] = how

    def init(**asked):
        got["init"] = asked
        return Run()

    module = types.SimpleNamespace(init=init, Settings=lambda **given: given)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    write("wandb", run)
    assert got["init"]["mode"] == "offline" and got["init"]["id"] == "mine-7"
    assert "s3cr3t" not in repr(got) and got[3]["loss"] == 2.0
    assert got["finish"]["exit_code"] == 0

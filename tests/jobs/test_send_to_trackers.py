"""Trackers of a queue: runs of two homes stay apart, and an export writes no point twice."""

import logging
from contextlib import closing
from pathlib import Path

import pytest

from jobs import queue_settings, send_to_trackers
from jobs.job_queue import JobStore
from jobs.job_record import Job
from jobs.run_curves import Progress
from studio.home import open_home
from studio.training import trackers
from tests.jobs.conftest import a_spec, begin

LOSSES = {1: 3.0, 2: 2.0, 3: 1.5}


@pytest.fixture
def job(store):
    """A run that ended, with three points of loss."""
    store.submit(a_spec())
    claim = begin(store)
    rows = [("loss", step, value, 100.0 + step) for step, value in LOSSES.items()]
    store.claims.report(claim, Progress(metrics=rows, step=3))
    store.claims.finish(claim, "succeeded")
    return store.get(claim.job)


def test_runs_of_two_homes_have_keys_of_their_own(store, job, tmp_path):
    key = send_to_trackers.tracked(store, job).key
    assert send_to_trackers.tracked(store, job, 2).key == key, "a resumed run is the same"
    with closing(JobStore(open_home(tmp_path / "other"))) as other:
        assert send_to_trackers.tracked(other, job).key != key
    assert queue_settings.home_id(store) in key and key.endswith(f"-{job.id}")


def scalars(folder: str) -> dict[int, float]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = reader.EventAccumulator(folder)
    read.Reload()
    points = [(one.step, one.value) for one in read.Scalars("loss")]
    assert len(points) == len(dict(points)), "no step is there twice"
    return dict(points)


def live(store: JobStore, job: Job, names: str) -> None:
    job.spec["train"]["report_to"] = names
    own = send_to_trackers.live(store, job, logging.getLogger("live"))
    for step, value in LOSSES.items():
        own.record(step, {"loss": value})
    own.close("succeeded")


def test_tensorboard_has_no_point_twice_after_two_exports_of_a_live_run(store, job):
    pytest.importorskip("tensorboard")
    live(store, job, "tensorboard")
    for _ in range(2):
        found = send_to_trackers.export(store, [job], "tensorboard")
    assert found["values"] == {job.name: 3}
    (folder,) = found["folders"]
    assert scalars(folder) == LOSSES
    assert scalars(str(Path(folder).with_name("tensorboard"))) == LOSSES


def test_mlflow_gets_a_run_for_each_export(store, job, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    live(store, job, "mlflow")
    for _ in range(2):
        send_to_trackers.export(store, [job], "mlflow")
    client = mlflow.MlflowClient(tracking_uri=trackers.mlflow_address(store.home.path))
    experiment = client.get_experiment_by_name(trackers.PROJECT).experiment_id
    runs = client.search_runs([experiment])
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(one.step, one.value) for one in history] == [*LOSSES.items()]
    assert len(runs) == 3

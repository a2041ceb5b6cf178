"""Downloads as jobs: a kill costs nothing that had arrived, and runs wait for their model."""

import os
import signal
from pathlib import Path

import pytest

from jobs import supervisor
from jobs.actions import ask
from studio.errors import ModelError
from studio.models.hub_cache import cached, repository_folder
from studio.starter import MODEL_DIR
from tests import hub as hubs
from tests.jobs.conftest import until

NAME = "org/small"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hubs.running() as running:
        running.repos[NAME] = hubs.repo_of(MODEL_DIR)
        hubs.use(monkeypatch, running, tmp_path / "cache")
        yield running


def test_a_download_that_is_killed_goes_on_where_it_was(home, store, hub):
    content = os.urandom(25 << 20)
    hub.repos[NAME].files["model.safetensors"] = content
    hub.fail("GET /storage/", stall_after=21 << 20, times=1)
    job = ask(home, "models.get", {"model": NAME}, store=store).jobs[0]
    blobs = repository_folder(NAME) / "blobs"
    try:
        until(lambda: [one for one in blobs.glob("*.incomplete") if one.stat().st_size == 20 << 20])
        assert store.get(job.id).phase.endswith(" MiB") or "left" in store.get(job.id).phase
        os.kill(store.get(job.id).pid, signal.SIGKILL)
        until(lambda: store.get(job.id).state == "succeeded")
    finally:
        supervisor.stop(home)
    firsts = [first for how, path, first in hub.asked if how == "GET" and "/storage/" in path]
    assert firsts == [0, 20 << 20]
    assert (cached(NAME) / "model.safetensors").read_bytes() == content
    assert store.get(job.id).result["folder"] == str(cached(NAME))


def test_a_run_waits_for_the_download_of_its_model(home, store, hub, monkeypatch):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)
    first = ask(home, "train", {"model": NAME, "data": "starter:pirate"}, store=store).jobs[0]
    second = ask(home, "train", {"model": NAME, "set": ["seed=1"]}, store=store).jobs[0]
    (download,) = [job for job in store.list() if job.kind == "download"]
    assert first.needs == second.needs == [download.id] and download.device_wanted == "network"
    assert "model.safetensors" not in str(
        hub.asked
    )  # nothing large is fetched when it is asked for
    with pytest.raises(ModelError, match="studio models get org/small"):
        ask(home, "sweep", {"name": "s", "model": NAME, "over": ["seed=0,1"]}, store=store)
    with pytest.raises(ModelError, match="neither a folder here nor a model on the hub"):
        ask(home, "train", {"model": "org/smal"}, store=store)
    assert not list(Path(os.environ["HF_HUB_CACHE"]).glob("models--org--small/snapshots/*"))

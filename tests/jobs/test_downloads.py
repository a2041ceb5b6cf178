"""Downloads as jobs: a kill costs nothing that had arrived, and runs wait for their model."""

import hashlib
import importlib
import io
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from jobs import supervisor
from jobs.actions import ask
from jobs.runner_processes import environment
from studio import offline
from studio.adapters.export import ExportRequest
from studio.errors import ModelError, Unreached
from studio.models import hub_models, model_list
from studio.models.find_model import resolve
from studio.models.hub_models import PARTIAL, cached, repository_folder
from studio.spec import ModelSource
from tests import hub as hubs
from tests.hub import NAME
from tests.jobs.conftest import until
from tests.ui.conftest import put_adapter
from ui.cli.main import main


def test_a_download_that_is_killed_goes_on_where_it_was(home, store, hub):
    content = os.urandom(25 << 20)
    hub.repos[NAME].files["model.safetensors"] = content
    hub.fail("GET /storage/", stall_after=21 << 20, times=1)
    job = ask(home, "models.get", {"repo": NAME}, store=store).jobs[0]
    blobs, name = repository_folder(NAME) / "blobs", hashlib.sha256(content).hexdigest()
    partial = blobs / f"{name}{PARTIAL}"
    try:
        until(lambda: partial.exists() and partial.stat().st_size == 20 << 20)
        until(lambda: "MiB" in store.get(job.id).phase)
        os.kill(store.get(job.id).pid, signal.SIGKILL)
        until(lambda: store.get(job.id).state == "succeeded")
    finally:
        supervisor.stop(home)
    firsts = [first for how, path, first in hub.asked if how == "GET" and "/storage/" in path]
    assert firsts == [0, 20 << 20]
    assert (cached(NAME) / "model.safetensors").read_bytes() == content
    assert store.get(job.id).result["folder"] == str(cached(NAME))


def test_the_guided_start_offers_the_hub_only_where_it_answers(home, store, hub, monkeypatch):
    # A model of the curated list that fits on any machine.
    model = replace(model_list.curated()[0], gated=False, has_chat_template=True)
    monkeypatch.setattr(model_list, "curated", lambda: (model,))
    monkeypatch.setattr("jobs.actions.guide._way", lambda *_: "lora")

    def offered():
        found = ask(home, "guide", {}, store=store).facts
        return [one["path"] for one in found["models"]], found["model"], found["note"]

    assert offered() == ([model.path, "starter"], model.path, "")
    hub_models._probes.clear()
    monkeypatch.setattr(hub_models.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens
    paths, chosen, note = offered()
    assert (paths, chosen) == (["starter", model.path], "starter")
    assert note == "The hub cannot be reached: models on this computer come first."
    offline.switch(home, True)
    paths, chosen, note = offered()
    assert (paths, chosen) == (["starter"], "starter") and note.startswith("This studio is offline")


def test_a_slow_hub_counts_from_the_next_call_on(monkeypatch):
    answers = threading.Event()
    session = SimpleNamespace(head=lambda *_, **__: answers.wait(10))
    monkeypatch.setattr(hub_models, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(hub_models.huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(hub_models, "_probes", {})
    assert not hub_models.is_reachable()
    answers.set()
    assert until(hub_models.is_reachable)


def test_a_hub_that_does_not_answer_is_said_without_a_word_of_the_library():
    fault = httpx.ConnectError("[Errno 111] Connection refused")
    text = hub_models.refused("org/model", fault).text
    assert "the hub cannot be reached" in text and "ConnectError" not in text


def test_a_run_waits_for_the_download_of_its_model(home, store, hub, monkeypatch):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)
    first = ask(home, "train", {"model": NAME, "data": "starter:pirate"}, store=store).jobs[0]
    hub.repos["org/old"] = hubs.Repo({}, moved_to=NAME)
    second = ask(home, "train", {"model": "org/old", "set": ["seed=1"]}, store=store).jobs[0]
    assert second.spec["model"]["path"] == NAME  # as it is called in the cache
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


def test_a_model_is_found_shown_and_deleted(home, store, hub, monkeypatch, capsys):
    monkeypatch.setattr("jobs.supervisor.ensure_running", lambda _: 0)
    hub.repos["org/odd"] = hubs.Repo({"config.json": b'{"model_type": "odd"}'})

    def value(name, **values):
        return ask(home, name, values, store=store).value

    (found,) = value("models.search", words="org")
    assert (found["id"], found["license"], found["here"]) == (NAME, "apache-2.0", False)
    assert len(value("models.search", words=f"{hub.url}/org/odd", all=True)) == 1
    shown = value("models.show", model=NAME)
    assert shown["fits"]["exact"] and shown["fits"]["ways"]["lora"][0]["state"] == "fits"
    assert shown["bytes"] == sum(one["bytes"] for one in shown["files"]) < shown["free_bytes"]
    assert shown["revision"] == hub.repos[NAME].sha and shown["arrived_bytes"] == 0
    assert str(repository_folder(NAME)) == shown["folder"] and shown["page"] == f"{hub.url}/{NAME}"
    assert not any("/storage/" in path for _, path, _ in hub.asked)
    resolve(ModelSource(path=NAME))
    put_adapter(home.adapters / "sea", "sea", base={"path": NAME})
    export = ExportRequest(name="e", adapter="sea", model=NAME).model_dump(mode="json")
    for waits in (
        ask(home, "train", {"model": NAME}, store=store).jobs[0],
        store.submit(export, kind="export_adapter"),
    ):
        with pytest.raises(ModelError, match=f'and needs "{NAME}"'):
            value("models.remove", model=NAME, yes=True)
        store.cancel(waits.id)
    assert value("models.remove", model=NAME)["adapters"] == ["sea"] and cached(NAME)
    row = next(one for one in value("models", fits=True)["models"] if one["path"] == NAME)
    assert row["kind"] == "hub" and row["adapters"] == ["sea"] and row["last_used"]
    assert value("models.remove", model=NAME, yes=True)["removed"] and not cached(NAME)
    hub.repos[NAME].license = "\x1b[2Jmine"
    for words in (["models", "--fits"], ["models", "search", "org"], ["models", "show", NAME]):
        with pytest.raises(SystemExit):
            main([*words, "--home", str(home.path)])
        out = capsys.readouterr().out
        assert "small" in out or "starter" in out
        lines = [line for line in out.splitlines() if shown["folder"] not in line]
        assert max(map(len, lines)) < 100 and "…" not in out and "\x1b" not in out


def test_a_token_is_kept_by_the_library_and_never_shown(home, store, hub, monkeypatch, capsys):
    wrong, right = "hf_" + "x" * 34, hubs.TOKEN
    with pytest.raises(ModelError, match="does not know this token") as error:
        ask(home, "models.token", {"token": wrong}, store=store)
    assert wrong not in error.value.text
    for pasted in (wrong * 9, f"{right}\n{right}"):
        with pytest.raises(ModelError, match="does not know this token") as error:
            ask(home, "models.token", {"token": pasted}, store=store)
        assert "hf_r" not in error.value.text and "xxx" not in error.value.text
    assert ask(home, "models.token", {}, store=store).value["account"] == ""
    kept = ask(home, "models.token", {"token": right}, store=store).value
    assert kept["account"] == "me" and right not in str(kept)
    hub.repos[NAME].gated = "manual"
    assert resolve(ModelSource(path=NAME)) == cached(NAME)
    assert ask(home, "models.token", {"off": True}, store=store).value["account"] == ""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{right}\n"))
    with pytest.raises(SystemExit) as end:
        main(["models", "token", "--token", "-", "--home", str(home.path)])
    assert end.value.code == 0 and "The stored token is of me." in capsys.readouterr().out
    said = [file.read_text(errors="replace") for file in home.path.rglob("*") if file.is_file()]
    assert not any(right in text or wrong in text for text in said)


def test_offline_nothing_is_asked(home, store, hub, monkeypatch):
    assert ask(home, "offline", {"on": True}, store=store).value["offline"] is True
    hub.asked.clear()
    with pytest.raises(Unreached, match="this studio is offline"):
        ask(home, "models.show", {"model": NAME}, store=store)
    assert hub.asked == [] and environment()["HF_HUB_OFFLINE"] == "1"
    with monkeypatch.context() as child:  # started while offline
        child.setattr(os, "environ", environment())
        importlib.reload(offline)
        assert offline.is_offline(home)
        (home.state / "offline").unlink()
        assert not offline.is_offline(home)
    assert ask(home, "offline", {"off": True}, store=store).value["offline"] is False
    assert ask(home, "models.show", {"model": NAME}, store=store).value["id"] == NAME

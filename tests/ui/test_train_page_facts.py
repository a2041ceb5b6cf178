"""The lines beside the form."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from jobs.job_queue import JobStore
from studio.data.import_dataset import import_dataset
from studio.errors import DataError, ModelError
from studio.models import download_model, find_model, model_list
from studio.models.hub_models import repository_folder
from studio.names import readable
from studio.spec import DataSource, ModelSource, RunSpec
from studio.starter import MODEL_DIR
from tests import hub
from ui import train_page_facts
from ui.train_page import judged


def test_the_starter_and_its_demos_are_offered_first_and_what_is_missing_is_a_sentence(home):
    assert train_page_facts.model_choices(home)[0][1] == "starter"
    assert train_page_facts.data_choices(home)[0][1] == "starter:pirate"
    with pytest.raises(ModelError, match="/no/such/model"):
        train_page_facts.model_line(ModelSource(path="/no/such/model"), home)
    with pytest.raises(DataError, match=r"/no/such\.jsonl"):
        train_page_facts.data_line(DataSource(path="/no/such.jsonl"), home)


def test_a_model_that_is_not_here_is_described_without_asking_the_hub(monkeypatch, tmp_path, home):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    known = next(one for one in model_list.curated() if one.bytes)
    blobs = repository_folder(known.path) / "blobs"
    blobs.mkdir(parents=True)
    line = train_page_facts.model_line(ModelSource(path=known.path), home)
    assert readable(known.bytes).replace(" ", "\u202f") + " to download" in line
    (blobs / "x").write_bytes(bytes(64 << 20))
    assert train_page_facts.model_line(ModelSource(path=known.path), home) != line
    assert train_page_facts.model_line(ModelSource(path="org/other"), home).startswith(
        "Not here yet"
    )


def test_a_hub_model_is_estimated_and_its_rows_are_seen_before_its_download(
    monkeypatch, tmp_path, home
):
    with hub.running() as server, closing(JobStore(home)) as store:
        hub.use(monkeypatch, server, tmp_path / "cache")
        server.repos[hub.NAME] = hub.repo_of(MODEL_DIR)
        here, remote = RunSpec(), RunSpec(model=ModelSource(path=hub.NAME))
        assert judged(remote, home)["sizes"] == {} and server.asked == []
        found = train_page_facts.forecast(remote, home, store)
        assert found["looked"] and server.sent < 500_000  # of 4.7 MB
        asked = len(server.asked)
        expected = train_page_facts.forecast(here, home, store)
        same = ("parts", "total_steps", "auto", "rows", "cut")
        assert {key: found[key] for key in same} == {key: expected[key] for key in same}
        assert judged(remote, home)["sizes"] == judged(here, home)["sizes"]
        assert "to download, for which a run waits" in judged(remote, home)["model"]
        assert train_page_facts.first_rays(remote, home) == train_page_facts.first_rays(here, home)
        assert (
            train_page_facts.forecast(remote, home, store)["parts"] and len(server.asked) == asked
        )
        nowhere = RunSpec(model=ModelSource(path="org/none"))
        assert "org/none" in train_page_facts.forecast(nowhere, home, store)["unknown"]
        assert not list((tmp_path / "cache").glob("models--*/snapshots/*"))


def test_looks_at_one_hub_model_at_the_same_time_are_one(monkeypatch, tmp_path, home):
    with hub.running() as server:
        hub.use(monkeypatch, server, tmp_path / "cache")
        server.repos[hub.NAME], server.repos["org/other"] = [hub.repo_of(MODEL_DIR)] * 2
        source = ModelSource(path=hub.NAME)
        download_model.look_at_facts(ModelSource(path="org/other"), home)
        alone, begin = len(server.asked), threading.Barrier(4, timeout=30)

        def look(_: int) -> Path:
            begin.wait()
            return download_model.look_at_facts(source, home)

        with ThreadPoolExecutor(4) as pool:
            (folder,) = set(pool.map(look, range(4)))
        assert len(server.asked) == 2 * alone
        assert find_model.facts(ModelSource(path=str(folder))).parameters > 0
        old = time.time() - 2 * download_model.FRESH_SECONDS
        os.utime(folder / "sizes.json", (old, old))
        assert (
            download_model.look_at_facts(source, home) == folder and len(server.asked) == 3 * alone
        )
        left = {one.suffix for one in folder.parent.iterdir()} & {".new", ".old"}
        assert not left


def test_rows_are_counted_before_launch(tmp_path, home):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 3 + "{broken\n")
    line = train_page_facts.data_line(DataSource(path=str(file)), home)
    assert line.startswith("4 rows · 1 dropped · prompt completion")


def test_an_imported_dataset_is_offered_with_its_hash(home):
    meta = import_dataset(home, DataSource(path="starter:pirate"), name="Ahoy").snapshot.meta
    assert ("Dataset · ahoy", "ahoy") in train_page_facts.data_choices(home)
    line = train_page_facts.data_line(DataSource(path="ahoy"), home)
    assert line == f"320 rows · messages · imported, hash {meta.hash[:12]}"


@pytest.mark.parametrize(("answer", "little"), [("word " * 40, False), ("x", True)])
def test_too_few_trained_tokens_are_a_warning(home, tmp_path, answer, little):
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "many words and more of them " * 20, "completion": answer}
    file.write_text((json.dumps(row) + "\n") * 12)
    words, warned = train_page_facts.trained_line(RunSpec(data=DataSource(path=str(file))), home)
    assert warned is little and words.startswith("Only" if little else "2")

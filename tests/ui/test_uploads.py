"""Uploads: their names, what is refused, what is kept and what is deleted a day later."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs.store import JobStore
from studio.data.requests import ImportRequest, uploads
from studio.errors import DataError
from studio.home import Home
from studio.spec import DataSource
from ui import sources
from ui.uploads import STALE_SECONDS, SUFFIXES, kept_uploads, receive, sweep


def sent(store: JobStore, name: str, *, keep: bool = True) -> Path:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"text": '
        yield b'"x"}\n'

    return Path(asyncio.run(receive(store, pieces(), name, keep=keep)))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("rows.jsonl", "rows.jsonl"), ("r.jsonl.gz", "r.jsonl.gz"), ("a.b.NDJSON", "a-b.ndjson"),
        ("x.pq", "x.pq"), ("C:\\data\\a.markdown", "a.markdown"), ("t.tab.zst", "t.tab.zst"),
        ("..%2f My Räw data!.JSONL", "2f-my-raw-data.jsonl"), ("../../x.csv", "x.csv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", [True, False])
def test_train_and_data_accept_the_same_files_under_a_safe_name(store, name, stored, keep):
    file = sent(store, name, keep=keep)
    assert file.name == stored
    assert json.loads(file.read_text()) == {"text": "x"}
    folder = kept_uploads(store.home) if keep else uploads(store.home)
    assert (file.parent if keep else file.parent.parent) == folder
    offered = [path for _, path in sources.data_choices(store.home)]
    assert (str(file) in offered) is keep, "what is kept is offered by the form"


def test_an_upload_never_replaces_another(store):
    first, second = sent(store, "rows.csv.gz"), sent(store, "rows.csv.gz")
    assert (first.name, second.name) == ("rows.csv.gz", "rows-2.csv.gz")
    assert not list(uploads(store.home).iterdir())


@pytest.mark.parametrize("name", ["model.pkl", "rows", "run.sh", "page.html", "x.gz", ""])
def test_a_kept_upload_that_is_not_a_data_file_is_refused(store, name):
    with pytest.raises(DataError, match="is not a data file: its name must end in"):
        sent(store, name)
    assert not list(store.home.datasets.rglob("*.*"))


def test_the_button_offers_every_suffix_that_is_accepted():
    assert {".jsonl", ".ndjson", ".pq", ".gz"} < set(SUFFIXES)


def upload(home: Home, name: str, age: float) -> Path:
    file = uploads(home) / name / "rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    os.utime(file.parent, (time.time() - age,) * 2)
    return file


def test_an_old_upload_goes_unless_a_job_waits_for_it(home, store):
    sweep(store)  # nothing was ever uploaded
    young = upload(home, "young", STALE_SECONDS - 60)
    forgotten, needed, done = (upload(home, n, STALE_SECONDS + 60) for n in ("a", "b", "c"))
    for file in (needed, done):
        request = ImportRequest(data=DataSource(path=str(file)), uploaded=True)
        job = store.submit(request.model_dump(mode="json"), kind="import")
    store.cancel(job.id)

    sweep(store)

    there = [file.exists() for file in (young, forgotten, needed, done)]
    assert there == [True, False, True, False]

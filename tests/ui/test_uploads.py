"""Uploads that nobody imported go a day later; one that a job waits to read stays."""

import os
import time
from pathlib import Path

from jobs.store import JobStore
from studio.data.requests import ImportRequest, uploads
from studio.home import Home
from studio.spec import DataSource
from ui.uploads import STALE_SECONDS, sweep


def upload(home: Home, name: str, age: float) -> Path:
    file = uploads(home) / name / "rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    os.utime(file.parent, (time.time() - age,) * 2)
    return file


def test_an_old_upload_goes_unless_a_job_waits_for_it(home: Home, store: JobStore) -> None:
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

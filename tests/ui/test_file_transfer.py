"""Uploads: their names, what is refused, kept, deleted a day later. Downloads: zips on the way."""

import asyncio
import errno
import io
import json
import os
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs.job_queue import JobStore
from studio.data.dataset_requests import ImportRequest, uploads
from studio.errors import DiskFull
from studio.home import Home
from studio.spec import DataSource
from tests.jobs.conftest import a_spec
from tests.ui.conftest import client_of, put_adapter
from ui import train_page_facts
from ui.file_transfer import PIECE, STALE_SECONDS, download_routes, receive, sweep, zipped


def sent(store: JobStore, name: str) -> Path:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"text": '
        yield b'"x"}\n'

    return Path(asyncio.run(receive(store, pieces(), name)))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("rows.jsonl", "rows.jsonl"), ("r.jsonl.gz", "r.jsonl.gz"), ("a.b.NDJSON", "a-b.ndjson"),
        ("x.pq", "x.pq"), ("C:\\data\\a.markdown", "a.markdown"), ("t.tab.zst", "t.tab.zst"),
        ("..%2f My Räw data!.JSONL", "2f-my-raw-data.jsonl"), ("../../x.csv", "x.csv"),
    ],
)  # fmt: skip
def test_a_file_lies_under_a_safe_name_in_a_folder_of_its_own_and_is_no_dataset_yet(
    store, name, stored
):
    file, other = sent(store, name), sent(store, name)
    assert file.name == other.name == stored and file != other
    assert json.loads(file.read_text()) == {"text": "x"}
    assert file.parent.parent == uploads(store.home)
    assert str(file) not in [path for _, path in train_page_facts.data_choices(store.home)]


@pytest.mark.parametrize("at", ["mkdir", "open", "write"])
def test_an_upload_onto_a_full_disk_is_a_sentence_and_leaves_nothing(store, monkeypatch, at):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.BytesIO):
        write = full

    sweep(store)
    monkeypatch.setattr(Path, "open" if at == "write" else at, lambda *_, **__: Full())
    if at != "write":
        monkeypatch.setattr(Path, at, full)
    monkeypatch.setattr("ui.file_transfer.sweep", lambda _: None)
    with pytest.raises(DiskFull, match="is full. Free some room"):
        sent(store, "rows.jsonl")
    monkeypatch.undo()
    assert list(uploads(store.home).iterdir()) == []


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


def test_a_zip_holds_the_files_of_a_folder_and_no_links(tmp_path):
    folder = tmp_path / "pirate é"
    (folder / "inner").mkdir(parents=True)
    large = bytes(range(256)) * (PIECE // 64)
    (folder / "weights.safetensors").write_bytes(large)
    (folder / "inner" / "empty.json").write_bytes(b"")
    (tmp_path / "secret").write_text("not of this folder")
    (folder / "link").symlink_to(tmp_path / "secret")
    pieces = list(zipped(folder))
    assert max(map(len, pieces)) < 2 * PIECE  # never a whole file in memory
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as read:
        assert read.testzip() is None
        assert sorted(read.namelist()) == [
            "pirate é/inner/empty.json",
            "pirate é/weights.safetensors",
        ]
        assert read.read("pirate é/weights.safetensors") == large


def test_an_adapter_is_sent_by_its_id_and_what_a_job_wrote_by_its_number(home, store):
    page = client_of(download_routes(home, store))
    put_adapter(home.adapters / "a", "garden 花")
    answer = page.get("/api/download/adapter/library-a")
    assert answer.headers["content-disposition"].endswith("garden%20%E8%8A%B1.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as read:
        assert read.read("a/adapter_model.safetensors") == b"12345"
    for path, words in (
        ("adapter/nothing", 'no adapter "nothing"'), ("job/99", "99"),
        (f"job/{store.submit(a_spec()).id}", "nothing to download"),
    ):  # fmt: skip
        refused = page.get(f"/api/download/{path}")
        assert refused.status_code == 400 and words in refused.json()["error"]["text"]

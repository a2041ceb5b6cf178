"""Uploads into the home, and downloads: an adapter or what a job wrote, reports and rows.

An upload carries the file alone, so it never waits in memory and no form is parsed. A file lies in
a folder of its own until its import is done; one that was never imported is deleted a day later, as
the server starts and at the next upload. A folder is sent as a zip that is made on the way.
"""

import contextlib
import io
import secrets
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response, StreamingResponse

from jobs.actions import outcome
from jobs.job_queue import JobStore
from jobs.job_record import OPEN
from studio.adapters import library
from studio.data.dataset_requests import uploads
from studio.data.readers import data_suffix
from studio.errors import DiskFull, InputError, is_disk_full
from studio.home import Home, slug

STALE_SECONDS = 86_400.0
PIECE = 1 << 20


async def receive(store: JobStore, pieces: AsyncIterator[bytes], name: str) -> str:
    """Write an upload under a safe form of its name on the user's side; return its path.

    Raises:
        DiskFull: The home has no room for it.
    """
    sweep(store)
    leaf = name.replace("\\", "/").split("/")[-1]
    suffix = data_suffix(leaf) or Path(leaf).suffix
    stem = leaf[: len(leaf) - len(suffix)]
    suffix = "".join(c for c in suffix.lower() if c.isalnum() or c == ".")[:40]
    target = uploads(store.home) / secrets.token_hex(8) / f"{slug(stem, fallback='data')}{suffix}"
    try:
        target.parent.mkdir(parents=True, mode=0o700)
        with target.open("wb") as handle:
            async for piece in pieces:
                handle.write(piece)
        return str(target)
    except BaseException as error:
        shutil.rmtree(target.parent, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFull(
                f"The disk that holds {store.home.path} is full. Free some room."
            ) from error
        raise


def sweep(store: JobStore) -> None:
    """Delete the uploads older than a day that no job waits to read."""
    folder = uploads(store.home)
    folder.mkdir(exist_ok=True, mode=0o700)
    waiting = [job.spec.get("data") or {} for job in store.list(OPEN)]
    needed = {Path(str(data.get("path", ""))).parent for data in waiting}
    for old in folder.iterdir():
        with contextlib.suppress(OSError):  # its import has just removed it
            if old not in needed and time.time() - old.lstat().st_mtime > STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)


def download_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes of downloads."""
    router = APIRouter(prefix="/api/download")

    @router.get("/adapter/{id}")
    def adapter(id: str) -> StreamingResponse:
        one = library.find(home, id)
        return attachment(zipped(one.path), f"{one.name}.zip", "application/zip")

    @router.get("/job/{job_id}")
    def written(job_id: int) -> Response:
        job = store.get(job_id)
        made = outcome(store, job).get("out")
        if not made or not (place := Path(str(made))).exists():
            raise InputError(f"{job.name} has nothing to download: it was moved or deleted.")
        if place.is_file():
            return FileResponse(place, filename=place.name)
        return attachment(zipped(place), f"{place.name}.zip", "application/zip")

    return router


def zipped(folder: Path) -> Iterator[bytes]:
    """Yield a folder's files as a zip to download, piece by piece; links are left out."""
    sent = _Sent()
    with zipfile.ZipFile(cast(Any, sent), "w") as whole:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            name = path.relative_to(folder.parent)
            entry = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
            with path.open("rb") as file, whole.open(entry, mode="w") as written:
                while piece := file.read(PIECE):
                    written.write(piece)
                    yield sent.take()
    yield sent.take()


class _Sent(io.RawIOBase):
    """What was written since the last look; it cannot seek, so nothing waits for a whole file."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces += piece
        return len(piece)

    def take(self) -> bytes:
        piece = bytes(self._pieces)
        self._pieces.clear()
        return piece


def attachment(
    pieces: Iterable[str | bytes], name: str, media: str = "text/plain"
) -> StreamingResponse:
    """Return a file as a download, never as a page: users and models wrote what is in it."""
    quoted = quote(name, safe="")
    form = f'filename="{name}"' if quoted == name else f"filename*=UTF-8''{quoted}"
    headers = {
        "content-disposition": f"attachment; {form}",
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
        "cache-control": "no-store",
    }
    return StreamingResponse(cast(Any, pieces), media_type=media, headers=headers)

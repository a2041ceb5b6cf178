"""Downloads: an adapter, or the folder that a job wrote, as a zip that is made while it is sent."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response, StreamingResponse

from jobs.actions import outcome
from jobs.job_queue import JobStore
from studio.adapters import library
from studio.errors import InputError
from studio.home import Home

PIECE = 1 << 20


def download_routes(home: Home, store: JobStore) -> APIRouter:
    """Return the routes of downloads."""
    router = APIRouter(prefix="/api/download")

    @router.get("/adapter/{id}")
    def adapter(id: str) -> StreamingResponse:
        one = library.find(home, id)
        return _sent(one.path, one.name)

    @router.get("/job/{job_id}")
    def written(job_id: int) -> Response:
        job = store.get(job_id)
        made = outcome(store, job).get("out")
        if not made or not (place := Path(str(made))).exists():
            raise InputError(f"{job.name} has nothing to download: it was moved or deleted.")
        if place.is_file():
            return FileResponse(place, filename=place.name)
        return _sent(place, place.name)

    return router


def zipped(folder: Path) -> Iterator[bytes]:
    """Yield a zip of a folder's files piece by piece; links are left out."""
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


def _sent(folder: Path, name: str) -> StreamingResponse:
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}.zip",
        "cache-control": "no-store",
    }
    pieces = cast(Any, zipped(folder))
    return StreamingResponse(pieces, media_type="application/zip", headers=headers)

"""Uploads: receive a file in pieces, store it in the home under a safe name, delete old ones.

The request carries the file alone, so it never waits in memory and no form is parsed. A file lies
in a folder of its own until its import is done; one that was never imported is deleted a day later,
as the server starts and at the next upload.
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from jobs.job_queue import JobStore
from jobs.job_record import OPEN
from studio.data.dataset_requests import uploads
from studio.data.readers import data_suffix
from studio.errors import DataError, DiskFull, is_disk_full
from studio.home import Home, slug

MAX_UPLOAD_BYTES = 64 * 1024**3
STALE_SECONDS = 86_400.0


async def receive(store: JobStore, pieces: AsyncIterator[bytes], name: str) -> str:
    """Write an upload under a safe form of its name and return its path.

    Args:
        store: The queue, whose home receives the file.
        pieces: The file.
        name: The name of the file on the user's side.

    Raises:
        DataError: It is too large.
        DiskFull: The home has no room for it.
    """
    sweep(store)
    leaf = name.replace("\\", "/").split("/")[-1]
    suffix = data_suffix(leaf) or Path(leaf).suffix
    stem, suffix = leaf[: len(leaf) - len(suffix)], _safe(suffix)
    target = uploads(store.home) / secrets.token_hex(8) / f"{slug(stem, fallback='data')}{suffix}"
    size = 0
    try:
        target.parent.mkdir(parents=True, mode=0o700)
        with target.open("wb") as handle:
            async for piece in pieces:
                size += len(piece)
                if size > MAX_UPLOAD_BYTES:
                    raise DataError("The upload is larger than 64 GiB; import it by its path.")
                handle.write(piece)
        return str(target)
    except BaseException as error:
        shutil.rmtree(target.parent, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFull(
                f"The disk that holds {store.home.path} is full. Free some room."
            ) from error
        raise


def kept_uploads(home: Home) -> Path:
    """Return the folder of uploads that older versions kept for runs to train on."""
    return home.datasets / "uploads"


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


def _safe(suffix: str) -> str:
    return "".join(c for c in suffix.lower() if c.isalnum() or c == ".")[:40]

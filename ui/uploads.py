"""Files that arrive piece by piece: each in a folder of its own until its import is done.

The body of the request is the file, so nothing of it waits in memory and no form is parsed. What
was looked at and never imported is swept a day later: as the server starts, and at the next upload.
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from jobs.job import OPEN
from jobs.store import JobStore
from studio.data.requests import uploads
from studio.errors import DataError
from studio.home import slug

MAX_UPLOAD_BYTES = 64 * 1024**3
STALE_SECONDS = 86_400.0


async def kept_upload(store: JobStore, pieces: AsyncIterator[bytes], name: str) -> str:
    """Write an upload as it comes, under its own (safe) name; returns the path.

    Raises:
        DataError: It is too large; nothing of it stays.
    """
    sweep(store)
    folder = uploads(store.home)
    folder.mkdir(exist_ok=True, mode=0o700)
    base, dot, ending = name.replace("\\", "/").split("/")[-1].partition(".")
    suffix = "".join(c for c in ending.lower() if c.isalnum() or c in "._-")[:40]
    target = folder / secrets.token_hex(8) / f"{slug(base, fallback='data')}{dot}{suffix}"
    target.parent.mkdir(mode=0o700)
    size = 0
    try:
        with target.open("wb") as handle:
            async for piece in pieces:
                size += len(piece)
                if size > MAX_UPLOAD_BYTES:
                    raise DataError("The upload is larger than 64 GiB; import it by its path.")
                handle.write(piece)
    except BaseException:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise
    return str(target)


def sweep(store: JobStore) -> None:
    """Delete the uploads older than a day that no job waits to read."""
    folder = uploads(store.home)
    if not folder.is_dir():
        return
    waiting = [job.spec.get("data") or {} for job in store.list(OPEN)]
    needed = {Path(str(data.get("path", ""))).parent for data in waiting}
    for old in folder.iterdir():
        with contextlib.suppress(OSError):  # its import has just removed it
            if old not in needed and time.time() - old.lstat().st_mtime > STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)

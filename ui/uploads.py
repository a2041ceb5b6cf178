"""Files that arrive piece by piece: each in a folder of its own until its import is done.

The body of the request is the file, so nothing of it waits in memory and no form is parsed. What
was looked at and never imported is swept a day later.
"""

import secrets
import shutil
import time
from collections.abc import AsyncIterator

from studio.data.requests import uploads
from studio.errors import DataError
from studio.home import Home, slug

MAX_UPLOAD_BYTES = 64 * 1024**3
STALE_SECONDS = 86_400.0


async def kept_upload(home: Home, pieces: AsyncIterator[bytes], name: str) -> str:
    """Write an upload as it comes, under its own (safe) name; returns the path.

    Raises:
        DataError: It is too large; nothing of it stays.
    """
    folder = uploads(home)
    folder.mkdir(exist_ok=True, mode=0o700)
    for old in folder.iterdir():  # looked at and never imported
        if time.time() - old.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
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

"""Shared storage of a cluster: folders that every machine reaches, and the event stream in them.

Files are small or written once, and none is appended to, because an object store cannot. It knows
bytes and folders, not what is in them.

The newest file is written anew a few times a second until it is large enough, then the next one
begins; a reader remembers how many lines of which file it has had. Writing anew never changes a
line that was there, so a reader that meets a file half-written sees fewer lines, never wrong ones.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from studio.errors import ClusterError
from studio.home import MANIFEST, is_whole, publishing

logger = logging.getLogger(__name__)


class Place:
    """One folder on the storage, and what is below it."""

    def __init__(self, url: str) -> None:
        """Name a place; nothing is made yet.

        Raises:
            ClusterError: The protocol is unknown, or its package is not installed.
        """
        from fsspec.core import url_to_fs

        self.url = url if "://" in url else str(Path(url).expanduser().absolute())
        self.url = self.url.rstrip("/")
        try:
            self.files, self.root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ClusterError(f"The storage {url} cannot be used: {error}.") from None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of a file system that is mounted here."""
        return "file" in (self.files.protocol, *self.files.protocol)

    def below(self, name: str) -> Self:
        """Return a place inside this one."""
        return type(self)(f"{self.url}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file whole; its folders are made."""
        path = f"{self.root}/{name}"
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, content)

    def read(self, name: str) -> bytes | None:
        """Return a small file, or None when it is not there."""
        try:
            content: bytes = self.files.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        return content

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        self.files.invalidate_cache()
        return bool(self.files.exists(f"{self.root}/{name}"))

    def names(self, name: str = "") -> list[str]:
        """Return what is in a folder, in order; nothing when it is not there."""
        self.files.invalidate_cache()
        try:
            found = self.files.ls(f"{self.root}/{name}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def send(self, folder: Path, name: str) -> None:
        """Copy a folder here, its manifest last, so that a half of it is never taken for whole."""
        files = sorted(
            (path for path in folder.rglob("*") if path.is_file()),
            key=lambda path: (path.name == MANIFEST, path.as_posix()),
        )
        for path in files:
            target = f"{self.root}/{name}/{path.relative_to(folder).as_posix()}"
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), target)

    def fetch(
        self, name: str, target: Path, *, change: Callable[[Path], None] | None = None
    ) -> bool:
        """Copy a published folder to `target`, whole or not at all; whether it was there.

        Args:
            name: The folder here.
            target: Where it goes; what was there is replaced.
            change: Makes the copy fit its new place before it is published.

        Raises:
            ClusterError: It is damaged.
        """
        if not self.exists(f"{name}/{MANIFEST}"):
            return False
        with publishing(target) as temporary:
            self._get(name, temporary)
            if not is_whole(temporary):
                raise ClusterError(f"{name} on the storage {self.url} is damaged or cut short.")
            if change is not None:
                change(temporary)
        return True

    def at_hand(self, name: str, scratch: Path) -> Path:
        """Return a folder as a path of this machine: itself, or a copy of it in `scratch`."""
        if self.is_local:
            return Path(self.root) / name
        self._get(name, scratch / name)
        return scratch / name

    def remove(self, name: str = "") -> None:
        """Remove a folder; what cannot be removed is told to the log."""
        try:
            self.files.rm(f"{self.root}/{name}".rstrip("/"), recursive=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("%s/%s could not be removed: %s", self.url, name, error)

    def for_ray(self) -> dict[str, Any]:
        """Return this place as Ray Train's RunConfig wants it."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        if self.is_local:
            return {"storage_path": self.root}
        handler = PyFileSystem(FSSpecHandler(self.files))
        return {"storage_path": self.root, "storage_filesystem": handler}

    def _get(self, name: str, target: Path) -> None:
        start = f"{self.root}/{name}".rstrip("/")
        for path in self.files.find(start):
            inner = target / str(path).removeprefix(start).lstrip("/")
            inner.parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(path, str(inner))


def opened(url: str) -> Place:
    """Return the storage after writing a small file there.

    Raises:
        ClusterError: It cannot be written from this machine.
    """
    import os

    place = Place(url)
    probe = f".probe-{os.getpid()}"
    try:
        place.write(probe, b"ok")
        place.remove(probe)
    except Exception as error:
        raise unwritable(url, error) from None
    return place


def unwritable(url: str, error: Exception) -> ClusterError:
    """Return the sentence for a storage that does not take what is written."""
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0][:200]
    return ClusterError(
        f"The storage {url} cannot be written ({reason or type(error).__name__}). Give one that "
        "this machine and the cluster can both write, on the System page or with studio cluster."
    )


FOLDER = "events"
TICK_SECONDS = 0.25
FILE_BYTES = 64 << 10
LAST_TRIES = 20


class Writer:
    """The one process that speaks; what it says is on the storage a moment later."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._number = 1 + max(map(_number, place.names(FOLDER)), default=0)
        self._text, self._stored = b"", 0
        self._guard, self._storing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="stream", daemon=True)
        self._thread.start()

    @property
    def is_first(self) -> bool:
        """Whether nobody has spoken before."""
        return self._number == 1

    def say(self, values: dict[str, Any]) -> None:
        """Add one line."""
        line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
        with self._guard:
            self._text += line

    def flush(self) -> None:
        """Have everything on the storage before this returns."""
        with self._storing:
            with self._guard:
                text = self._text
            if len(text) == self._stored:
                return
            self._place.write(_name(self._number), text)
            self._stored = len(text)
            if len(text) > FILE_BYTES:
                with self._guard:
                    self._text = self._text[len(text) :]
                self._number, self._stored = self._number + 1, 0

    def close(self) -> None:
        """Store the last lines, trying for a while where the storage does not answer."""
        self._closed.set()
        self._thread.join()
        for left in reversed(range(LAST_TRIES)):
            try:
                return self.flush()
            except OSError:
                if not left:
                    raise
                threading.Event().wait(TICK_SECONDS)

    def _loop(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            try:
                self.flush()
            except OSError as error:
                logger.warning("the storage did not take what was said, trying again: %s", error)


class Reader:
    """Whoever listens; `number` and `lines` say how far it has come."""

    def __init__(self, place: Place, *, number: int = 1, lines: int = 0) -> None:
        self._place = place
        self.number, self.lines = number, lines

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield what is new."""
        while True:
            follows = self._place.exists(_name(self.number + 1))  # asked first: then it is complete
            text = self._place.read(_name(self.number)) or b""
            whole = text[: text.rfind(b"\n") + 1].splitlines()
            for line in whole[self.lines :]:
                self.lines += 1
                yield json.loads(line)
            if not follows:
                return
            self.number, self.lines = self.number + 1, 0


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.jsonl"


def _number(name: str) -> int:
    return int(name.partition(".")[0])

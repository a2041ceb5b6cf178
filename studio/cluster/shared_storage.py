"""Shared storage of a cluster (a path, `s3://…`, `gs://…`): its event stream and a run's records.

Object stores cannot append, so files are small or written once. Events are JSON lines in numbered
files: the newest is rewritten a few times per second until it is large enough, then the next one
begins. Rewriting never changes earlier lines, so a reader, which remembers how many lines of which
file it has read, may see fewer lines but never wrong ones.

The order of a run says how to train and names the files beside it. Its submission, `cluster.json`
in the run's folder here, is written before Ray gets the job and names the job, so a run is
submitted once even if a process is killed in between.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from studio import atomic
from studio.errors import ClusterError, first_line
from studio.fields import Record
from studio.home import MANIFEST, is_whole, publishing

logger = logging.getLogger(__name__)
FOLDER = "events"
TICK_SECONDS = 0.25
FILE_BYTES = 64 << 10
LAST_TRIES = 20
NOTE = "cluster.json"
ORDER, CONTROL, ERROR = "order.json", "control.json", "error.json"
PACKED, CHECKPOINTS, ADAPTER, REPORT = "packed", "checkpoints", "adapter", "report.json"
MARK = "ADAPTER STUDIO ERROR "
NEEDED = ("torch", "transformers", "accelerate", "datasets", "safetensors", "pydantic", "fsspec")


class Storage:
    """A folder on the storage."""

    def __init__(self, url: str) -> None:
        """Open a folder; it is created on the first write.

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
        """True if it is on a mounted file system."""
        return "file" in (self.files.protocol, *self.files.protocol)

    def below(self, name: str) -> Self:
        """Return a subfolder."""
        return type(self)(f"{self.url}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file; create its folders."""
        path = f"{self.root}/{name}"
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, content)

    def read(self, name: str) -> bytes | None:
        """Return a small file, or None if it does not exist."""
        try:
            content: bytes = self.files.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        return content

    def exists(self, name: str) -> bool:
        """Return True if a file exists."""
        self.files.invalidate_cache()
        return bool(self.files.exists(f"{self.root}/{name}"))

    def names(self, name: str = "") -> list[str]:
        """Return the sorted names in a folder; empty if it does not exist."""
        self.files.invalidate_cache()
        try:
            found = self.files.ls(f"{self.root}/{name}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def send(self, folder: Path, name: str) -> None:
        """Upload a folder, its manifest last, so that a partial upload is recognised."""
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
        """Download a folder to `target` atomically; return False if it does not exist.

        Args:
            target: Destination; replaced if it exists.
            change: Edits the copy before it is published.

        Raises:
            ClusterError: The folder is damaged.
        """
        if not self.exists(f"{name}/{MANIFEST}"):
            return False
        with publishing(target) as temporary:
            self._get(name, temporary)
            if not is_whole(temporary):
                raise ClusterError(f"{name} on the storage {self.url} is damaged or incomplete.")
            if change is not None:
                change(temporary)
        return True

    def local_path(self, name: str, scratch: Path) -> Path:
        """Return a local path of a folder: itself, or a copy in `scratch`."""
        if self.is_local:
            return Path(self.root) / name
        self._get(name, scratch / name)
        return scratch / name

    def remove(self, name: str = "") -> None:
        """Delete a folder; log a failure."""
        try:
            self.files.rm(f"{self.root}/{name}".rstrip("/"), recursive=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("%s/%s could not be removed: %s", self.url, name, error)

    def for_ray(self) -> dict[str, Any]:
        """Return the storage arguments of Ray Train's RunConfig."""
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


def open_storage(url: str) -> Storage:
    """Return the storage after a test write.

    Raises:
        ClusterError: This machine cannot write to it.
    """
    storage = Storage(url)
    probe = f".probe-{os.getpid()}"
    try:
        storage.write(probe, b"ok")
        storage.remove(probe)
    except Exception as error:
        raise not_writable(url, error) from None
    return storage


def not_writable(url: str, error: Exception) -> ClusterError:
    """Return the error for a storage that cannot be written."""
    reason = getattr(error, "strerror", None) or first_line(error) or type(error).__name__
    return ClusterError(
        f"The storage {url} cannot be written ({reason}): choose one that "
        "this machine and the cluster can both write, on the System page or with studio cluster."
    )


# -- events ----------------------------------------------------------------------------------------


class EventWriter:
    """Writes a run's events to the storage in the background; one process per run."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._number = 1 + max(map(_number, storage.names(FOLDER)), default=0)
        self._text, self._stored = b"", 0
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="stream", daemon=True)
        self._thread.start()

    def add(self, values: dict[str, Any]) -> None:
        """Add one line."""
        line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._text += line

    def flush(self) -> None:
        """Write all lines to the storage."""
        with self._write_lock:
            with self._lock:
                text = self._text
            if len(text) == self._stored:
                return
            self._storage.write(_name(self._number), text)
            self._stored = len(text)
            if len(text) > FILE_BYTES:
                with self._lock:
                    self._text = self._text[len(text) :]
                self._number, self._stored = self._number + 1, 0

    def close(self) -> None:
        """Write the last lines; retry for a while if the storage does not answer."""
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
                logger.warning("writing events to the storage failed, retrying: %s", error)


class EventReader:
    """Reads a run's events; `number` and `lines` are its position."""

    def __init__(self, storage: Storage, *, number: int = 1, lines: int = 0) -> None:
        self._storage = storage
        self.number, self.lines = number, lines

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the new events."""
        while True:
            follows = self._storage.exists(_name(self.number + 1))  # first: then this is complete
            text = self._storage.read(_name(self.number)) or b""
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


# -- records ---------------------------------------------------------------------------------------


class Order(Record):
    """Number and kind of workers, the model, and the packages that they need."""

    workers: int
    gpus: bool
    model: str = ""
    needs: tuple[str, ...] = Field(default=())


def needed() -> tuple[str, ...]:
    """Return the requirements of training, such as `torch<=2.13.0,>=2.10`."""
    from packaging.requirements import Requirement

    try:
        ours = metadata.requires("adapter-studio") or []
    except metadata.PackageNotFoundError:  # run from the sources
        return NEEDED
    stated = {one.name: f"{one.name}{one.specifier}" for one in map(Requirement, ours)}
    return tuple(stated.get(name, name) for name in NEEDED)


def lacking(needs: tuple[str, ...]) -> str:
    """Return the requirements that this machine does not meet, as part of a sentence."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, needs):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return ", ".join(found)


def order_in(storage: Storage) -> Order:
    """Return the order, after checking that this machine can execute it.

    Raises:
        ClusterError: The machine does not see the storage, or lacks packages.
    """
    values = read_json(storage, ORDER)
    if values is None:
        raise ClusterError(
            f"The cluster's machine {platform.node()} does not see the storage {storage.url}: use "
            "one that every machine reaches, such as a shared folder, s3:// or gs://."
        )
    order = Order.model_validate(values)
    if missing := lacking(order.needs):
        raise ClusterError(
            f"The cluster's machine {platform.node()} cannot train: {missing}. Install "
            "adapter-studio on every machine of the cluster."
        )
    return order


def read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    """Return a JSON record from the storage; None if it is missing or incomplete."""
    text = storage.read(name)
    try:
        values: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:
        return None
    return values


def write_json(storage: Storage, name: str, values: dict[str, Any]) -> None:
    """Write a JSON record."""
    storage.write(name, json.dumps(values).encode())


class Submission(Record):
    """The cluster job of a run, and how far its events were read."""

    submission: str
    place: str
    address: str = ""
    submitted: bool = False
    file: int = 1
    lines: int = 0
    step: int = 0
    total_steps: int | None = None

    def save(self, run_dir: Path) -> Submission:
        """Write `cluster.json` in one rename."""
        atomic.write(run_dir / NOTE, self.model_dump_json(), durable=True)
        return self


def read_submission(run_dir: Path) -> Submission | None:
    """Return the cluster job of a run, if it was submitted."""
    try:
        return Submission.model_validate_json((run_dir / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def delete_submission(run_dir: Path) -> None:
    """Delete `cluster.json`: the job ended and everything was fetched."""
    (run_dir / NOTE).unlink(missing_ok=True)


def request_stop(sent: Submission) -> None:
    """Request a stop through the storage; log a failure."""
    try:
        write_json(Storage(sent.place), CONTROL, {"number": time.time_ns(), "command": "stop"})
    except (OSError, ClusterError) as error:
        logger.warning("%s could not be stopped: %s", sent.submission, error)

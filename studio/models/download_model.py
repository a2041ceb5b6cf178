"""Download models from the hub into its own cache, or only a model's facts: headers, config.

The hub's library keeps nothing of a file that was interrupted and checks only its size. So each
blob is fetched here with that library's transfer function into a partial file of a fixed name,
continued from there, and renamed when its hash is the hub's. Links from a snapshot appear when all
blobs are there; the library makes them, so other tools find the model.

Facts are read before a download from configuration, tokenizer and weight headers. They are kept in
a folder that reads like the model's own, whose weight files end after their headers, so that
estimates, the X-ray and the form work on it as on a model that is here; `sizes.json` gives
`model_files.read_header` the lengths of the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import huggingface_hub
from huggingface_hub import constants, utils

from studio import atomic, offline
from studio.errors import DiskFull, InputError, ModelError, Unreached
from studio.fields import knob
from studio.home import Home
from studio.job_request import Request
from studio.models.hub_models import (
    ANSWER_SECONDS,
    PARTIAL,
    WEIGHTS,
    RemoteFile,
    Repository,
    cache_folder,
    endpoint,
    headers,
    linking_mark,
    look_up,
    read_name,
    ref_file,
    refused,
    repository_folder,
)
from studio.models.model_files import SIZES
from studio.names import readable
from studio.spec import ModelSource
from studio.training.training_events import Event, Finished, Loading, Working

T = TypeVar("T")
WORKERS = 4  # files at once
LOOK_SECONDS = 0.5
SPARE_BYTES = 256 << 20  # that stay free on the disk
PARTS = 1000
FRESH_SECONDS = 86_400
MOST_BYTES = 64 << 20  # of configuration and tokenizer
HEADERS_AT_ONCE = 8
_failures: dict[tuple[str, str], tuple[float, InputError]] = {}  # by hub and model, or hub and ""


def missing(found: Repository) -> list[RemoteFile]:
    """Return the files of a repository that are not in the cache yet."""
    blobs = repository_folder(found.id, found.kind) / "blobs"
    return [file for file in found.files if not (blobs / file.etag).exists()]


def arrived_bytes(found: Repository) -> int:
    """Return how much of a repository is in the cache, whole and partial files."""
    blobs = repository_folder(found.id, found.kind) / "blobs"
    return sum(
        file.size if (blobs / file.etag).exists() else _size(blobs / f"{file.etag}{PARTIAL}")
        for file in found.files
    )


def check(found: Repository) -> None:
    """Refuse a model that cannot be trained here, or that the disk has no room for.

    Raises:
        ModelError: The reason why it cannot be trained or downloaded.
        DiskFull: How much room is missing.
    """
    if found.why_not:
        raise ModelError(found.why_not)
    folder = repository_folder(found.id, found.kind)
    needed = found.size_bytes - arrived_bytes(found) + SPARE_BYTES
    if _copies():
        snapshot = folder / "snapshots" / found.revision
        needed += sum(file.size for file in found.files if not (snapshot / file.name).exists())
    free = free_bytes()
    if needed > free:
        raise DiskFull(
            f"{found.id} needs {readable(needed)} in {folder.parent}, where "
            f"{readable(free)} are free: free some room, or set HF_HUB_CACHE to another disk."
        )
    for file in missing(found):
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            more = " --repo-type dataset" if found.kind == "dataset" else ""
            raise ModelError(
                f"{file.name} of {found.id} has {readable(file.size)}, more than the hub sends in "
                "one answer. Install hf_xet and download it into the same cache with "
                f"`hf download {found.id}{more}`, then use it by its name."
            )


def _copies() -> bool:
    """Return True if the library copies blobs into a snapshot, since it cannot link them."""
    from huggingface_hub.file_download import are_symlinks_supported

    return os.name == "nt" and not are_symlinks_supported(cache_folder())


def free_bytes() -> int:
    """Return the free bytes of the disk that holds the cache."""
    place = repository_folder("x/y").parent
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def fetch(found: Repository) -> Path:
    """Download what is missing of a model and return its snapshot.

    Raises:
        StudioError: It did not arrive whole; what has arrived is kept.
    """
    check(found)
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="download") as pool:
        largest_first = sorted(missing(found), key=lambda file: -file.size)
        futures = [pool.submit(_fetch_blob, found, file) for file in largest_first]
        try:
            for one in futures:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return _link(found)


def _fetch_blob(found: Repository, file: RemoteFile) -> None:
    """Fetch one file, continuing a partial one, and give it its name when its hash is right."""
    from filelock import FileLock
    from huggingface_hub.file_download import http_get

    folder = repository_folder(found.id, found.kind)
    blob, partial = folder / "blobs" / file.etag, folder / "blobs" / f"{file.etag}{PARTIAL}"
    lock = folder.parent / ".locks" / folder.name / f"{file.etag}.lock"  # as the library names it
    try:
        for parent in (blob.parent, lock.parent):
            parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if blob.exists():
                return
            begun = hashlib.sha256() if file.in_lfs else hashlib.sha1(b"blob %d\0" % file.size)
            url = huggingface_hub.hf_hub_url(
                found.id, file.name, revision=found.revision, repo_type=found.kind
            )
            if _size(partial) > file.size:
                partial.unlink()
            with partial.open("a+b") as writer:
                http_get(
                    url, writer, resume_size=writer.tell(), headers=headers(),
                    expected_size=file.size, displayed_filename=file.name,
                )  # fmt: skip
                writer.seek(0)
                digest = hashlib.file_digest(writer, lambda: begun)
            if digest.hexdigest() != file.etag:
                partial.unlink()
                raise Unreached(
                    f"{file.name} of {found.id} arrived damaged (its hash is not the hub's) and "
                    "was removed: try again; all other files are kept."
                )
            os.replace(partial, blob)
    except Exception as error:  # the library raises dozens of kinds
        raise refused(found.id, error, found.branch, found.kind) from None


def _link(found: Repository) -> Path:
    """Let the library link the blobs into a snapshot, then note what the branch stands for."""
    mark = linking_mark(found.id, found.revision, found.kind)
    ref = ref_file(found.id, found.branch, found.kind)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        made = huggingface_hub.snapshot_download(
            found.id, repo_type=found.kind, revision=found.revision,
            allow_patterns=[file.name for file in found.files], cache_dir=cache_folder(),
        )  # fmt: skip
    except Exception as error:  # as above
        raise refused(found.id, error, found.branch, found.kind) from None
    if found.branch != found.revision:
        ref.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(ref, found.revision)
    mark.unlink(missing_ok=True)
    return Path(made)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class DownloadRequest(Request):
    """Download a model of the hub: safetensors, configuration and tokenizer, no pickles."""

    kind: ClassVar[str] = "download"
    retries: ClassVar[int] = 8  # for about two hours
    repo: str = knob(
        "", "Hub id, or the address of the model's page.", positional=True, metavar="MODEL",
        max_length=300,
    )  # fmt: skip
    revision: str = knob("", "Branch, tag or commit; the main branch by default.", max_length=100)
    commit: str = knob("", "Commit that was shown before.", flag="-", max_length=40)

    def checked(self, home: Home) -> Self:
        """Return it with its commit pinned; the hub must have it, and it must be trainable here."""
        name, revision = read_name(self.repo)
        revision = self.revision or revision
        ref_file(name, revision or "main")  # raises
        found = look_up(name, self.commit or revision)
        check(found)
        pinned = {"repo": found.id, "revision": revision, "commit": found.revision}
        return self.model_copy(update=pinned)

    def target(self, home: Home) -> Path:
        """Return the model's folder in the hub's cache."""
        return repository_folder(self.repo)

    def perform(self, home: Home, run_dir: Path, control: Any) -> Iterator[Event]:
        """Fetch the files, and say how many bytes are here."""
        yield Loading(text=f"Asking the hub for {self.repo}")
        found = replace(look_up(self.repo, self.commit), branch=self.revision or "main")
        folder = yield from followed(found, home)
        facts = {"model": found.id, "revision": found.revision, "bytes": found.size_bytes,
                 "folder": str(folder)}  # fmt: skip
        yield Finished(step=PARTS, facts=facts)

    def outcome(self, home: Home, run_dir: Path, result: dict[str, Any]) -> dict[str, Any]:
        """Return the model and where it is."""
        return {key: result.get(key) for key in ("model", "revision", "bytes", "folder")}


def followed(found: Repository, home: Home) -> Generator[Event, None, Path]:
    """Fetch a repository as `fetch` does, and yield how many bytes are here meanwhile."""
    begun, at_first = time.monotonic(), arrived_bytes(found)
    download = in_thread(lambda: fetch(found))
    while not download.done():
        wait([download], LOOK_SECONDS)
        if not download.done() and offline.is_offline(home):
            raise Unreached(f"{found.id} waits: this studio is offline. What has arrived is kept.")
        yield _progress(found, arrived_bytes(found), at_first, time.monotonic() - begun)
    try:
        return download.result()
    except DiskFull as error:  # the queue would resume it as soon as the home has room
        raise ModelError(error.text) from None


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Run some work in a thread that does not keep the process alive; return its future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # it is raised again where the job is watched
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _progress(found: Repository, arrived: int, at_first: int, seconds: float) -> Working:
    total = max(1, found.size_bytes)
    words = f"{readable(arrived)} of {readable(total)}"
    speed = (arrived - at_first) / max(seconds, 1e-9)
    if arrived >= total:
        words += ", checking"
    elif speed > 0 and seconds > 1:
        left = int((total - arrived) / speed)
        words += f" · {readable(speed)}/s · {left // 60}:{left % 60:02} min left"
    return Working(step=min(PARTS, PARTS * arrived // total), total_steps=PARTS, text=words)


# -- facts before a download -----------------------------------------------------------------------


def known_facts(source: ModelSource, home: Home) -> Path | None:
    """Return the folder of a model that was looked at before, without asking the hub."""
    folder = _facts_folder(source, home)
    return folder if (folder / SIZES).is_file() else None


def look_at_facts(source: ModelSource, home: Home) -> Path:
    """Return the folder with a model's facts; the hub is asked at most once a day.

    Raises:
        ModelError: The hub does not have it, refuses it, or it cannot be trained here.
        Unreached: The hub does not answer.
    """
    from filelock import FileLock

    folder, hub = _facts_folder(source, home), endpoint()
    if _fresh(folder):
        return folder
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # one looks, the others wait for it
        if _fresh(folder):
            return folder
        for when, failure in (_failures.get((hub, key), (0.0, None)) for key in ("", folder.name)):
            if failure is not None and time.monotonic() - when < ANSWER_SECONDS:
                raise failure
        try:
            found = look_up(source.path, source.revision)
            if found.why_not:
                raise ModelError(found.why_not)
            _write_facts(found, folder)
        except InputError as error:
            key = "" if isinstance(error, Unreached) else folder.name
            _failures[hub, key] = (time.monotonic(), error)
            raise
    return folder


def _fresh(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # it was never looked at
        return time.time() - (folder / SIZES).stat().st_mtime < FRESH_SECONDS
    return False


def _facts_folder(source: ModelSource, home: Home) -> Path:
    name = f"{source.path}@{source.revision or 'main'}".replace("/", "--").replace("\\", "--")
    return home.state / "looked-at" / name


def _write_facts(found: Repository, folder: Path) -> None:
    """Fetch the small files and the headers, then publish the folder."""
    small = [file for file in found.files if not file.name.endswith(WEIGHTS)]
    if sum(file.size for file in small) > MOST_BYTES:
        raise ModelError(f"The configuration and tokenizer of {found.id} are unusually large.")
    made, before = (folder.with_name(f"{folder.name}.{end}") for end in ("new", "old"))
    for left in (made, before):
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            list(pool.map(lambda file: _fetch_facts(found, file, made), found.files))
    except Exception as error:  # the library raises dozens of kinds
        raise refused(found.id, error, found.branch) from None
    sizes = {file.name: file.size for file in found.files if file.name.endswith(WEIGHTS)}
    atomic.write(made / SIZES, json.dumps(sizes))
    if folder.exists():
        atomic.replace(folder, before)
    atomic.replace(made, folder)
    shutil.rmtree(before, ignore_errors=True)


def _fetch_facts(found: Repository, file: RemoteFile, folder: Path) -> None:
    if file.name.endswith(WEIGHTS):
        read = huggingface_hub.HfApi().parse_safetensors_file_metadata(
            found.id, file.name, revision=found.revision, timeout=ANSWER_SECONDS
        )
        table = {
            name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
            for name, one in read.tensors.items()
        }
        end = max((one.data_offsets[1] for one in read.tensors.values()), default=0)
        header = json.dumps(table, separators=(",", ":")).encode().ljust(file.size - 8 - end)
        (folder / file.name).write_bytes(len(header).to_bytes(8, "little") + header)
        return
    answer = huggingface_hub.get_session().get(
        huggingface_hub.hf_hub_url(found.id, file.name, revision=found.revision), headers=headers(),
        timeout=ANSWER_SECONDS, follow_redirects=True,
    )  # fmt: skip
    huggingface_hub.hf_raise_for_status(answer)
    (folder / file.name).write_bytes(answer.content)

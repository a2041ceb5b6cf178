"""The home folder: the place of everything the user made, and how folders are written whole.

Layout (a contract): `studio.db`, `runs/<id>/{spec.yaml, log.txt, checkpoints/step-00000100/,
adapter/, report.json}`, `adapters/<name>/`, `datasets/<name>/`, `models/`. A folder that matters is
written beside its place, fsynced, listed with hashes in a manifest, then renamed: a half-written
one is never mistaken for a whole one. This module knows folders, not what is in them.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from studio import atomic
from studio.errors import DiskFull, HomeError, is_disk_full

MANIFEST = "MANIFEST.json"
_replacing = threading.Lock()  # one thread at a time has a folder between its two names


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one studio; `open_home` makes them."""

    path: Path

    @property
    def database(self) -> Path:
        """The SQLite file of the queue."""
        return self.path / "studio.db"

    @property
    def runs(self) -> Path:
        """One folder a run, named by job id."""
        return self.path / "runs"

    @property
    def adapters(self) -> Path:
        """The library: imported and mixed adapters, by name."""
        return self.path / "adapters"

    @property
    def datasets(self) -> Path:
        """Imported snapshots and the token cache."""
        return self.path / "datasets"

    @property
    def models(self) -> Path:
        """Merged and downloaded models."""
        return self.path / "models"

    @property
    def trash(self) -> Path:
        """Deleted adapters and datasets (`studio.trash`); made when first needed."""
        return self.path / "trash"

    @property
    def state(self) -> Path:
        """Locks, sockets, tokens and logs of the running processes; private to the user."""
        return self.path / "state"

    def run(self, job_id: int) -> Path:
        """The folder of one run."""
        return self.runs / str(job_id)


def open_home(path: str | Path | None = None) -> Home:
    """Open (and make) the home folder: `path`, else `STUDIO_HOME`, else the user's data folder.

    Raises:
        HomeError: It cannot be made or written.
    """
    chosen = path or os.environ.get("STUDIO_HOME") or platformdirs.user_data_path("adapter-studio")
    home = Home(Path(chosen).expanduser().absolute())
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (home.runs, home.adapters, home.datasets, home.models, home.state):
            folder.mkdir(exist_ok=True, mode=0o700)
        probe = home.state / f".probe-{os.getpid()}"
        probe.write_bytes(b"ok")
        probe.unlink(missing_ok=True)  # another thread's too
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"The disk that holds {home.path} is full. Free some room.") from None
        raise HomeError(
            f"The home folder {home.path} cannot be written ({error.strerror}). "
            "Give another one with --home or STUDIO_HOME."
        ) from None
    return home


def slug(name: str, *, fallback: str = "unnamed") -> str:
    """Return a safe folder name: lower case letters, digits, dashes; at most 60 characters."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or fallback


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: yields a temporary folder, renames it to `target`.

    Raises:
        DiskFull: No room; nothing of the new folder stays, an old one is untouched.
    """
    temporary = atomic.beside(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _write_manifest(temporary)
        retired = target.with_name(f".old-{target.name}-{os.getpid()}")
        with _replacing:
            if target.exists():
                shutil.rmtree(retired, ignore_errors=True)  # of a time when the last sync failed
                atomic.replace(target, retired)
            try:
                atomic.replace(temporary, target)
            except OSError:
                if retired.exists():
                    atomic.replace(retired, target)
                raise
            atomic.flush_folder(target.parent)
            shutil.rmtree(retired, ignore_errors=True)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFull(
                f"The disk is full: {target.name} could not be written to {target.parent}. "
                "Free some room and resume; what was saved before is intact.",
                folder=target.parent,
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what an interrupted `publishing` or `atomic.write` left; restore what was retired.

    What another living process or thread writes just now stays.
    """
    for left in folder.glob(".old-*-*"):
        if not restore_retired(left):
            shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(".tmp-*-*"):
        if not _in_other_hands(left):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def restore_retired(folder: Path) -> bool:
    """Rename what `publishing` retired back, if nothing took its place; return whether it did."""
    target = folder.with_name(folder.name.removeprefix(".old-").rpartition("-")[0])
    if target.exists():
        return False
    atomic.replace(folder, target)
    return True


def _in_other_hands(temporary: Path) -> bool:
    import psutil

    before, _, pid = temporary.name.rpartition("-")
    if not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        others = {one.native_id for one in threading.enumerate()} - {threading.get_native_id()}
        return before.rpartition("-")[2] in map(str, others)
    try:
        process = psutil.Process(int(pid))
        # A killed writer may be a zombie for a while, and its number may be another's by now.
        younger = process.create_time() > temporary.stat().st_mtime + 2
        return process.status() != psutil.STATUS_ZOMBIE and not younger
    except (psutil.NoSuchProcess, OSError):
        return False


def is_whole(folder: Path) -> bool:
    """Whether every file of a published folder is there with the size and hash of its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(
            (folder / name).stat().st_size == entry["size"]
            and _sha256(folder / name) == entry["sha256"]
            for name, entry in manifest.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 of a published folder's manifest."""
    return _sha256(folder / MANIFEST)


def manifest_entry(file: Path) -> dict[str, int | str]:
    """Return what a manifest says of a file: size in bytes and SHA-256."""
    return {"size": file.stat().st_size, "sha256": _sha256(file)}


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {p.relative_to(folder).as_posix(): manifest_entry(p) for p in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in [*files, folder / MANIFEST]:
        atomic.flush(file)
    for inner in [p for p in folder.rglob("*") if p.is_dir()]:
        atomic.flush_folder(inner)
    atomic.flush_folder(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

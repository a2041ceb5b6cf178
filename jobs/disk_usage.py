"""Disk usage of a home, retention rules, and the clean-up of what they no longer keep.

Removed are spare checkpoints of ended runs, folders of deleted runs, adapters and datasets deleted
30 days ago, half-written files of dead processes and old uploads of the page. The newest and the
best checkpoint of a run that can be resumed stay, and so does every adapter, dataset and model, and
what a waiting job reads.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jobs import queue_settings
from jobs.job_queue import JobStore
from jobs.job_record import ENDED, OPEN
from jobs.run_folder import CHECKPOINTS, checkpoint_folders, needed_steps, newest_step, step_of
from studio.home import Home, restore_retired
from studio.names import readable
from studio.trash import SECONDS, listed

LEFTOVER_SECONDS = 3600.0
UPLOAD_SECONDS = 86_400.0
SHOWN_RUNS = 12
NEEDED_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file or folder that can be removed, and why."""

    path: str
    bytes: int
    what: str
    why: str


def usage(store: JobStore) -> dict[str, Any]:
    """Return the disk usage by part, the largest runs, and the free space."""
    home = store.home
    names = {job.id: job for job in store.list()}
    runs, checkpoints, adapters, others = [], 0, 0, 0
    for folder in _folders(home.runs):
        job = names.get(int(folder.name)) if folder.name.isdecimal() else None
        whole, spare, made = (size(folder / name) for name in ("", "checkpoints", "adapter"))
        checkpoints, adapters = checkpoints + spare, adapters + made
        others += whole - spare - made
        runs.append({
            "id": job.id if job else None, "name": job.name if job else folder.name,
            "state": job.state if job else "deleted", "bytes": whole, "checkpoints": spare,
        })  # fmt: skip
    parts = {
        "Checkpoints": checkpoints,
        "Other files of runs": others,
        "Adapters": adapters + size(home.adapters),
        "Trash": size(home.trash),
        "Exports": size(home.path / "exports"),
        "Datasets": size(home.datasets),
        "Models": size(home.models),
        "Database": sum(size(p) for p in home.path.glob("studio.db*")),
        "Copies of the database": size(home.path / "backups"),
        "Uploads and logs": size(home.state),
    }
    runs.sort(key=lambda run: -int(run["bytes"] or 0))
    return {
        "path": str(home.path),
        "parts": [{"name": name, "bytes": count} for name, count in parts.items()],
        "runs": runs[:SHOWN_RUNS],
        "free_bytes": shutil.disk_usage(home.path).free,
        "rules": rules(store),
    }


def rules(store: JobStore) -> dict[str, int]:
    """Return the retention rules for the disk usage of this home."""
    return {name: queue_settings.read(store, name) for name in ("keep_checkpoints", "keep_days")}


def spare(store: JobStore, *, trash: bool = False) -> list[Item]:
    """Return everything that the rules no longer keep, or all of the trash, largest first."""
    if trash:
        return sorted(_deleted(store.home, 0), key=lambda item: -item.bytes)
    found = (
        _deleted(store.home, SECONDS),
        _spare_checkpoints(store),
        _unknown_runs(store),
        _half_written(store.home),
        _old_uploads(store.home),
    )
    return sorted(chain(*found), key=lambda item: -item.bytes)


def clean(store: JobStore, *, trash: bool = False) -> list[Item]:
    """Remove what `spare` returns, and return what was removed."""
    gone = []
    for item in spare(store, trash=trash):
        path = Path(item.path)
        if path.is_symlink() or not path.resolve().is_relative_to(store.home.path.resolve()):
            continue  # a link that leads out of the home
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if not path.exists():
            gone.append(item)
    return gone


def report(items: list[Item]) -> dict[str, Any]:
    """Return the items to clean up as plain values with the sum of their bytes."""
    return {"bytes": sum(i.bytes for i in items), "items": [asdict(item) for item in items]}


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that has a path."""
    return shutil.disk_usage(path).free


def shortage(path: Path) -> str | None:
    """Return a sentence if a disk has too little space to start a job."""
    free = free_bytes(path)
    if free >= NEEDED_BYTES:
        return None
    return (
        f"Only {readable(free)} are free in {path}. The queue waits until there are "
        f"{readable(NEEDED_BYTES)}; nothing is lost."
    )


def size(path: Path) -> int:
    """Return the disk usage of a file or folder in bytes, without links."""
    try:
        if path.is_symlink():
            return 0
        if path.is_file():
            return path.stat().st_size
        return sum(
            size(Path(entry.path)) if entry.is_dir(follow_symlinks=False)
            else entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(path)
        )  # fmt: skip
    except OSError:
        return 0  # removed meanwhile


def _spare_checkpoints(store: JobStore) -> Iterator[Item]:
    from jobs.job_inputs import reads  # imports numpy, which the supervisor does not need

    keep, days = rules(store).values()
    read = {path for job in store.list(OPEN) for path in reads(store, job.spec)}
    for job in store.list(ENDED):
        run_dir = store.home.run(job.id)
        folders = checkpoint_folders(run_dir)
        if job.state == "succeeded":
            old = bool(days) and time.time() - (job.finished or 0) > days * 86_400
            kept = 0 if old else keep
        else:  # it can be resumed from the newest whole one
            newest = newest_step(run_dir)
            kept = sum(1 for f in folders if step_of(f) >= newest) if newest else len(folders)
        needed = needed_steps(run_dir) if 0 < kept < len(folders) else []
        ended = job.state if job.state != "cancelled" else "was cancelled"
        needed += [step_of(folder) for folder in folders if folder in read]
        for folder in (one for one in folders[kept:] if step_of(one) not in needed):
            why = f"step {step_of(folder)} of a run that {ended}"
            yield _item(folder, f"checkpoint of {job.name}", why)


def _unknown_runs(store: JobStore) -> Iterator[Item]:
    known = {str(job.id) for job in store.list()}
    for folder in _folders(store.home.runs):
        if folder.name.isdecimal() and folder.name not in known and _aged(folder, LEFTOVER_SECONDS):
            left = folder / CHECKPOINTS if (folder / "adapter").exists() else folder
            if left.exists():  # an adapter was restored, or the database is an older copy
                yield _item(left, f"run folder {folder.name}", "its job was deleted")


def _deleted(home: Home, seconds: float) -> Iterator[Item]:
    for one in listed(home, home.path):
        if time.time() - one.deleted > seconds:
            place = home.trash / one.token
            if one.path.parent == home.datasets:
                yield _item(place, one.name, "a deleted dataset")
            else:
                yield _item(place, one.name, "a deleted adapter")


def _half_written(home: Home) -> Iterator[Item]:
    import psutil

    for place in (home.runs, home.adapters, home.datasets, home.models):
        for path in list(place.rglob(".*")):
            match = re.fullmatch(r"\.(?:tmp|old)-.+-(\d+)", path.name)
            if match and not psutil.pid_exists(int(match[1])) and _aged(path, LEFTOVER_SECONDS):
                if path.name.startswith(".old-") and restore_retired(path):
                    continue
                yield _item(path, path.name, "a process ended while it wrote this")


def _old_uploads(home: Home) -> Iterator[Item]:
    for path in _folders(home.state / "uploads"):
        if _aged(path, UPLOAD_SECONDS):
            yield _item(path, "upload", "the page's own copy, a day old")


def _item(path: Path, what: str, why: str) -> Item:
    return Item(path=str(path), bytes=size(path), what=what, why=why)


def _folders(place: Path) -> list[Path]:
    try:
        return [p for p in place.iterdir() if p.is_dir() and not p.is_symlink()]
    except OSError:
        return []


def _aged(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > seconds
    except OSError:
        return False

"""Whether the disk has room: without it nothing starts; what paused for it goes on by itself."""

import shutil
from pathlib import Path

from jobs.checkpoints import newest_step
from jobs.store import JobStore
from studio.sizes import readable

NEEDED_BYTES = 256 << 20


def free_bytes(path: Path) -> int:
    """Return how much room the file system of `path` has for us."""
    return shutil.disk_usage(path).free


def shortage(path: Path) -> str | None:
    """Return a sentence when there is too little room to start anything."""
    free = free_bytes(path)
    if free >= NEEDED_BYTES:
        return None
    return (
        f"Only {readable(free)} are free in {path}. The queue waits until there are "
        f"{readable(NEEDED_BYTES)}; nothing is lost."
    )


def resume_what_waited_for_room(store: JobStore) -> None:
    """Queue again the runs that paused because the disk was full, if each now has room."""
    for job in store.list(["paused"]):
        if job.error_kind != "disk_full":
            continue
        run_dir = store.home.run(job.id)
        if free_bytes(store.home.path) > NEEDED_BYTES + 2 * _newest_checkpoint_bytes(run_dir):
            step = newest_step(run_dir)
            store.go_on(job.id, newest_step=step, state="paused")


def _newest_checkpoint_bytes(run_dir: Path) -> int:
    folders = sorted((run_dir / "checkpoints").glob("step-*"))
    if not folders:
        return 0
    return sum(file.stat().st_size for file in folders[-1].rglob("*") if file.is_file())

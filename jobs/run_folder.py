"""Files in a run's folder: checkpoints and their steps, the newest valid one, end of the log."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from studio import atomic
from studio.home import is_whole

CHECKPOINTS = "checkpoints"
LINE_BYTES = 400


@contextlib.contextmanager
def discarding(path: Path) -> Iterator[None]:
    """Take a run's file or folder away at once, delete it at the end; an exception undoes it.

    Entered last in a transaction and left after it, it deletes what was committed to be deleted.
    """
    aside = atomic.beside(path)
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        atomic.replace(path, aside)
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            atomic.replace(aside, path)
        raise
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


def log_tail(path: Path, lines: int) -> str:
    """Return about the last `lines` lines of a run's log; empty if there is no file yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LINE_BYTES * lines))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0."""
    return next((step_of(one) for one in checkpoint_folders(run_dir) if is_whole(one)), 0)


def needed_steps(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints that a resumed run needs, oldest first.

    They are the newest complete one, and the best, whose adapter a run may load at its end.
    """
    newest = newest_step(run_dir)
    note = folder_of(run_dir, newest) / "state.json"
    progress = (
        json.loads(note.read_text(encoding="utf-8")).get("progress", {}) if note.is_file() else {}
    )
    best = progress.get("best_step") or newest
    return [step for step in sorted({best, newest}) if is_whole(folder_of(run_dir, step))]


def folder_of(run_dir: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint in a run's folder."""
    return run_dir / CHECKPOINTS / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint's folder such as `step-00000100`."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Return the folders of all checkpoints, newest first, incomplete ones included."""
    found = (run_dir / CHECKPOINTS).glob("step-*")
    folders = [one for one in found if one.name[5:].isdecimal() and not one.is_symlink()]
    return sorted(folders, key=step_of, reverse=True)

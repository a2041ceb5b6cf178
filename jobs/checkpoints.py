"""Which checkpoint of a run can be trusted: the newest whose files all match their manifest."""

from pathlib import Path

from studio.home import is_whole


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 when there is none."""
    return next((step_of(folder) for folder in _newest_first(run_dir) if is_whole(folder)), 0)


def folder_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Read the step from a folder name such as `step-00000100`."""
    return int(folder.name.removeprefix("step-"))


def _newest_first(run_dir: Path) -> list[Path]:
    folders = [
        folder
        for folder in (run_dir / "checkpoints").glob("step-*")
        if folder.name.removeprefix("step-").isdigit()
    ]
    return sorted(folders, key=step_of, reverse=True)

"""A run that is trained on another machine: a folder that goes there, and comes back.

`pack` writes everything the run needs, with a script for `accelerate launch` and one for Slurm.
There, `python -m studio.training.transfer FOLDER` (under accelerate or torchrun on as many
processes as they start) trains as the spec says, resuming by itself. `arrive` reads the folder that
came back as the events of a run.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.errors import DataError, InputError, StudioError
from studio.home import Home, is_whole, open_home, publishing
from studio.spec import RunSpec
from studio.training.events import Event, Finished, event_from

EVENTS = "events.jsonl"
RUN = """#!/usr/bin/env bash
# Trains this folder on the GPUs of one machine, after `pip install adapter-studio`.
set -euo pipefail
cd "$(dirname "$0")"
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
exec accelerate launch --num_machines 1 --mixed_precision no --dynamo_backend no \\
  --num_processes "${NUM_PROCESSES:-$((gpus > 1 ? gpus : 1))}" -m studio.training.transfer .
"""
SLURM = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.txt
# Submit with `sbatch slurm.sh` from this folder. When it is cut off, submit it again: it goes on.
set -euo pipefail
NUM_PROCESSES={processes} srun bash run.sh
"""
README = """{name}: a run of Adapter Studio, packed to be trained elsewhere.

1. Copy this folder to the machine.{model}
2. pip install adapter-studio, then `bash run.sh`, or `sbatch slurm.sh` on a Slurm cluster.
3. Copy the folder back, with the run/ that is in it now, and say `studio unpack FOLDER`.
"""


def pack(spec: RunSpec, out: Path, home: Home, *, with_model: bool = False) -> RunSpec:
    """Write the folder `out` whole; returns the spec as it stands there, its paths relative.

    Raises:
        InputError: There is something at `out`.
        DiskFull: Nothing of the folder stays.
    """
    if out.exists():
        raise InputError(f"{out} is there already: give a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    model = Path(spec.model.path)
    with publishing(out.absolute()) as folder:
        changes: dict[str, Any] = {
            "data.path": _taken(spec.data.path, folder, home),
            "data.validation_path": _taken(spec.data.validation_path, folder, home),
            "train.device": "auto",
        }
        note = ""
        if with_model and model.is_dir():
            shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(".*"))
            changes["model.path"] = "model"
        elif model.is_dir():
            note = f"\n   Copy the model {model.name} too, and set model.path in spec.yaml."
        packed = spec.with_values(changes)
        (folder / "spec.yaml").write_text(packed.to_yaml(), encoding="utf-8")
        processes = spec.train.num_devices
        name = spec.name or "adapter-studio"
        (folder / "run.sh").write_text(RUN)
        script = SLURM.format(name=name, processes=processes, cpus=4 * processes)
        (folder / "slurm.sh").write_text(script)
        (folder / "README.txt").write_text(README.format(name=name, model=note))
    return packed


def arrive(folder: Path, run_dir: Path) -> Iterator[Event]:
    """Take a folder that was trained elsewhere: its adapter into `run_dir`, its events in order.

    Raises:
        InputError: It was not trained to its end, or its adapter is damaged.
    """
    trained = folder / "run" / "adapter"
    events = list(_events(folder / "run" / EVENTS))
    last = events[-1] if events else None
    if not isinstance(last, Finished) or last.reason != "completed":
        done = f"it stands at step {last.step}" if last else "it has not begun"
        raise InputError(
            f"{folder} was not trained to its end ({done}): go on there with run.sh first."
        )
    if not is_whole(trained):
        raise InputError(f"The adapter in {folder} is damaged or cut short: copy the folder again.")
    yield from events[:-1]
    with publishing(run_dir / "adapter") as target:
        shutil.copytree(trained, target, dirs_exist_ok=True)
    for name in ("report.json", "log.txt"):
        if (folder / "run" / name).is_file():
            shutil.copyfile(folder / "run" / name, run_dir / f"elsewhere-{name}")
    values = {**last.as_dict(), "adapter": str(run_dir / "adapter")}
    yield event_from(values)


def read_spec(folder: Path) -> RunSpec:
    """Read a packed folder's spec as it stands there."""
    return RunSpec.from_yaml(folder / "spec.yaml")


def spec_in(folder: Path) -> RunSpec:
    """Return a packed folder's spec with the paths of this machine."""
    spec = read_spec(folder)
    changes: dict[str, Any] = {}
    for field in ("model.path", "data.path", "data.validation_path"):
        part, _, name = field.partition(".")
        value = getattr(getattr(spec, part), name)
        if value and (folder / value).exists():
            changes[field] = str(folder / value)
    return spec.with_values(changes)


def main(arguments: list[str] | None = None) -> int:
    """Train a packed folder; every process of a launcher calls this."""
    folder = Path((arguments or sys.argv[1:] or ["."])[0]).absolute()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _train(folder)
    except StudioError as error:
        print(error.text, file=sys.stderr)
        return error.exit_code
    return 0


def _train(folder: Path) -> None:
    from studio.training.run import train

    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    changes: dict[str, Any] = {"train.num_processes": size}
    if size > 1:
        changes["train.device"] = _join()
    spec, run_dir = spec_in(folder).with_values(changes), folder / "run"
    run_dir.mkdir(exist_ok=True)
    with (run_dir / EVENTS).open("a", encoding="utf-8") as file:
        for event in train(
            spec, run_dir=run_dir, home=open_home(folder / "home"), in_team=size > 1
        ):
            if rank == 0:
                file.write(json.dumps(event.as_dict()) + "\n")
                file.flush()
                logging.info("%s", event)


def _join() -> str:
    """Join the launcher's processes; return this one's device."""
    import torch

    gpus = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpus else "gloo")
    if not gpus:
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device


def _taken(path: str, folder: Path, home: Home) -> str:
    """Copy a dataset into the folder; return its path there. Demos and hub ids are named only."""
    source = Path(path)
    if not path or path.startswith("starter:"):
        return path
    if source.is_dir() or source.is_file():
        target = folder / "data" / source.name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(source, target)
        return str(target.relative_to(folder))
    if (snapshot := home.datasets / path).is_dir():
        shutil.copytree(snapshot, folder / "home" / "datasets" / path)
    return path


def _events(path: Path) -> Iterator[Event]:
    """The events of a run in order; steps that were done again after a cut are said again."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(lines, 1):
        try:
            yield event_from(json.loads(line))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last one may be cut off
                raise DataError(f"Line {number} of {path} is no event of a run.") from None


if __name__ == "__main__":
    raise SystemExit(main())

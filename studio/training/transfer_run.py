"""Train a run on another machine: pack it into a folder, train that folder, unpack the result.

`pack` writes everything the run needs, with a script for `accelerate launch` and one for Slurm.
`python -m studio.training.transfer_run FOLDER` trains the folder, under accelerate or torchrun on
as many processes as they start, and resumes from its newest checkpoint; the script starts them
again with smaller batches where that is the retry of a run out of memory. `unpack` copies the
adapter of a trained folder and yields its events.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from studio import atomic
from studio.errors import DataError, InputError, OutOfMemory, SpecError, StudioError
from studio.home import Home, is_whole, open_home, publishing
from studio.spec import RunSpec
from studio.training.training_events import Event, Finished, Loading, event_from

EVENTS, CHANGES, AGAIN = "events.jsonl", "changes.json", "again"
DATA = {"data.path": "train", "data.validation_path": "validation", "train.general_data": "general"}
RUN = """#!/usr/bin/env bash
# Trains this folder on the GPUs of one machine, after `pip install adapter-studio`.
set -euo pipefail
cd "$(dirname "$0")"
rm -f run/again run/changes.json  # of an earlier start
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
set -m  # all processes of the training are one group, which a signal to this script reaches
until
  accelerate launch --num_machines 1 --mixed_precision no --dynamo_backend no \\
    --num_processes "${NUM_PROCESSES:-$((gpus > 1 ? gpus : 1))}" \\
    -m studio.training.transfer_run . &
  trap 'kill -TERM -- "-$!"' TERM INT
  code=0; wait $! || code=$?
  while kill -0 $! 2>/dev/null; do code=0; wait $! || code=$?; done  # a signal ended `wait`
  [ $code = 0 ]
do
  rm run/again 2>/dev/null || exit $code  # it is there to be retried when memory was out
done
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
# Submit with `sbatch slurm.sh` from this folder. After an interruption submit it again to resume.
set -euo pipefail
NUM_PROCESSES={processes} srun bash run.sh
"""
README = """{name}: a run of Adapter Studio, packed to train on another machine.

1. Copy this folder to the machine.{model}
2. pip install adapter-studio, then `bash run.sh`, or `sbatch slurm.sh` on a Slurm cluster.
3. Copy the folder back, including its new run/ folder, and run `studio unpack FOLDER`.
"""


def pack(spec: RunSpec, out: Path, home: Home, *, with_model: bool = False) -> RunSpec:
    """Pack a run into the folder `out` to transfer it; return its spec, with paths relative to it.

    Raises:
        InputError: `out` exists, or the run starts from an adapter of this machine.
        DiskFull: The disk is full; the folder was removed.
    """
    if spec.train.init_adapter:
        raise SpecError(
            "A packed run cannot start from train.init_adapter, which is on this machine: train it "
            "here, or merge that adapter into a base first (studio merge).",
            field="train.init_adapter",
        )
    if out.exists():
        raise InputError(f"{out} exists already: choose a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    model = Path(spec.model.path)
    with publishing(out.absolute()) as folder:
        data = {field: _copy_data(_value(spec, field), folder, name, home)
                for field, name in DATA.items()}  # fmt: skip
        packed = spec.with_values({**data, "train.device": "auto"})
        note = ""
        if with_model and model.is_dir():
            shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(".*"))
            packed = packed.with_parts(model={"path": "model"})
        elif model.is_dir():
            note = f"\n   Copy the model {model.name} too, and set model.path in spec.yaml."
        (folder / "spec.yaml").write_text(packed.to_yaml(), encoding="utf-8")
        processes = spec.train.num_devices
        name = spec.name or "adapter-studio"
        script = SLURM.format(name=name, processes=processes, cpus=4 * processes)
        readme = README.format(name=name, model=note)
        for file, text in (("run.sh", RUN), ("slurm.sh", script), ("README.txt", readme)):
            (folder / file).write_text(text, encoding="utf-8", newline="\n")  # also on Windows
    return packed


def unpack(folder: Path, run_dir: Path) -> Iterator[Event]:
    """Copy the adapter of a trained folder into `run_dir` and yield the run's events.

    Raises:
        InputError: The run has not finished, or its adapter is damaged.
    """
    trained = folder / "run" / "adapter"
    events = list(_events(folder / "run" / EVENTS))
    last = events[-1] if events else None
    if not isinstance(last, Finished) or last.reason != "completed":
        done = f"stopped at step {last.step}" if last else "not started"
        raise InputError(f"The run in {folder} has not finished ({done}): run run.sh there first.")
    if not is_whole(trained):
        raise InputError(
            f"The adapter in {folder} is damaged or incomplete: copy the folder again."
        )
    yield from events[:-1]
    with publishing(run_dir / "adapter") as target:
        shutil.copytree(trained, target, dirs_exist_ok=True)
    for name in ("report.json", "log.txt"):
        if (folder / "run" / name).is_file():
            shutil.copyfile(folder / "run" / name, run_dir / f"elsewhere-{name}")
    values = {**last.as_dict(), "adapter": str(run_dir / "adapter")}
    yield event_from(values)


def read_spec(folder: Path) -> RunSpec:
    """Return the spec of a packed folder, with relative paths."""
    return RunSpec.from_yaml(folder / "spec.yaml")


def spec_in(folder: Path) -> RunSpec:
    """Return the spec of a packed folder, with absolute paths."""
    spec = read_spec(folder)
    changes: dict[str, Any] = {}
    for field in ("model.path", *DATA):
        if (value := _value(spec, field)) and (folder / value).exists():
            changes[field] = str(folder / value)
    return spec.with_values(changes)


def main(arguments: list[str] | None = None) -> int:
    """Train a packed folder as one process of a launcher."""
    folder = Path((arguments or sys.argv[1:] or ["."])[0]).absolute()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _train(folder)
    except StudioError as error:
        print(error.text, file=sys.stderr)
        return error.exit_code
    return 0


def _train(folder: Path) -> None:
    """Train as one rank; `changes.json` is what a retry of this very spec changes, and why."""
    from studio.training.fit_in_memory import retry_changes, retry_text
    from studio.training.train_run import train

    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    train_args = {"num_processes": size} | ({"device": _join()} if size > 1 else {})
    run_dir = folder / "run"
    given, tried = (folder / "spec.yaml").read_text("utf-8"), atomic.read_object(run_dir / CHANGES)
    tried = tried if tried.get("spec") == given else {}
    changes = tried.get("changes", {})
    spec = spec_in(folder).with_parts(train=train_args).with_values(changes)
    run_dir.mkdir(exist_ok=True)
    notes = [Loading(text=retry_text(changes))] if changes else []
    events = train(
        spec, run_dir=run_dir, home=open_home(folder / "home"), in_process_group=size > 1
    )
    try:
        with (run_dir / EVENTS).open("a", encoding="utf-8") as file:
            for event in chain(notes, events):
                if rank == 0:
                    file.write(json.dumps(event.as_dict()) + "\n")
                    file.flush()
                    logging.info("%s", event)
    except InputError:
        if tried:  # the remedy is not possible here
            raise OutOfMemory(tried["error"]) from None
        raise
    except OutOfMemory as error:
        if size > 1 and (more := retry_changes(spec, error)):
            values = {"spec": given, "changes": changes | more, "error": error.text}
            atomic.write(run_dir / CHANGES, json.dumps(values))
            (run_dir / AGAIN).touch()
        raise


def _join() -> str:
    """Join the launcher's process group; return this rank's device."""
    import torch

    from studio.training.distributed_rank import TIMEOUT

    gpus = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if gpus else "gloo", timeout=TIMEOUT)
    if not gpus:
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device


def _value(spec: RunSpec, field: str) -> str:
    part, _, name = field.partition(".")
    return str(getattr(getattr(spec, part), name))


def _copy_data(path: str, folder: Path, name: str, home: Home) -> str:
    """Copy a dataset below `data/name`; return its path there, or the name of a demo or hub id."""
    source = Path(path)
    if not path or path.startswith("starter:"):
        return path
    if source.is_dir() or source.is_file():
        target = folder / "data" / name / source.name
        target.parent.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(source, target)
        return target.relative_to(folder).as_posix()
    if (snapshot := home.datasets / path).is_dir():
        shutil.copytree(snapshot, folder / "home" / "datasets" / path, dirs_exist_ok=True)
    return path


def _events(path: Path) -> Iterator[Event]:
    """Yield the events of a run; steps that a resumed run repeated occur twice."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(lines, 1):
        try:
            yield event_from(json.loads(line))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last line may be incomplete
                raise DataError(f"Line {number} of {path} is not an event of a run.") from None


if __name__ == "__main__":
    raise SystemExit(main())
